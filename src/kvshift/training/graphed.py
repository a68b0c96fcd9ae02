"""A training step as CUDA graphs: a small model's hundreds of kernels are launched at once.

A step of 128 channels computes for a millisecond, and the host takes many times that to launch it. Recorded
once, it is replayed on other numbers in the same tensors: nothing in it may wait for the device or change
its shape. Of a toy task the whole step is one graph (`GraphedStep`); of a text, whose optimizer is the
Trainer's, forward and backward are (`GraphedPass`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvshift.models.families import unshifted_type
from kvshift.training.data import IGNORED, Batch
from kvshift.training.task_data import Lesson

VARIABLE = "KVSHIFT_CUDA_GRAPHS"
"""0 in the environment: every kernel is launched by itself, for a GPU on which recording makes trouble."""
WARM_UP = 3
"""Steps done one kernel at a time first: layers are compiled, and the optimizer makes its state."""
ROOM = 1.1  # for lessons that ask more than those of the warm-up did

WHOLE_ROWS = "kvshift_whole_rows"
"""PyTorch's attention, causal over each row. The library's own looks on the device whether positions restart,
and builds a mask wherever it cannot look; an implementation of which it knows no masks is left in peace."""
AttentionInterface.register(WHOLE_ROWS, sdpa_attention_forward)
KNOWN = ("llama", "gpt2")
"""Architectures that attend to all that came before in every layer, and whose forward waits for no device."""
ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not look how long the sequences are, for which the host would wait."""

Step = Callable[[Lesson], None]


def can_be_graphed(model: Any) -> bool:
    """Whether a step of this model is known to do the same when it is replayed; others go on unrecorded.

    What a model drops is drawn anew at each replay, from PyTorch's generator of the device.
    """
    return (
        os.environ.get(VARIABLE, "1") != "0"
        and unshifted_type(model.config) in KNOWN
        and (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default") in ROTATIONS
        and model.config._attn_implementation == "sdpa"
    )


def take_whole_rows(model: Any) -> None:
    """From now on the model, of `can_be_graphed`, takes each row for one sequence and never asks."""
    model.set_attn_implementation(WHOLE_ROWS)


@contextlib.contextmanager
def whole_rows(model: Any) -> Iterator[None]:
    """`take_whole_rows`, inside alone."""
    before = model.config._attn_implementation
    take_whole_rows(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


Made = tuple[Tensor | None, ...]
"""What recorded work leaves: the same tensors after every replay, with other numbers in them."""


class Cuda:
    """How work is warmed up and recorded. A test on a CPU has another.

    All recordings share one pool of memory, so a replay may overwrite whatever another one made.

    Attributes:
        idle_bytes: what a replay uses beside what is allocated between replays.
    """

    def __init__(self) -> None:
        self.idle_bytes = 0
        self._side: Any = None  # the stream for both: on each, PyTorch keeps memory for itself
        self._pool: Any = None

    def forget(self) -> None:
        """What was recorded is not replayed any more; the next recording has a pool of its own."""
        self._pool = None

    def warm_up(self, work: Callable[[], object]) -> None:
        """Does it on a stream of its own, as what is recorded later will be."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            work()
        torch.cuda.current_stream().wait_stream(self._side)

    def record(self, work: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """Records it without doing it. Returns what it makes, and what does it."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.reset_peak_memory_stats()
        # Not "global": a data loader's thread allocates pinned memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            made = work()
        idle = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        self.idle_bytes = max(self.idle_bytes, idle)
        return made, graph.replay


def _recorded(device: Cuda, work: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
    try:
        return device.record(work)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"This GPU's work could not be recorded as a CUDA graph: {error} Set {VARIABLE}=0 in the "
            "environment to launch every kernel by itself."
        ) from error


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
        self._device.forget()
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
            _, self._replay = _recorded(self._device, self._of_lesson)
        if count > len(self._lesson.asked):
            self._step(lesson)
        else:
            _fill(self._lesson, lesson)
            self._replay()

    def _of_lesson(self) -> Made:
        self._step(self._lesson)
        return ()


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


class _Recording(NamedTuple):
    """A form's graph and its tensors. That they are held keeps other recordings out of their memory."""

    batch: Batch
    tokens: Tensor
    loss: Tensor
    gradients: Sequence[Tensor | None]
    replay: Callable[[], None]


class GraphedPass:
    """Forward and backward of a text's batches, recorded once for each form that a batch may have.

    Args:
        work: takes a batch on the device and a scalar, over how many tokens the loss is a mean; leaves
            gradients, and returns the loss. It never waits for the device.
        model: whose work it is; of `can_be_graphed`. A batch without `position_ids` has one document a row.
        device: how to record; `Cuda()` on a GPU.
    """

    def __init__(self, work: Callable[[Batch, Tensor], Tensor], model: Any, device: Cuda) -> None:
        self._work, self._model, self._device = work, model, device
        self._parameters: list[nn.Parameter] = list(model.parameters())
        self._recordings: dict[tuple[tuple[str, torch.Size], ...], _Recording] = {}

    def knows(self, batch: Batch) -> bool:
        """Whether a batch of this form is recorded."""
        return _form(batch) in self._recordings

    @property
    def idle_bytes(self) -> int:
        """What a replay uses on the device beside what is allocated between replays."""
        return self._device.idle_bytes

    def record(self, batch: Batch, tokens: Tensor) -> None:
        """Records batches of this form. The warm-up works on this one and throws its gradients away."""
        batch, tokens = {name: x.clone() for name, x in batch.items()}, tokens.clone()

        def work() -> Made:
            loss = self._work(batch, tokens)
            return loss, *self._take_gradients()

        with contextlib.nullcontext() if "position_ids" in batch else whole_rows(self._model):
            for _ in range(WARM_UP):
                self._device.warm_up(work)
            (loss, *gradients), replay = _recorded(self._device, work)
        assert loss is not None
        self._recordings[_form(batch)] = _Recording(batch, tokens, loss, gradients, replay)

    def __call__(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Forward and backward, for parameters without gradients. Returns the loss, which the next call
        overwrites, as it does the gradients."""
        if any(parameter.grad is not None for parameter in self._parameters):
            raise RuntimeError("a recorded pass does not add to gradients; set them to None before it")
        recording = self._recordings[_form(batch)]
        for name, x in recording.batch.items():
            x.copy_(batch[name], non_blocking=True)
        recording.tokens.copy_(tokens, non_blocking=True)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss

    def _take_gradients(self) -> list[Tensor | None]:
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients


def _form(batch: Batch) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, x.shape) for name, x in batch.items())
