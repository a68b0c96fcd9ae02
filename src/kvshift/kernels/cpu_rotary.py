"""The shift of keys and values with rotary embedding of queries and keys, in few operators for a CPU.

The library's own rotation takes some thirty operators forward and backward, of which many move halves of
heads about. Done in ten, it saves a good part of what the shift costs (docs/results/kernels.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kvshift.kernels.cpu import (
    Part,
    Seams,
    as_taps,
    find_seams,
    gradients_through,
    is_more_than_one,
    mix,
    tap_sums,
    taps_of_a_row,
    unmix,
)
from kvshift.kernels.latest import Latest
from kvshift.shift import definition

_WIDE = 32
"""Heads of so many channels take angles as fast by broadcasting as from a table of all heads' angles."""
_LARGE = 1 << 17
"""Tables of more numbers are no faster to read, take longer to make, and would be kept when all is done."""


def shift_rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    starts: Tensor | None = None,
    k_state: None = None,
    v_state: None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw queries, keys and values in; what attention takes out. `dispatch.py` says when.

    Every operation rounds as the library's do, in the same order, so that what does not shift keeps its bits.

    Args:
        q: `(batch, time, q_heads, head_dim)`, not empty, on the CPU.
        k, v: `(batch, time, kv_heads, head_dim)` of the same dtype.
        k_taps, v_taps: `(kv_heads, window)` or `(kv_heads, head_dim, window)` in that dtype, both of one
            shape. None: not shifted.
        cos, sin: `(batch or 1, time, rotary_dim)`, alike for the two channels that turn together; channels
            from `rotary_dim` on do not turn. No gradient reaches them.
        interleaved: a channel turns with its neighbour, not with the one half a rotation away.
        starts: `(batch, time)` bool, True where a sequence begins.
        k_state, v_state: it knows none.

    Returns:
        Queries, keys and values, shaped and typed like the raw ones: views of one tensor.
    """
    taps = v_taps if k_taps is None else k_taps
    seams = Seams((), ()) if taps is None else find_seams(k, starts, taps.shape[-1])
    cos, sin = _angles(cos, sin, q.shape[2] + k.shape[2], q.shape[3])
    made = _ShiftRotary.apply(q, k, v, k_taps, v_taps, cos, sin, starts, seams, interleaved)
    q, k, v = made.split_with_sizes((q.shape[2], k.shape[2], k.shape[2]), dim=2)
    return q, k, v


class _ShiftRotary(Function):
    """To one tensor with the heads of all three side by side, so that its gradient comes in one as well."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_taps: Tensor | None,
        v_taps: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor | None,
        seams: Seams,
        interleaved: bool,
    ) -> Tensor:
        heads, kv_heads, head_dim = q.shape[2], *k.shape[2:]
        k_row, v_row = (None if taps is None else taps_of_a_row(taps, head_dim) for taps in (k_taps, v_taps))
        ctx.seams, ctx.interleaved = seams, interleaved
        ctx.save_for_backward(k, v, k_taps, v_taps, cos, sin, starts, k_row, v_row)
        out = q.new_empty(*q.shape[:2], heads + 2 * kv_heads, head_dim)
        out[:, :, :heads].copy_(q)
        places = _as_rows(out[:, :, heads:])
        mix(places, _parts(places, (k, v), (k_row, v_row)), seams)
        turning = out[:, :, : heads + kv_heads, : cos.shape[-1]]
        by_sin = turning * sin
        one, other = _partners(turning.mul_(cos), interleaved)
        one_by_sin, other_by_sin = _partners(by_sin, interleaved)
        one.sub_(other_by_sin)  # x·cos + (-y)·sin to the bit
        other.add_(one_by_sin)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        k, v, k_taps, v_taps, cos, sin, starts, k_row, v_row = ctx.saved_tensors
        nothing = (None,) * 5
        if is_more_than_one(gradient):
            tensors = (k, v, k_taps, v_taps)
            return *_gradients_by_definition(gradient, tensors, cos, sin, starts, ctx.interleaved), *nothing
        kv_heads = k.shape[2]
        turned, dv_hat = gradient[:, :, :-kv_heads], gradient[:, :, -kv_heads:]
        back = _turned_back(turned, cos, sin, ctx.interleaved)
        dq, dk_hat = back[:, :, :-kv_heads], back[:, :, -kv_heads:]
        dkv = gradient.new_empty(*k.shape[:2], 2 * kv_heads, k.shape[3])
        places = _as_rows(dkv)
        unmix(places, _parts(places, (dk_hat, dv_hat), (k_row, v_row)), ctx.seams)
        dtaps: list[Tensor | None] = [None, None]
        shifted = [i for i, taps in enumerate((k_taps, v_taps)) if taps is not None]
        if any(ctx.needs_input_grad[3:5]):
            raws, outs = (k, v), (dk_hat, dv_hat)
            pairs = [(_as_rows(raws[i]), _as_rows(outs[i])) for i in shifted]
            sums = tap_sums(pairs, len(ctx.seams.rows) + 1, ctx.seams).chunk(len(pairs), 1)
            for i, of_one in zip(shifted, sums, strict=True):
                dtaps[i] = as_taps(of_one, (k_taps, v_taps)[i])
        return dq, dkv[:, :, :kv_heads], dkv[:, :, kv_heads:], *dtaps, *nothing


def _as_rows(x: Tensor) -> Tensor:
    """`(rows, channels)`, if possible a view: always where a row's heads lie side by side."""
    return x.reshape(x.shape[0] * x.shape[1], -1)


def _parts(
    places: Tensor, rows: tuple[Tensor, Tensor], taps: tuple[Tensor | None, Tensor | None]
) -> list[Part]:
    """What is to be shifted of keys and values into their halves of `places`; what is not is copied now."""
    parts = []
    for to, x, its in zip(places.chunk(2, 1), map(_as_rows, rows), taps, strict=True):
        if its is None:
            to.copy_(x)
        else:
            parts.append(Part(to, x, its))
    return parts


def _turned_back(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The gradient through the rotation: a rotation by the negative angle."""
    rotary = cos.shape[-1]
    back = x.new_empty(x.shape)
    turning = x[..., :rotary]
    if rotary < x.shape[-1]:
        back[..., rotary:].copy_(x[..., rotary:])
    one, other = _partners(torch.mul(turning, cos, out=back[..., :rotary]), interleaved)
    one_by_sin, other_by_sin = _partners(turning * sin, interleaved)
    one.add_(other_by_sin)
    other.sub_(one_by_sin)
    return back


def _partners(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the channels that turn with each other."""
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    one, other = x.chunk(2, -1)
    return one, other


def _angles(cos: Tensor, sin: Tensor, heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `(batch, time, heads, rotary_dim)`."""
    if head_dim >= _WIDE or heads * cos.numel() > _LARGE:
        return cos.unsqueeze(2), sin.unsqueeze(2)
    return _tables((cos, sin), heads)


def _for_all_heads(angles: tuple[Tensor, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Tables, as broadcasting narrow heads is slow."""
    cos, sin = (x.unsqueeze(2).expand(-1, -1, heads, -1).contiguous() for x in angles)
    return cos, sin


_tables = Latest(_for_all_heads)


def _gradients_by_definition(
    gradient: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
    interleaved: bool,
) -> tuple[Tensor | None, ...]:
    """Of queries, by the same formula, and of `tensors`."""
    cos, sin = cos[:, :, :1], sin[:, :, :1]

    def made(k: Tensor, v: Tensor, k_taps: Tensor | None, v_taps: Tensor | None) -> Tensor:
        k_hat, v_hat, _ = definition.kv_shift(k, v, k_taps, v_taps, starts=starts)
        return torch.cat((_turned(k_hat, cos, sin, interleaved), v_hat), dim=2)

    kv_heads = tensors[0].shape[2]
    of_q, of_kv = gradient[:, :, : -2 * kv_heads], gradient[:, :, -2 * kv_heads :]
    return _turned(of_q, cos, -sin, interleaved), *gradients_through(made, tensors, of_kv)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The rotation as the library writes it."""
    turning, rest = x.tensor_split((cos.shape[-1],), dim=-1)
    one, other = _partners(turning, interleaved)
    swapped = (
        torch.stack((-other, one), dim=-1).flatten(-2) if interleaved else torch.cat((-other, one), dim=-1)
    )
    return torch.cat((turning * cos + swapped * sin, rest), dim=-1)
