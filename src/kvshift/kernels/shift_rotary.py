"""The shift with rotary embedding as an operator; `rotary_kernels.py` has the mathematics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvshift.kernels.registry import differentiable, operator
from kvshift.kernels.rotary_backward import keys_values_backward_kernel, queries_backward_kernel
from kvshift.kernels.rotary_kernels import forward_kernel
from kvshift.kernels.rows import (
    Tile,
    angle_strides,
    as_bytes,
    blocks_a_program,
    ceil_div,
    check_pairs,
    inner_contiguous,
    next_power_of_2,
    or_any,
    strides,
)
from kvshift.kernels.sums import taps_gradients

# What `benchmarks/tiles.py` found fastest on an H200 (docs/results/kernels.md), with norms a sweep like it.
_FORWARD = Tile(rows=8, across=8, warps=4)
_BACKWARD = Tile(rows=8, across=1, warps=2)
_NORM_BACKWARD = Tile(rows=8, across=1, warps=4)
_QUERIES_BACKWARD = Tile(rows=16, across=2, warps=4)
_MOST_NUMBERS = 32  # of a tile in a thread's registers: heads of 256 take more warps
_MOST_BLOCKS = 32  # of rows that one program of the backward adds up


def _rotation(tile: Tile, x: Tensor, cos: Tensor, norm: Tensor | None, interleaved: bool) -> dict[str, Any]:
    """What a kernel is compiled for."""
    pairs = next_power_of_2(x.shape[-1] // 2)
    return {
        "NORM": norm is not None,
        "INTERLEAVED": interleaved,
        "ROTARY": cos.shape[-1],
        "ROWS": tile.rows,
        "HEADS": tile.across,
        "PAIRS": pairs,
        "num_warps": max(tile.warps, tile.rows * 2 * pairs // (32 * _MOST_NUMBERS)),
    }


def _shift(
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    starts: Tensor | None,
    k_state: Tensor | None,
    v_state: Tensor | None,
) -> dict[str, Any]:
    """What a kernel that also shifts is compiled for."""
    taps = v_taps if k_taps is None else k_taps
    return {
        "SHIFT_K": k_taps is not None,
        "SHIFT_V": v_taps is not None,
        "WINDOW": 2 if taps is None else taps.shape[-1],
        "PER_CHANNEL": taps is not None and taps.dim() == 3,
        "STARTS": starts is not None,
        "STATE": k_state is not None or v_state is not None,
    }


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    starts: Tensor | None,
    k_state: Tensor | None,
    v_state: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out = _fake(q, k, v)
    batch, time, kv_heads, head_dim = k.shape
    rows, q_heads = batch * time, q.shape[2]
    if rows:
        slots = ceil_div(q_heads, _FORWARD.across) + 2 * ceil_div(kv_heads, _FORWARD.across)
        forward_kernel[(ceil_div(rows, _FORWARD.rows) * slots,)](
            q, k, v,
            or_any(k_taps, k), or_any(v_taps, v),
            cos, sin,
            or_any(q_norm, q), or_any(k_norm, k),
            as_bytes(starts, k),
            or_any(k_state, k), or_any(v_state, v),
            *out,
            rows, time, q_heads, kv_heads, head_dim, eps,
            *strides(q), *strides(k), *strides(v), *angle_strides(cos),
            **_rotation(_FORWARD, k, cos, k_norm, interleaved),
            **_shift(k_taps, v_taps, starts, k_state, v_state),
        )  # fmt: skip
    return out


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _launch_backward(
    dq_out: Tensor,
    dk_out: Tensor,
    dv_out: Tensor,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    starts: Tensor | None,
    k_state: Tensor | None,
    v_state: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, ...]:
    dq, dq_norm = _queries_backward(dq_out, q, cos, sin, q_norm, eps, interleaved)
    dk, dv, dk_taps, dv_taps, dk_norm = _keys_values_backward(
        dk_out, dv_out, k, v, k_taps, v_taps, cos, sin, k_norm, starts, k_state, v_state, eps, interleaved
    )
    return dq, dk, dv, dk_taps, dv_taps, dq_norm, dk_norm


def _queries_backward(
    dq_out: Tensor,
    q: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    norm: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    dq = dq_out.new_empty(dq_out.shape)
    batch, time, heads, head_dim = dq.shape
    rows, tile = batch * time, _QUERIES_BACKWARD
    groups = ceil_div(heads, tile.across)
    most = 1 if norm is None else _MOST_BLOCKS  # without sums nothing is gained by more
    blocks = blocks_a_program(ceil_div(rows, tile.rows), groups, most)
    programs = ceil_div(rows, tile.rows * blocks)
    norm_sums = dq.new_empty(0 if norm is None else (programs, groups, head_dim), dtype=torch.float32)
    if rows and heads:
        raw = or_any(q, dq_out)
        queries_backward_kernel[(programs * groups,)](
            dq_out, raw, cos, sin, or_any(norm, dq_out), dq, norm_sums,
            rows, time, heads, head_dim, blocks, eps,
            *strides(raw), *strides(dq_out), *angle_strides(cos),
            **_rotation(tile, dq, cos, norm, interleaved),
        )  # fmt: skip
    return dq, _norm_gradient(norm_sums, norm)


def _keys_values_backward(
    dk_out: Tensor,
    dv_out: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    norm: Tensor | None,
    starts: Tensor | None,
    k_state: Tensor | None,
    v_state: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, ...]:
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    batch, time, heads, head_dim = k.shape
    rows, tile = batch * time, _BACKWARD if norm is None else _NORM_BACKWARD
    slots = 2 * ceil_div(heads, tile.across)
    blocks = blocks_a_program(ceil_div(rows, tile.rows), slots, _MOST_BLOCKS)
    programs = ceil_div(rows, tile.rows * blocks)
    constants = _rotation(tile, k, cos, norm, interleaved) | _shift(k_taps, v_taps, starts, k_state, v_state)
    shifted = (k_taps is not None) + (v_taps is not None)
    sums = k.new_empty(shifted, programs, constants["WINDOW"], heads, head_dim, dtype=torch.float32)
    norm_sums = k.new_empty(0 if norm is None else (programs, heads, head_dim), dtype=torch.float32)
    if rows and heads:
        keys_values_backward_kernel[programs, slots](
            dk_out, dv_out, k, v,
            or_any(k_taps, k), or_any(v_taps, v),
            cos, sin,
            or_any(norm, k),
            as_bytes(starts, k),
            or_any(k_state, k), or_any(v_state, v),
            dk, dv,
            sums, norm_sums,
            rows, time, heads, head_dim, blocks, eps,
            *strides(k), *strides(v), *strides(dk_out), *strides(dv_out), *angle_strides(cos),
            **constants,
        )  # fmt: skip
    return dk, dv, *_of_taps(sums, k_taps, v_taps), _norm_gradient(norm_sums, norm)


def _fake_backward(dq_out: Tensor, dk_out: Tensor, dv_out: Tensor, *saved: Any) -> tuple[Tensor, ...]:
    _, k, v, k_taps, v_taps, _, _, q_norm, k_norm, *_ = saved
    none = k.new_empty(0, dtype=torch.float32)
    parameters = (none if each is None else each for each in (k_taps, v_taps, q_norm, k_norm))
    return (*_fake(dq_out, k, v), *(each.new_empty(each.shape) for each in parameters))


def _of_taps(sums: Tensor, k_taps: Tensor | None, v_taps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients; an empty tensor for what is not shifted."""
    if k_taps is not None:
        return taps_gradients(sums, k_taps, v_taps)
    none = sums.new_empty(0)
    return none, none.clone() if v_taps is None else taps_gradients(sums, v_taps, None)[0]


def _norm_gradient(sums: Tensor, norm: Tensor | None) -> Tensor:
    return sums if norm is None else sums.sum((0, 1)).to(norm.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, *tensors, ctx.eps, ctx.interleaved = inputs
    q_norm = tensors[6]
    ctx.save_for_backward(None if q_norm is None else q, *tensors)  # a rotation alone needs no q


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    found = torch.ops.kvshift.shift_rotary_backward(
        *map(inner_contiguous, gradients), *saved, ctx.eps, ctx.interleaved
    )
    _, _, _, k_taps, v_taps, _, _, q_norm, k_norm, *_ = saved
    dq, dk, dv, *of_parameters = found
    dk_taps, dv_taps, dq_norm, dk_norm = (
        None if parameter is None else gradient
        for parameter, gradient in zip((k_taps, v_taps, q_norm, k_norm), of_parameters, strict=True)
    )
    return dq, dk, dv, dk_taps, dv_taps, None, None, dq_norm, dk_norm, None, None, None, None, None


_SHARED = (
    "Tensor k, Tensor v, Tensor? k_taps, Tensor? v_taps, Tensor cos, Tensor sin, Tensor? q_norm, "
    "Tensor? k_norm, Tensor? starts, Tensor? k_state, Tensor? v_state, float eps, bool interleaved"
)
operator(
    f"shift_rotary(Tensor q, {_SHARED}) -> (Tensor, Tensor, Tensor)",
    launch=_launch,
    fake=_fake,
)
operator(
    f"shift_rotary_backward(Tensor dq_out, Tensor dk_out, Tensor dv_out, Tensor? q, {_SHARED}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    launch=_launch_backward,
    fake=_fake_backward,
    backward_of="the shift with rotary embedding",
)
_shift_rotary = differentiable("shift_rotary", _backward, _keep)


def shift_rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    starts: Tensor | None = None,
    k_state: Tensor | None = None,
    v_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw queries, keys and values in; what attention takes out.

    Args:
        q: `(batch, time, q_heads, head_dim)`, bfloat16, float16 or float32; any strides.
        k, v: `(batch, time, kv_heads, head_dim)` of the same dtype.
        k_taps, v_taps: `(kv_heads, window)` or `(kv_heads, head_dim, window)` float32, window 2 to 4, both of
            one shape. None: not shifted.
        cos, sin: `(batch or 1, time, rotary_dim)`, alike for the two channels that turn together; channels
            from `rotary_dim` on do not turn. No gradient reaches them.
        q_norm, k_norm: `(head_dim,)` weights of an RMS norm between shift and rotation, both or none.
        eps: the norm's ε.
        interleaved: a channel turns with its neighbour, not with the one half a rotation away.
        starts: `(batch, time)` bool, True where a sequence begins.
        k_state, v_state: the rows before, `(batch, window - 1, kv_heads, head_dim)`, for each shifted tensor
            or for none; no gradient reaches them.

    Returns:
        Queries, keys and values, contiguous, shaped and typed like the raw ones.

    Raises:
        UsageError: channels do not come in pairs.
    """
    check_pairs(q, cos)

    def contiguous(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.contiguous()

    found: tuple[Tensor, Tensor, Tensor] = _shift_rotary(
        inner_contiguous(q),
        inner_contiguous(k),
        inner_contiguous(v),
        contiguous(k_taps),
        contiguous(v_taps),
        inner_contiguous(cos),
        inner_contiguous(sin),
        contiguous(q_norm),
        contiguous(k_norm),
        contiguous(starts),
        None if k_state is None else k_state.to(k.dtype).contiguous(),
        None if v_state is None else v_state.to(v.dtype).contiguous(),
        eps,
        interleaved,
    )
    return found


def _no_heads(x: Tensor) -> Tensor:
    """Not a view: a kept view would keep all of `x`."""
    return x.new_empty(*x.shape[:2], 0, x.shape[3])


def rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
) -> Tensor:
    """What `shift_rotary` does to queries, in a launch of its own."""
    none = _no_heads(x)
    return shift_rotary(
        x, none, none, None, None, cos, sin, q_norm=norm, k_norm=norm, eps=eps, interleaved=interleaved
    )[0]


def shift_rotary_kv(
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `shift_rotary` does to keys and values, in a launch of its own: `rebuilt` repeats only this."""
    _, k_out, v_out = shift_rotary(
        _no_heads(k), k, v, k_taps, v_taps, cos, sin,
        q_norm=norm, k_norm=norm, eps=eps, interleaved=interleaved, starts=starts,
    )  # fmt: skip
    return k_out, v_out
