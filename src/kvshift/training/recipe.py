"""One training run, described completely: the same recipe gives the same run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kvshift.shift import KVShiftConfig


class Recipe(BaseModel):
    """Everything that decides a run's result, and nothing else.

    Two recipes that differ only in `shift` share initial weights outside the taps, data order and
    evaluation windows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="Folder of a prepared text (kvshift.tasks.text.TextData).")
    model: dict[str, Any] = Field(
        description="Hugging Face configuration, with model_type; vocab_size is set from the data."
    )
    shift: dict[str, Any] | None = Field(
        None, description="KVShiftConfig as a dictionary; None trains the vanilla model."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Decides initial weights, taps and data order.")
    tokens: int = Field(gt=0, description="Training tokens; rounded up to whole steps.")
    sequence_length: int = Field(256, ge=8, le=1 << 20, description="Tokens in a window.")
    batch_size: int = Field(16, ge=1, description="Windows in an optimizer step.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Windows on the device at once; None: the whole batch."
    )
    learning_rate: float = Field(3e-3, gt=0, le=10, description="Peak, reached after the warm-up.")
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, description="End of the cosine, as a share of the peak."
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps spent warming up.")
    weight_decay: float = Field(0.1, ge=0, le=1, description="On matrices; never on norms, biases or taps.")
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    evaluations: int = Field(
        20, ge=1, le=1000, description="Evenly spaced over the tokens, the last at the end."
    )
    evaluation_tokens: int = Field(
        65_536, ge=1, description="At most this many validation tokens, always the same."
    )
    checkpoint_seconds: float = Field(
        60, ge=0, description="Least time between checkpoints; 0 writes one each step."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = Field(
        False, description="torch.compile the model (a GPU is worth it, a CPU here is not)."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; None: every core this process may use.")

    @field_validator("shift")
    @classmethod
    def _known_shift(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else KVShiftConfig.from_dict(value).to_dict()

    @property
    def step_tokens(self) -> int:
        """Tokens in an optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.tokens // self.step_tokens)

    @property
    def shift_config(self) -> KVShiftConfig | None:
        """The shift, or None for the vanilla model."""
        return None if self.shift is None else KVShiftConfig.from_dict(self.shift)

    def fingerprint(self) -> str:
        """A short hash of what decides the result; two runs with the same one are the same run."""
        decides = self.model_dump_json(exclude={"checkpoint_seconds", "data"})
        return hashlib.sha256(f"{self.data.name}\n{decides}".encode()).hexdigest()[:16]
