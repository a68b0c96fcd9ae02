"""What an inspection found: the schema of `inspection.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

INSPECTION_VERSION = 1


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Taps(Model):
    """One head's effective taps: what its gate or clamp leaves of the parameters. A number that is not
    finite is None."""

    mean: list[float | None] = Field(description="Weight of the current token, of the one before it, …")
    spread: list[float | None] | None = Field(
        None, description="Standard deviation over channels; None where a head has one set of taps."
    )
    dominant: int | None = Field(
        None, description="Steps back to the token that weighs most; the earlier one where two weigh alike."
    )
    started: list[float] | None = Field(None, description="The taps at step 0, where they are known.")
    moved: float | None = Field(None, description="Largest absolute change of a tap since step 0.")


class HeadTaps(Model):
    """One KV head."""

    layer: int
    head: int
    keys: Taps | None
    values: Taps | None
    quadrant: str | None = Field(description="See kvshift.inspection.quadrants; None without one.")


class QueryTaps(Model):
    """One query head, of a model whose queries are shifted too."""

    layer: int
    head: int
    queries: Taps


class LayerQuadrants(Model):
    layer: int
    counts: dict[str, int]


class LearnedTaps(Model):
    """Every tap of a shifted model."""

    heads: list[HeadTaps]
    query_heads: list[QueryTaps] = []
    quadrants: dict[str, int]
    by_layer: list[LayerQuadrants]
    start: str | None = Field(description="Where `started` is from, for people; None where it is unknown.")
    largest_move: float | None = None


class HeadScore(Model):
    """One query head on repeated random tokens (docs/guides/inspect.md)."""

    layer: int
    head: int
    prefix_matching: float = Field(description="0 to 1")
    copying: float | None = Field(
        description="-1 to 1, 0 by chance; None where the values' path is not known."
    )


class Induction(Model):
    """Induction scores, and what the whole model makes of a repetition."""

    heads: list[HeadScore]
    prefix_matching_chance: float = Field(description="Of a head that attends to every earlier token alike.")
    first_copy_loss: float = Field(description="nats a token")
    second_copy_loss: float = Field(description="nats a token")
    second_minus_first: float = Field(description="nats a token; below zero: the repetition is used")
    second_copy_accuracy: float = Field(description="Share of its tokens predicted right")
    sequences: int
    length: int = Field(description="Random tokens in one copy")
    start_token: int | None = Field(description="Put before the first copy")
    seed: int


class ModelFacts(Model):
    name: str
    architecture: str
    model_type: str
    parameters: int
    attention_layers: int
    query_heads: int
    kv_heads: int


class Inspection(Model):
    """A model, read."""

    version: int = INSPECTION_VERSION
    model: ModelFacts
    shift: dict[str, Any] | None = Field(description="KVShiftConfig; None for a model without KV shift.")
    taps: LearnedTaps | None
    induction: Induction | None
    notes: list[str] = []
    versions: dict[str, str]
