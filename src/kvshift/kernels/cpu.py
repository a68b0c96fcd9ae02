"""The shift in few PyTorch operators and with a gradient of its own, for training small models on a CPU.

There, calling an operator costs as much as what it does, and masking a tensor costs several passes over it.
So the rows of all sequences lie one after the other in a circle, which is moved on by one row at a time. A
row whose predecessor belongs to another sequence gets zeros in its place: these are few, and they are named
by number. The first row of all begins a sequence, so nothing is read across the seam of the circle.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

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
    shifted: Tensor = _Shift.apply(x, weight, starts, *_ends(x, starts))
    return shifted


class _Shift(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, starts: Tensor | None, firsts: Tensor, lasts: Tensor
    ) -> Tensor:
        # out[t] = Σⱼ taps[j] · x[t - j]
        taps = _taps_of_a_row(weight, x.shape[3])
        ctx.save_for_backward(x, weight, starts, lasts, taps)
        total: Any = None
        for earlier, tap in _moved(x.reshape(-1, taps.shape[1]), firsts, 1, taps):
            total = _plus(total, earlier, tap)
        return total.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, starts, lasts, taps = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated, too
            return *_differentiable_gradients(x, weight, starts, gradient), None, None, None
        # dx[t] = Σⱼ taps[j] · dout[t + j]        dtaps[j] = Σₜ dout[t + j] · x[t]
        rows = x.reshape(-1, taps.shape[1])
        total, sums, products = None, torch.empty_like(taps), torch.empty_like(rows)
        for j, (later, tap) in enumerate(_moved(gradient.reshape(rows.shape), lasts, -1, taps)):
            if ctx.needs_input_grad[0]:
                total = _plus(total, later, tap)
            if ctx.needs_input_grad[1]:
                torch.sum(torch.mul(later, rows, out=products), 0, out=sums[j])
        dx = None if total is None else total.view(x.shape)
        return dx, _as_taps(sums, weight) if ctx.needs_input_grad[1] else None, None, None, None


def _moved(rows: Tensor, ends: Tensor, step: int, taps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each j, the rows t - step · j, zero where another sequence lies between, and the tap.

    Args:
        ends: what no row reads beyond: with step 1 the sequences' first rows, with -1 their last.
    """
    for j, tap in enumerate(taps.unbind()):
        if j > 0:
            rows = rows.roll(step, 0).index_fill_(0, ends, 0)
        yield rows, tap


def _plus(total: Tensor | None, rows: Tensor, tap: Tensor) -> Tensor:
    return rows * tap if total is None else total.addcmul_(rows, tap)


def _taps_of_a_row(weight: Tensor, head_dim: int) -> Tensor:
    """`(window, heads · head_dim)`: as long as a row, as broadcasting along it is slow."""
    heads, *_, window = weight.shape
    s_head, *s_channel, s_tap = weight.stride()
    by_tap = weight.as_strided((window, heads, head_dim), (s_tap, s_head, *(s_channel or [0])))
    return by_tap.reshape(window, -1)


def _as_taps(sums: Tensor, weight: Tensor) -> Tensor:
    """`(window, heads · head_dim)` in the shape of the taps."""
    by_channel = sums.view(len(sums), weight.shape[0], -1)
    return (by_channel if weight.dim() == 3 else by_channel.sum(2)).movedim(0, -1)


def _ends(x: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    if starts is not None and starts.is_inference():  # changes to it would go unnoticed
        return _find_ends.__wrapped__(starts, 0, *x.shape[:2])
    return _find_ends(starts, 0 if starts is None else starts._version, *x.shape[:2])


@lru_cache(maxsize=1)  # keys and values of all layers come with the same starts
@torch.inference_mode(False)
def _find_ends(starts: Tensor | None, version: int, batch: int, time: int) -> tuple[Tensor, Tensor]:
    """Which of all rows are a sequence's first, and which are a sequence's last.

    Args:
        version: counts changes to `starts`.
    """
    begins = torch.zeros(batch, time, dtype=torch.bool) if starts is None else starts.clone()
    begins[:, 0] = True
    firsts = begins.view(-1).nonzero().squeeze(1)
    return firsts, (firsts - 1).remainder_(batch * time)


def _differentiable_gradients(
    x: Tensor, weight: Tensor, starts: Tensor | None, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """By the definition."""
    shifted, _ = definition.shift(x, weight, starts=starts)
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    found = iter(torch.autograd.grad(shifted, wanted, gradient, create_graph=True))
    dx, dweight = (next(found) if tensor.requires_grad else None for tensor in (x, weight))
    return dx, dweight
