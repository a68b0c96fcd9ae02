"""What a run leaves behind: `record.jsonl`, one JSON object a line, in the order things happened.

Lines have an `event`: `start` (once, and again at each resume), `step`, `evaluation`, `taps`, `end`.
Everything that reads runs reads them through `read_record`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvshift.training.recipe import Recipe

Status = Literal["finished", "diverged", "failed", "unfinished"]


@dataclass(frozen=True)
class StepPoint:
    """Training loss, averaged since the last such point."""

    step: int
    tokens: int
    loss: float  # nats a token
    seconds: float  # training time so far, evaluation and checkpoints left out, summed over resumes


@dataclass(frozen=True)
class EvaluationPoint:
    """The model on the fixed validation windows."""

    step: int
    tokens: int
    nats_per_token: float
    bits_per_byte: float
    seconds: float  # training time so far, as in StepPoint


@dataclass(frozen=True)
class TapsPoint:
    """The effective taps: `keys[layer][head][column]`, averaged over channels if they are per channel."""

    step: int
    tokens: int
    keys: list[list[list[float]]] | None
    values: list[list[list[float]]] | None


@dataclass(frozen=True)
class Record:
    """One run, read back. A run that was killed and not resumed is `unfinished`."""

    recipe: Recipe
    status: Status
    error: str | None = None  # why it failed or diverged, for people
    device: str = "cpu"  # for people: "CPU, 2 threads", "NVIDIA H100 80GB HBM3"
    versions: dict[str, str] = field(default_factory=dict)  # python, torch, transformers, kvshift
    parameters: int = 0  # all, embeddings included, taps included
    tap_parameters: int = 0
    steps: list[StepPoint] = field(default_factory=list)
    evaluations: list[EvaluationPoint] = field(default_factory=list)
    taps: list[TapsPoint] = field(default_factory=list)
    train_seconds: float = 0.0
    wall_seconds: float = 0.0  # start-up, evaluation and checkpoints included, summed over resumes
    tokens_per_second: float = 0.0  # from the median step, so that one hiccup does not count
    peak_memory_bytes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def final_loss(self) -> float | None:
        """Validation loss at the end in nats a token; None unless the run finished."""
        return self.evaluations[-1].nats_per_token if self.status == "finished" and self.evaluations else None
