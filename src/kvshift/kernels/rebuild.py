"""Attention that keeps raw rows for its backward, and makes the shifted, rotated ones again there.

The taps' gradient needs raw keys and values; attention's own gradient needs what it was given. Keeping both
costs two tensors a layer more than a model without shift. The raw rows are enough: what was made of them is
cheap to make again, and attention, which is not, does not run again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from kvshift.errors import UnsupportedModelError

Build = Callable[..., tuple[Tensor, ...]]


def rebuilt(build: Build, attend: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """`attend(*build(*tensors))`, keeping for the backward `tensors`, but nothing that `build` makes of them.

    The backward calls `build` once more and takes everything else that `attend` saved, its output and
    logsumexp among it, from where autograd kept it: any attention will do, and none runs its forward again.
    Without a gradient this is the plain call.

    Args:
        build: cheap, and the same each time: the shift and the rotation of keys and values. It returns what
            attention reads, in the dtype and layout in which it reads it.
        attend: takes what `build` returned. Queries may come from outside, rotated once and kept as always.
            It may read views of what it takes; a copy that it makes is kept like anything else.
        tensors: all that `build` reads, of any shapes: raw rows, taps, angles, starts. What it reads besides
            must still be there in the backward; if its gradient needs that, it costs a little time.

    Raises:
        UnsupportedModelError: in the backward, if it is asked for more than one gradient of the result.
    """
    if not torch.is_grad_enabled() or _exported() or _transformed():
        return attend(*build(*tensors))
    if torch.compiler.is_compiling():
        # The partitioner makes again in the backward what lies inside a checkpoint, also for use outside it.
        return attend(*checkpoint(build, *tensors, use_reentrant=False, preserve_rng_state=False))
    saved = _Saved(_memories(tensors))
    with saved_tensors_hooks(saved.by_build, _unpack):
        built = build(*tensors)
    saved.built = _memories(built)
    with saved_tensors_hooks(saved.by_attention, _unpack):
        out = attend(*built)
    if not out.requires_grad:
        return out
    kept = (*(None if x is None else x.detach() for x in tensors), *saved.others)
    saved.others.clear()  # autograd's graph holds the hooks, and they hold `saved`
    ready: Tensor = _Rebuild.apply(out, build, _learns(tensors), saved.places, saved.made > 0, *kept)
    return ready


class _Place:
    """What the graph holds instead of a tensor: where to find it and, in the backward, the tensor."""

    __slots__ = ("__weakref__", "index", "source", "tensor", "view")

    def __init__(self, source: str, index: int, view: tuple[Any, ...] | None) -> None:
        self.source, self.index = source, index
        self.view = view
        """Size, strides and offset in the memory of what lies there; None: all of it."""
        self.tensor: Tensor | None = None

    def fill(self, tensor: Tensor) -> None:
        self.tensor = tensor if self.view is None else tensor.as_strided(*self.view)


Memory = tuple[int, torch.dtype]


@dataclass
class _Saved:
    """What autograd wants to save, sorted by where the backward finds it."""

    given: dict[Memory, int]
    """Where in memory lie the tensors that `build` reads."""
    built: dict[Memory, int] = field(default_factory=dict)
    """And those that it returns."""
    made: int = 0
    """How many others it wanted to save: made on the way."""
    others: list[Tensor] = field(default_factory=list)
    """What attention saved of its own."""
    places: list[weakref.ref[_Place]] = field(default_factory=list)
    """Weak: the graph drops a place as soon as its node has run, and the tensor with it."""

    def by_build(self, x: Tensor) -> _Place:
        index = self.given.get(_memory(x))
        if index is not None:
            return self._place("given", index, x)
        self.made += 1
        return self._place("made", self.made - 1)

    def by_attention(self, x: Tensor) -> _Place:
        index = self.built.get(_memory(x))
        if index is not None:
            return self._place("built", index, x)
        self.others.append(x)
        return self._place("others", len(self.others) - 1)

    def _place(self, source: str, index: int, view: Tensor | None = None) -> _Place:
        where = None if view is None else (view.shape, view.stride(), view.storage_offset())
        place = _Place(source, index, where)
        self.places.append(weakref.ref(place))
        return place


class _Rebuild(torch.autograd.Function):
    """Stands behind attention, so that its backward comes first and makes ready what attention's will read.

    It keeps tensors in the ordinary way: whatever checkpoints or offloads activations around it sees them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        build: Build,
        learns: list[bool],
        places: list[weakref.ref[_Place]],
        again: bool,
        *kept: Tensor | None,
    ) -> Tensor:
        ctx.build, ctx.learns, ctx.places, ctx.again = build, learns, places, again
        ctx.autocast = _autocast(out.device.type)
        ctx.save_for_backward(*kept)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, count = ctx.saved_tensors, len(ctx.learns)
        given = kept[:count]
        made: list[Tensor] = []
        with torch.no_grad(), ctx.autocast:
            built = _run_again(ctx.build, given, ctx.learns, made) if ctx.again else ctx.build(*given)
        sources = {"given": given, "built": built, "made": made, "others": kept[count:]}
        for reference in ctx.places:
            place = reference()
            if place is not None:
                place.fill(sources[place.source][place.index])
        return _Once.apply(gradient), None, None, None, None, *(None for _ in kept)


class _Once(torch.autograd.Function):
    """The gradient as it is; a gradient of it is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise _refused()


def _run_again(
    build: Build, given: tuple[Tensor | None, ...], learns: list[bool], made: list[Tensor]
) -> tuple[Tensor, ...]:
    """`build` as it ran before; what it wants to save beside what it is given goes to `made`."""
    inputs = [x if x is None else x.detach().requires_grad_(w) for x, w in zip(given, learns, strict=True)]
    known = _memories(inputs)

    def collect(x: Tensor) -> None:
        if _memory(x) not in known:
            made.append(x)

    with torch.enable_grad(), saved_tensors_hooks(collect, _unpack):
        return tuple(x.detach() for x in build(*inputs))


def _unpack(place: _Place) -> Tensor:
    if place.tensor is None:
        raise _refused()
    return place.tensor


def _refused() -> UnsupportedModelError:
    return UnsupportedModelError(
        "Attention that rebuilds its keys and values has one gradient, through its output: no second "
        "derivative, and none through attention weights. Switch rebuilding off for these."
    )


def _autocast(device: str) -> Any:
    """A context with the casts that are in force now."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


def _memories(tensors: Iterable[Tensor | None]) -> dict[Memory, int]:
    return {_memory(x): i for i, x in enumerate(tensors) if x is not None}


def _memory(x: Tensor) -> Memory:
    """What a view shares with what it views; an address would not do, fake tensors have none."""
    return x.untyped_storage()._cdata, x.dtype


def _learns(tensors: Iterable[Tensor | None]) -> list[bool]:
    return [x is not None and x.requires_grad for x in tensors]


def _exported() -> bool:
    """Not `torch.compiler.is_exporting()`: PyTorch 2.11 says yes to that whenever Dynamo traces."""
    return bool(torch.compiler._is_exporting_flag)


def _transformed() -> bool:
    """Inside a transform of torch.func, which knows no hooks for saved tensors."""
    return torch._C._are_functorch_transforms_active()
