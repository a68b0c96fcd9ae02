"""Batches of a synthetic task as a model takes them, made ahead of the model that learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kvshift.tasks.task import IGNORED, Batch, Task
from kvshift.training.cores import usable_cores
from kvshift.training.data import positions

_MOST_WORKERS = 8


class Lesson(NamedTuple):
    """What is read and what is asked. Only asked positions get logits: most tasks ask at few of them."""

    inputs: Tensor
    """int64 `(rows, length)`."""

    positions: Tensor | None
    """int64 `(rows, length)`, from 0 at each start; None where every row is one sequence."""

    asked: Tensor
    """int64 `(n,)`, indices into the flattened rows."""

    answers: Tensor
    """int64 `(n,)`."""

    def to(self, device: torch.device) -> Lesson:
        """The same on `device`, copied while the host goes on where the memory is pinned."""
        inputs, asked, answers = (
            each.to(device, non_blocking=True) for each in (self.inputs, self.asked, self.answers)
        )
        places = None if self.positions is None else self.positions.to(device, non_blocking=True)
        return Lesson(inputs, places, asked, answers)


def make_lesson(batch: Batch) -> Lesson:
    """A task's batch as a model takes it."""
    packed = bool(batch.starts[:, 1:].any())
    targets = batch.targets.flatten()
    asked = (targets != IGNORED).nonzero().flatten()
    return Lesson(
        inputs=batch.inputs,
        positions=torch.from_numpy(positions(batch.starts.numpy())) if packed else None,
        asked=asked,
        answers=targets[asked],
    )


class _Lessons(Dataset[Lesson]):
    def __init__(self, task: Task, size: int) -> None:
        self.task, self.size = task, size

    def __getitem__(self, step: int) -> Lesson:
        return make_lesson(self.task.batch(step, self.size))


def worker_count(device: torch.device) -> int:
    """A GPU may learn faster than one core makes batches; a CPU has its cores for the model."""
    return min(_MOST_WORKERS, max(len(usable_cores()) - 1, 1)) if device.type == "cuda" else 0


def lessons(
    task: Task, size: int, begin: int, end: int, device: torch.device, workers: int
) -> Iterator[Lesson]:
    """What steps `begin` to `end` - 1 learn from, in order, on `device`.

    Args:
        workers: processes that make batches ahead; 0 makes each when it is wanted. A batch depends on its
            step alone, whichever process makes it.
    """
    cuda = device.type == "cuda"
    loader: DataLoader[Lesson] = DataLoader(
        _Lessons(task, size),
        batch_size=None,
        sampler=range(begin, end),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=cuda,
        generator=torch.Generator(),  # the loader's own draw leaves the global one alone
    )
    for lesson in loader:
        yield lesson.to(device)
