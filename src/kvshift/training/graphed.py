"""A training step as one CUDA graph: a small model's hundreds of kernels are launched at once.

A step of 128 channels computes for a millisecond, and the host takes many times that to launch it. Recorded
once, it is replayed on other numbers in the same tensors: nothing in it may wait for the device or change
its shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvshift.models.families import unshifted_type
from kvshift.training.data import IGNORED
from kvshift.training.task_data import Lesson

WARM_UP = 3
"""Steps done one kernel at a time first: layers are compiled, and the optimizer makes its state."""
ROOM = 1.1  # for lessons that ask more than those of the warm-up did

WHOLE_ROWS = "kvshift_whole_rows"
"""PyTorch's attention, causal over each row. The library's own looks on the device whether positions restart,
and builds a mask wherever it cannot look; an implementation of which it knows no masks is left in peace."""
AttentionInterface.register(WHOLE_ROWS, sdpa_attention_forward)
KNOWN = ("llama", "gpt2")
"""Architectures that attend to all that came before in every layer, and whose forward waits for no device."""

Step = Callable[[Lesson], None]


def can_be_graphed(model: Any) -> bool:
    """Whether a step of this model is known to be the same when it is replayed; others go on unrecorded."""
    return unshifted_type(model.config) in KNOWN and model.config._attn_implementation == "sdpa"


def take_whole_rows(model: Any) -> None:
    """From now on the model, of `can_be_graphed`, takes each row for one sequence and never asks."""
    model.set_attn_implementation(WHOLE_ROWS)


class Cuda:
    """How steps are warmed up and recorded. A test on a CPU has another."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Does it on a stream of its own, as what is recorded later will be."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records it without doing it; what is returned does it."""
        graph = torch.cuda.CUDAGraph()
        # Not "global": a data loader's thread allocates pinned memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        return graph.replay


class GraphedStep:
    """Does `step`, after a warm-up of real steps as a graph.

    Args:
        step: forward, backward and update from a lesson on the device, whose unused answers are `IGNORED`. It
            leaves no gradients, reads what changes between steps (learning rates, the optimizer's state)
            from the same tensors each time and never waits for the device.
        device: how to record; `Cuda()` on a GPU.
    """

    def __init__(self, step: Step, device: Cuda) -> None:
        self._step, self._device = step, device
        self._warmed = self._most = 0
        self._replay: Callable[[], None] | None = None
        self._lesson: Lesson

    def anew(self) -> GraphedStep:
        """The same, with nothing recorded yet."""
        return GraphedStep(self._step, self._device)

    def __call__(self, lesson: Lesson) -> None:
        """The next step; of one sequence a row, `inputs` shaped as in every other."""
        if lesson.positions is not None:
            raise ValueError("a graphed step takes rows of one sequence, not packed ones")
        count = len(lesson.asked)
        if self._warmed < WARM_UP:
            self._warmed, self._most = self._warmed + 1, max(self._most, count)
            self._device.warm_up(lambda: self._step(lesson))
            return
        if self._replay is None:
            self._lesson = _room(lesson, min(int(self._most * ROOM) + 1, lesson.inputs.numel()))
            self._replay = self._device.record(lambda: self._step(self._lesson))
        if count > len(self._lesson.asked):
            self._step(lesson)
        else:
            _fill(self._lesson, lesson)
            self._replay()


def _room(like: Lesson, asked: int) -> Lesson:
    """A lesson of that many answers, none of them used."""
    none = like.inputs.new_zeros(asked)
    return Lesson(like.inputs.clone(), None, asked=none, answers=torch.full_like(none, IGNORED))


def _fill(room: Lesson, lesson: Lesson) -> None:
    """Copies a lesson into one with room for as many answers or more."""
    count = len(lesson.asked)
    room.inputs.copy_(lesson.inputs)
    room.asked[:count].copy_(lesson.asked)
    room.answers[:count].copy_(lesson.answers)
    room.answers[count:].fill_(IGNORED)
