"""The shape that all synthetic tasks share: batches out of a seed and a step, and counts as scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from kvshift.errors import UsageError

IGNORED = -100  # the target that no loss counts: PyTorch's own default for cross-entropy
Part = Literal["train", "test", "rules"]
_PARTS: tuple[Part, ...] = ("train", "test", "rules")


@dataclass(frozen=True)
class Batch:
    """Rows to learn from. Every tensor is `(rows, length)`.

    Attributes:
        inputs: int64 token ids.
        targets: int64, what the model is to say at each position (no further shift by one); `IGNORED`
            where nothing is asked.
        starts: bool, True where a sequence begins: always in the first column, and elsewhere in packed rows.
        groups: int64, which of the task's scores a position counts for; 0 for none.
    """

    inputs: Tensor
    targets: Tensor
    starts: Tensor
    groups: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on `device`, copied while the host goes on where the memory is pinned."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)
        }
        return Batch(**moved)


@dataclass(frozen=True)
class Count:
    """How many of `total` answers were right. Counts of several batches add up."""

    correct: int
    total: int

    def __add__(self, other: Count) -> Count:
        return Count(self.correct + other.correct, self.total + other.total)

    @property
    def accuracy(self) -> float:
        """The share that was right; NaN where nothing was counted."""
        return self.correct / self.total if self.total else float("nan")

    @property
    def error(self) -> float:
        """The share that was wrong; NaN where nothing was counted."""
        return 1 - self.accuracy


Scores = dict[str, Count]


class Task(Protocol):
    """What a runner needs of a task. The four tasks are frozen dataclasses of their settings."""

    @property
    def seed(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Every token id and target is below it."""

    @property
    def length(self) -> int:
        """Positions in a row."""

    @property
    def packs(self) -> bool:
        """Whether rows hold more than one sequence."""

    def batch(self, step: int, size: int) -> Batch:
        """What step `step` (from 0) of a run learns from: `size` rows."""

    def test(self, step: int, size: int) -> Batch:
        """Rows to evaluate on, from a stream of their own."""

    def score(self, predictions: Tensor, batch: Batch) -> Scores:
        """Counts by name. `predictions`: int64 `(rows, length)`, the most likely token at each position."""


def source(seed: int, part: Part, step: int = 0) -> np.random.Generator:
    """The random numbers of one batch: streams of different seeds, parts and steps are independent.

    The same in every process and on every machine with the same NumPy.
    """
    if step < 0:
        raise ValueError(f"steps count from 0, not {step}")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PARTS.index(part), step)))


def next_token_batch(tokens: np.ndarray, groups: np.ndarray, every_token: bool) -> Batch:
    """Rows of one sequence each, whose targets are the next tokens.

    Args:
        tokens: integers `(rows, length + 1)`.
        groups: int `(rows, length + 1)`, what each token counts for when it is predicted.
        every_token: ask for every next token, not only for those in a group.
    """
    following = torch.from_numpy(tokens[:, 1:].astype(np.int64))
    group = torch.from_numpy(groups[:, 1:].astype(np.int64))
    starts = torch.zeros(following.shape, dtype=torch.bool)
    starts[:, 0] = True
    return Batch(
        inputs=torch.from_numpy(tokens[:, :-1].astype(np.int64)),
        targets=following if every_token else following.masked_fill(group == 0, IGNORED),
        starts=starts,
        groups=group,
    )


def count_groups(predictions: Tensor, batch: Batch, groups: int) -> list[Count]:
    """Right answers in each group from 1 to `groups`, as a list of that length.

    Raises:
        ValueError: `predictions` does not have the batch's shape.
    """
    if predictions.shape != batch.targets.shape:
        expected, found = tuple(batch.targets.shape), tuple(predictions.shape)
        raise ValueError(f"one prediction a position is expected: shape {expected}, not {found}")
    right = batch.groups[predictions == batch.targets]
    correct, total = torch.stack(
        [found.flatten().bincount(minlength=groups + 1) for found in (right, batch.groups)]
    ).tolist()
    return [Count(*pair) for pair in zip(correct[1:], total[1:], strict=True)]


def merge(scores: Iterable[Scores]) -> Scores:
    """The scores of several batches as one."""
    merged: Scores = {}
    for one in scores:
        for name, count in one.items():
            merged[name] = merged.get(name, Count(0, 0)) + count
    return merged


def check_range(task: object, name: str, least: int, most: int, why: str = "") -> None:
    """Raises UsageError unless the setting `name` of `task` is a whole number from `least` to `most`."""
    value = getattr(task, name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        reason = f" ({why})" if why else ""
        raise UsageError(
            f"{type(task).__name__}.{name} is {value!r}; expected a whole number "
            f"from {least:,} to {most:,}{reason}."
        )


def check_size(size: int) -> None:
    """Raises ValueError unless a batch of `size` rows can be made."""
    if size < 1:
        raise ValueError(f"a batch has at least one row, not {size}")
