"""One training run on a synthetic task, described completely: the same recipe gives the same run."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kvshift.errors import UsageError
from kvshift.shift import KVShiftConfig
from kvshift.tasks.gsm import GradeSchoolMaths
from kvshift.tasks.hops import Hops
from kvshift.tasks.induction import Induction
from kvshift.tasks.ngram import NGram
from kvshift.tasks.task import Task

TASKS: dict[str, Any] = {"induction": Induction, "ngram": NGram, "hops": Hops, "gsm": GradeSchoolMaths}


class TaskRecipe(BaseModel):
    """Everything that decides a run's result, and nothing else; JSON's own types throughout.

    Two recipes that differ only in `shift` share initial weights outside the taps, data and evaluation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["induction", "ngram", "hops", "gsm"]
    task_settings: dict[str, Any] = Field(
        default={}, description="Fields of the task, all but its seed, which is the run's."
    )
    model: dict[str, Any] = Field(
        description="Hugging Face configuration, with model_type; vocab_size is the task's. Dropout is the "
        "model's own unless given (GPT-2: 0.1)."
    )
    logits: Literal["head", "final_norm"] = Field(
        "head",
        description="final_norm: the last norm's output itself, as in the hops' reference model (paper §4).",
    )
    shift: dict[str, Any] | None = Field(
        None, description="KVShiftConfig as a dictionary; None trains the vanilla model."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Decides initial weights, taps, data and dropout.")
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="Rows in an optimizer step.")
    learning_rate: float = Field(gt=0, le=10, description="Peak, reached after the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of a linear warm-up.")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="After the warm-up; linear: down to 0 at the end."
    )
    weight_decay: float = Field(0.1, ge=0, le=1, description="On matrices; never on norms, biases or taps.")
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    evaluate_every: int = Field(ge=1, description="Steps; the end is evaluated in any case.")
    evaluation_batches: int = Field(1, ge=1, description="The task's test batches 0, 1, …, always the same.")
    evaluation_rows: int = Field(ge=1, description="Rows in each of them.")
    graded_problems: int = Field(
        0,
        ge=0,
        description="gsm only: test problems that the trained model solves by itself, and as many that are "
        "as long as the longest it learned from.",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda computes in bfloat16 under autocast.")
    compile: bool = Field(
        False, description="torch.compile the decoder layers; on cuda, a step of whole rows as one graph."
    )

    @field_validator("shift")
    @classmethod
    def _known_shift(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else KVShiftConfig.from_dict(value).to_dict()

    @cached_property
    def made_task(self) -> Task:
        """The task itself.

        Raises:
            UsageError: its settings are impossible, or there is something to grade in a task without grades.
        """
        if self.graded_problems and self.task != "gsm":
            raise UsageError(
                f"graded_problems is {self.graded_problems}, but the task is {self.task!r}; expected 0: only "
                "gsm has derivations to grade."
            )
        try:
            task: Task = TASKS[self.task](seed=self.seed, **self.task_settings)
        except TypeError as error:
            raise UsageError(f"task_settings of {self.task}: {error}.") from error
        return task

    @property
    def sequence_length(self) -> int:
        """Positions in a row."""
        return self.made_task.length

    @property
    def shift_config(self) -> KVShiftConfig | None:
        """The shift, or None for the vanilla model."""
        return None if self.shift is None else KVShiftConfig.from_dict(self.shift)

    def settings(self) -> dict[str, Any]:
        """The recipe in JSON's own types; `TaskRecipe(**settings)` is the same recipe."""
        return self.model_dump(mode="json")

    def learning_rate_factor(self, step: int) -> float:
        """The learning rate of the step that follows `step` finished ones, as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        return (self.steps - step) / max(self.steps - self.warmup_steps, 1)
