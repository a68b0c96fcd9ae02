"""The shift in few PyTorch operators and with a gradient of its own, for training small models on a CPU.

There, calling an operator costs as much as what it does, and masking a tensor costs several passes over it.
So the rows of all sequences lie one after the other, and each takes up what lies j rows before it, whatever
that is. The few rows for which that belongs to another sequence are put back to what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from kvshift.kernels.latest import Latest
from kvshift.shift import definition


def shift(x: Tensor, weight: Tensor, starts: Tensor | None) -> Tensor:
    """The rows of `kvshift.shift.shift` without a state; `dispatch.py` says when.

    Args:
        x: raw rows, `(batch, time, heads, head_dim)`, not empty, on the CPU.
        weight: taps, `(heads, window)` or `(heads, head_dim, window)`, in the rows' dtype.
        starts: `(batch, time)` bool, True where a sequence begins; the first column always does.

    Returns:
        The shifted rows, like `x`.
    """
    shifted: Tensor = _Shift.apply(x, weight, starts, find_seams(x, starts, weight.shape[-1]))
    return shifted


class Seams(NamedTuple):
    """For j = 1, 2, ...: the numbers of the rows whose j-th predecessor belongs to another sequence."""

    rows: tuple[Tensor, ...]
    predecessors: tuple[Tensor, ...]
    """Of each of those rows the j-th; before the first row comes the last."""


class Part(NamedTuple):
    """Rows of one kind, all sequences one after the other, and what becomes of them."""

    out: Tensor
    """`(rows, channels)`, written to."""
    rows: Tensor
    """`(rows, channels)`."""
    taps: Tensor
    """`(window, channels)`."""


class _Shift(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, starts: Tensor | None, seams: Seams) -> Tensor:
        taps = taps_of_a_row(weight, x.shape[3])
        ctx.seams = seams
        ctx.save_for_backward(x, weight, starts, taps)
        rows = x.reshape(-1, taps.shape[1])
        out = rows.new_empty(rows.shape)
        mix(out, [Part(out, rows, taps)], seams)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, starts, taps = ctx.saved_tensors
        if is_more_than_one(gradient):

            def shifted(x: Tensor, weight: Tensor) -> Tensor:
                return definition.shift(x, weight, starts=starts)[0]

            return *gradients_through(shifted, (x, weight), gradient), None, None
        dout = gradient.reshape(-1, taps.shape[1])
        dx, dweight = None, None
        if ctx.needs_input_grad[0]:
            dx = dout.new_empty(dout.shape)
            unmix(dx, [Part(dx, dout, taps)], ctx.seams)
            dx = dx.view(x.shape)
        if ctx.needs_input_grad[1]:
            sums = tap_sums([(x.reshape(dout.shape), dout)], len(taps), ctx.seams)
            dweight = as_taps(sums, weight)
        return dx, dweight, None, None


def mix(out: Tensor, parts: Sequence[Part], seams: Seams) -> None:
    """`out[t] = Σⱼ taps[j] · rows[t - j]` in each part, as far back as t's sequence began.

    Args:
        out: what holds the parts' `out`, side by side.
    """
    for part in parts:
        torch.mul(part.rows, part.taps[0], out=part.out)
    for j, seam in enumerate(seams.rows, 1):
        kept = out.index_select(0, seam)
        for part in parts:
            part.out[j:].addcmul_(part.rows[:-j], part.taps[j])
        out.index_copy_(0, seam, kept)


def unmix(out: Tensor, parts: Sequence[Part], seams: Seams) -> None:
    """`out[t] = Σⱼ taps[j] · rows[t + j]`, as far as t's sequence goes: the gradient through `mix`."""
    for part in parts:
        torch.mul(part.rows, part.taps[0], out=part.out)
    for j, seam in enumerate(seams.predecessors, 1):
        kept = out.index_select(0, seam)
        for part in parts:
            part.out[:-j].addcmul_(part.rows[j:], part.taps[j])
        out.index_copy_(0, seam, kept)


def tap_sums(pairs: Sequence[tuple[Tensor, Tensor]], window: int, seams: Seams) -> Tensor:
    """`Σₜ dout[t + j] · x[t]`, the taps' gradient: `(window, channels)`.

    Args:
        pairs: x and dout, `(rows, channels)` all alike; the result has their channels side by side.
    """
    first = pairs[0][0]
    width = first.shape[1]
    sums, products = first.new_empty(window, len(pairs) * width), first.new_empty(first.shape)
    for i, (x, dout) in enumerate(pairs):
        of_pair = sums[:, i * width : (i + 1) * width]
        torch.sum(torch.mul(x, dout, out=products), 0, out=of_pair[0])
        for j, seam in enumerate(seams.predecessors, 1):
            torch.mul(x[:-j], dout[j:], out=products[:-j])
            products.index_fill_(0, seam, 0)  # among them the last j rows, which hold other products
            torch.sum(products, 0, out=of_pair[j])
    return sums


def taps_of_a_row(weight: Tensor, head_dim: int) -> Tensor:
    """`(window, heads · head_dim)`: as long as a row, as broadcasting along it is slow."""
    heads, *_, window = weight.shape
    s_head, *s_channel, s_tap = weight.stride()
    by_tap = weight.as_strided((window, heads, head_dim), (s_tap, s_head, *(s_channel or [0])))
    return by_tap.reshape(window, -1)


def as_taps(sums: Tensor, weight: Tensor) -> Tensor:
    """`(window, heads · head_dim)` in the shape of the taps."""
    by_channel = sums.view(len(sums), weight.shape[0], -1)
    return (by_channel if weight.dim() == 3 else by_channel.sum(2)).movedim(0, -1)


def find_seams(x: Tensor, starts: Tensor | None, window: int) -> Seams:
    """The seams of rows `(batch, time, heads, head_dim)`."""
    return _seams((starts,), *x.shape[:2], window)


def _find_seams(starts: tuple[Tensor | None], batch: int, time: int, window: int) -> Seams:
    """Rows with a beginning among themselves and the j - 1 rows before them."""
    begins = torch.zeros(batch, time, dtype=torch.bool) if starts[0] is None else starts[0].clone()
    begins[:, 0] = True
    broken = begins.view(-1)
    rows = [broken.nonzero().squeeze(1)]
    for _ in range(window - 2):
        broken = begins.view(-1) | broken.roll(1)
        rows.append(broken.nonzero().squeeze(1))
    predecessors = [seam.sub(j).remainder_(batch * time) for j, seam in enumerate(rows, 1)]
    return Seams(tuple(rows), tuple(predecessors))


_seams = Latest(_find_seams)


def is_more_than_one(gradient: Tensor) -> bool:
    """Whether a backward's gradient will be differentiated, too, or is a batch of them (`vmap`).

    Neither can be written into tensors of our own, as the usual one is.
    """
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():  # compiled autograd, which does not know the question
        return False
    return torch._C._functorch.is_legacy_batchedtensor(gradient)  # as `is_grads_batched` makes them


def gradients_through(
    function: Callable[..., Tensor], tensors: Sequence[Tensor | None], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `tensors`, where `gradient` is that of `function(*tensors)`.

    Args:
        function: in operators that PyTorch can differentiate.
    """
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: one tensor may be made of another, or be the same, and its gradient would be counted twice.
        views = [None if x is None else x.view_as(x) for x in tensors]
        made = function(*views)
    wanted = [x for x in views if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(made, wanted, gradient, create_graph=further) if wanted else ())
    return tuple(next(found) if x is not None and x.requires_grad else None for x in views)
