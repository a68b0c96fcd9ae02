"""Batches of a synthetic task as a model takes them, made ahead of the model that learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kvshift.tasks.task import IGNORED, Batch, Task
from kvshift.training.cores import usable_cores
from kvshift.training.data import positions

_MOST_WORKERS = 8
_MOST_TOGETHER = 32  # steps
_TOGETHER_BYTES = 1_000_000  # in shared memory, of which containers have little
_MOST_BYTES = 4 * 8  # for a position: its input, its own number, what is asked and the answer


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
        return _moved(self, device)


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


class Lessons(NamedTuple):
    """Several steps' lessons as one: a few large tensors travel, not many small ones.

    `inputs` and `positions` are `(steps, rows, length)`; `asked` and `answers` hold `counts[i]` numbers of
    step i, one step's after the other's.
    """

    inputs: Tensor
    positions: Tensor | None
    packed: list[bool]
    asked: Tensor
    answers: Tensor
    counts: list[int]

    @classmethod
    def joined(cls, steps: list[Lesson]) -> Lessons:
        places = [each.positions for each in steps]
        packed = [each is not None for each in places]
        none = torch.zeros_like(steps[0].inputs)
        return cls(
            inputs=torch.stack([each.inputs for each in steps]),
            positions=torch.stack([none if each is None else each for each in places])
            if any(packed)
            else None,
            packed=packed,
            asked=torch.cat([each.asked for each in steps]),
            answers=torch.cat([each.answers for each in steps]),
            counts=[len(each.asked) for each in steps],
        )

    def to(self, device: torch.device) -> Lessons:
        """As `Lesson.to`."""
        return _moved(self, device)

    def parted(self) -> Iterator[Lesson]:
        """Each step's."""
        asked, answers = self.asked.split(self.counts), self.answers.split(self.counts)
        for step, packed in enumerate(self.packed):
            places = self.positions[step] if self.positions is not None and packed else None
            yield Lesson(self.inputs[step], places, asked[step], answers[step])


def _moved(one: Any, device: torch.device) -> Any:
    """A named tuple with its tensors on `device`."""
    return one._make(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in one)


class _Ahead(Dataset[Lessons]):
    """Lessons of steps `begin` to `end` - 1, `together` at a time."""

    def __init__(self, task: Task, size: int, begin: int, end: int, together: int) -> None:
        self.task, self.size, self.end = task, size, end
        self.firsts = range(begin, end, together)

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, place: int) -> Lessons:
        first = self.firsts[place]
        steps = range(first, min(first + self.firsts.step, self.end))
        return Lessons.joined([make_lesson(self.task.batch(step, self.size)) for step in steps])


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
    fitting = _TOGETHER_BYTES // (_MOST_BYTES * size * task.length)
    together = min(_MOST_TOGETHER, max(fitting, 1)) if workers else 1
    loader: DataLoader[Lessons] = DataLoader(
        _Ahead(task, size, begin, end, together),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=(2 if together > 1 else 4) if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader's own draw leaves the global one alone
    )
    for several in loader:
        yield from several.to(device).parted()
