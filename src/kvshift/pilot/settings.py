"""What the user asked of a pilot, and the plan made of it. Both are files in the pilot's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvshift.pilot.notes import Note
from kvshift.training.recipe import Recipe

PLAN_VERSION = 2


class PilotSettings(BaseModel):
    """The request. None means: choose for me."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = ()  # files, folders, globs, dataset names; none: Python's standard library
    text_column: str | None = None
    tokenizer: Path | None = None
    budget_seconds: float = Field(600, gt=0)
    arms: tuple[str, str] = ("vanilla", "kvshift")  # names in arms.ARMS; the first is the baseline
    sizes: tuple[str, ...] | None = None  # names in ladder.LADDER, smallest first
    seeds: tuple[int, ...] | None = None
    tokens: int | None = Field(None, gt=0)
    sequence_length: int | None = Field(None, ge=8)
    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    start: Literal["paper", "identity", "structured"] | None = None
    multiplier: float | None = Field(None, ge=0)
    model: Path | None = None  # config.json or folder: the ladder's top
    price_per_hour: float | None = Field(None, ge=0)
    currency: str = "USD"
    language: Literal["en", "ja"] = "en"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool | None = None


class Arm(BaseModel):
    """One side of the comparison."""

    model_config = ConfigDict(frozen=True)

    name: str
    shift: dict[str, Any] | None  # KVShiftConfig as a dictionary; None: the vanilla model
    seed_offset: int = 0  # an A/A pilot trains the same model on other seeds


class Size(BaseModel):
    """One rung of the ladder."""

    model_config = ConfigDict(frozen=True)

    name: str
    model: dict[str, Any]  # Hugging Face configuration
    parameters: int  # the vanilla model's, embeddings included
    non_embedding_parameters: int
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    tokens_per_second: dict[str, float] = {}  # measured while planning, by arm


class PlannedRun(BaseModel):
    """One run. `check` runs train the candidate at a shorter length, schedule and all, to test the claim
    of data saved that the main runs' curves make."""

    model_config = ConfigDict(frozen=True)

    name: str  # unique, also the folder under runs/: "small-kvshift-seed0"
    role: Literal["main", "check"]
    arm: str
    size: str
    seed: int  # the pair's; the recipe's is this plus the arm's seed_offset
    recipe: Recipe
    expected_seconds: float


class Plan(BaseModel):
    """What will be run, in this order."""

    model_config = ConfigDict(frozen=True)

    version: int = PLAN_VERSION
    settings: PilotSettings
    data: Path
    device: str  # for people
    devices: int  # how many runs go side by side
    arms: tuple[Arm, Arm]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    tokens: int
    check_share: float | None  # length of the check runs as a share of `tokens`; None: no check runs
    runs: tuple[PlannedRun, ...]
    expected_seconds: float  # all runs, start-up and evaluation included; 0 left for preparation
    warnings: tuple[Note, ...] = ()
