"""The shift as one Triton launch for keys and values, and one for its backward.

Bytes, for each of the two tensors: forward reads the rows once and writes them once; backward reads the rows
and the gradient once and writes a gradient once. A row's predecessors come out of the cache, not memory.

Arithmetic is in float32 and rounded once, to the rows' dtype, when a result is stored. The taps' gradient
is summed in float32: first by each program over its own rows, then over programs, always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvshift.kernels.registry import differentiable, operator
from kvshift.kernels.rows import (
    Tile,
    as_bytes,
    before,
    blocks_a_program,
    ceil_div,
    channel_offsets,
    inner_contiguous,
    kept_if,
    or_any,
    place_of,
    row_offsets,
    share_of,
    shifted,
    strides,
    tap_offsets,
    unbroken,
)
from kvshift.kernels.sums import taps_gradients

# What `benchmarks/tiles.py` found fastest on an H200 (docs/results/kernels.md).
_FORWARD = Tile(rows=16, across=128, warps=4)
_BACKWARD = Tile(rows=8, across=128, warps=2)
_MOST_BLOCKS = 32  # of rows that one program of the backward adds up


@triton.jit
def _forward_kernel(
    p_x, p_y,  # (batch, time, heads, head_dim)
    p_x_taps, p_y_taps,  # (heads, window) or (heads, head_dim, window)
    p_starts,  # (batch, time)
    p_x_state, p_y_state,  # (batch, window - 1, heads, head_dim), contiguous
    p_x_out, p_y_out,  # like x, contiguous
    rows, time, channels, head_dim,
    x_batch, x_time, x_head,  # strides
    y_batch, y_time, y_head,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # out[t] = Σⱼ taps[j] · x[t - j]
    if tl.program_id(1) == 0:
        p_in, p_taps, p_state, p_out = p_x, p_x_taps, p_x_state, p_x_out
        s_batch, s_time, s_head = x_batch, x_time, x_head
    else:
        p_in, p_taps, p_state, p_out = p_y, p_y_taps, p_y_state, p_y_out
        s_batch, s_time, s_head = y_batch, y_time, y_head
    tile, column = share_of(tl.program_id(0), tl.cdiv(channels, CHANNELS))
    row = tile * ROWS + tl.arange(0, ROWS)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    m_row, m_channel = row < rows, channel < channels
    batch, at = place_of(row, time)
    o_channel = channel_offsets(channel, head_dim, s_head)
    o_taps = tap_offsets(channel, head_dim, WINDOW, PER_CHANNEL)

    total = shifted(
        p_in, p_taps, p_starts, p_state,
        row, batch, at, m_row,
        o_channel, channel, o_taps, m_channel,
        s_batch, s_time, channels,
        WINDOW, STARTS, STATE,
    )  # fmt: skip
    o_out = row.to(tl.int64) * channels
    m_out = m_row[:, None] & m_channel[None, :]
    tl.store(p_out + o_out[:, None] + channel[None, :], total.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def _backward_kernel(
    p_dx_out, p_dy_out,  # gradients of the results
    p_x, p_y,
    p_x_taps, p_y_taps,
    p_starts,
    p_x_state, p_y_state,
    p_dx, p_dy,  # like x, contiguous
    p_sums,  # (2, programs, window, heads, head_dim) float32: each program's part of the taps' gradient
    rows, time, channels, head_dim, blocks,
    x_batch, x_time, x_head,
    y_batch, y_time, y_head,
    dx_batch, dx_time, dx_head,
    dy_batch, dy_time, dy_head,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # dx[t] = Σⱼ taps[j] · dout[t + j]        dtaps[j] = Σₜ dout[t + j] · x[t]
    if tl.program_id(2) == 0:
        p_dout, p_in, p_taps, p_state, p_din = p_dx_out, p_x, p_x_taps, p_x_state, p_dx
        s_batch, s_time, s_head = x_batch, x_time, x_head
        d_batch, d_time, d_head = dx_batch, dx_time, dx_head
    else:
        p_dout, p_in, p_taps, p_state, p_din = p_dy_out, p_y, p_y_taps, p_y_state, p_dy
        s_batch, s_time, s_head = y_batch, y_time, y_head
        d_batch, d_time, d_head = dy_batch, dy_time, dy_head
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    m_channel = channel < channels
    o_channel = channel_offsets(channel, head_dim, s_head)
    od_channel = channel_offsets(channel, head_dim, d_head)
    o_taps = tap_offsets(channel, head_dim, WINDOW, PER_CHANNEL)
    first = tl.program_id(0) * blocks * ROWS
    sum_0 = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    sum_1, sum_2, sum_3 = sum_0, sum_0, sum_0
    for block in range(blocks):
        row = first + block * ROWS + tl.arange(0, ROWS)
        m_row = row < rows
        batch, at = place_of(row, time)
        m_tile = m_row[:, None] & m_channel[None, :]
        o_x = row_offsets(batch, at, s_batch, s_time)[:, None] + o_channel[None, :]
        o_dout = row_offsets(batch, at, d_batch, d_time)[:, None] + od_channel[None, :]
        x = tl.load(p_in + o_x, mask=m_tile, other=0.0).to(tl.float32)
        dout = tl.load(p_dout + o_dout, mask=m_tile, other=0.0).to(tl.float32)
        total = dout * tl.load(p_taps + o_taps, mask=m_channel, other=0.0)[None, :]
        sum_0 += dout * x
        for j in tl.static_range(1, WINDOW):
            m_later = m_row & (at + j < time)
            o_later = row_offsets(batch, at + j, d_batch, d_time)[:, None] + od_channel[None, :]
            m_here = m_later[:, None] & m_channel[None, :]
            later = tl.load(p_dout + o_later, mask=m_here, other=0.0).to(tl.float32)
            later = kept_if(unbroken(p_starts, row + j, at + j, j, m_later, STARTS), later, j, STARTS)
            total += later * tl.load(p_taps + o_taps + j, mask=m_channel, other=0.0)[None, :]
            part = later * x
            if STATE:
                early = before(p_state, batch, at, j, m_row, channel, m_channel, channels, WINDOW)
                part += dout * kept_if(unbroken(p_starts, row, at, j, m_row, STARTS), early, j, STARTS)
            if j == 1:
                sum_1 += part
            elif j == 2:
                sum_2 += part
            else:
                sum_3 += part
        o_out = row.to(tl.int64)[:, None] * channels + channel[None, :]
        tl.store(p_din + o_out, total.to(p_din.dtype.element_ty), mask=m_tile)
    o_sums = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * WINDOW * channels
    p_sums += o_sums + channel
    tl.store(p_sums, tl.sum(sum_0, axis=0), mask=m_channel)
    if WINDOW > 1:
        tl.store(p_sums + channels, tl.sum(sum_1, axis=0), mask=m_channel)
    if WINDOW > 2:
        tl.store(p_sums + 2 * channels, tl.sum(sum_2, axis=0), mask=m_channel)
    if WINDOW > 3:
        tl.store(p_sums + 3 * channels, tl.sum(sum_3, axis=0), mask=m_channel)


def _launch(
    x: Tensor,
    x_taps: Tensor,
    y: Tensor | None,
    y_taps: Tensor | None,
    starts: Tensor | None,
    x_state: Tensor | None,
    y_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x_out, y_out = _fake(x, x_taps, y, y_taps, starts, x_state, y_state)
    if x.numel():
        batch, time, heads, head_dim = x.shape
        rows, channels = batch * time, heads * head_dim
        columns = ceil_div(channels, _FORWARD.across)
        grid = (ceil_div(rows, _FORWARD.rows) * columns, 1 if y is None else 2)
        other = or_any(y, x)
        _forward_kernel[grid](
            x, other,
            x_taps, or_any(y_taps, x_taps),
            as_bytes(starts, x),
            or_any(x_state, x), or_any(y_state, other),
            x_out, y_out,
            rows, time, channels, head_dim,
            *strides(x), *strides(other),
            WINDOW=x_taps.shape[-1], PER_CHANNEL=x_taps.dim() == 3,
            STARTS=starts is not None, STATE=x_state is not None,
            ROWS=_FORWARD.rows, CHANNELS=_FORWARD.across, num_warps=_FORWARD.warps,
        )  # fmt: skip
    return x_out, y_out


def _fake(x: Tensor, x_taps: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if y is None else y.new_empty(y.shape)


def _launch_backward(
    dx_out: Tensor,
    x: Tensor,
    x_taps: Tensor,
    dy_out: Tensor | None,
    y: Tensor | None,
    y_taps: Tensor | None,
    starts: Tensor | None,
    x_state: Tensor | None,
    y_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dy = _fake(x, x_taps, y)
    batch, time, heads, head_dim = x.shape
    rows, channels, window = batch * time, heads * head_dim, x_taps.shape[-1]
    tensors, columns = 1 if y is None else 2, ceil_div(channels, _BACKWARD.across)
    blocks = blocks_a_program(ceil_div(rows, _BACKWARD.rows), tensors * columns, _MOST_BLOCKS)
    programs = ceil_div(rows, _BACKWARD.rows * blocks)
    sums = x_taps.new_empty(tensors, programs, window, heads, head_dim)
    other, dother_out = or_any(y, x), or_any(dy_out, dx_out)
    if x.numel():
        _backward_kernel[programs, columns, tensors](
            dx_out, dother_out,
            x, other,
            x_taps, or_any(y_taps, x_taps),
            as_bytes(starts, x),
            or_any(x_state, x), or_any(y_state, other),
            dx, dy,
            sums,
            rows, time, channels, head_dim, blocks,
            *strides(x), *strides(other), *strides(dx_out), *strides(dother_out),
            WINDOW=window, PER_CHANNEL=x_taps.dim() == 3,
            STARTS=starts is not None, STATE=x_state is not None,
            ROWS=_BACKWARD.rows, CHANNELS=_BACKWARD.across, num_warps=_BACKWARD.warps,
        )  # fmt: skip
    dx_taps, dy_taps = taps_gradients(sums, x_taps, y_taps)
    return dx, dx_taps, dy, dy_taps


def _fake_backward(
    dx_out: Tensor,
    x: Tensor,
    x_taps: Tensor,
    dy_out: Tensor | None,
    y: Tensor | None,
    y_taps: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x_taps.new_empty(x_taps.shape),
        x.new_empty(0) if y is None else y.new_empty(y.shape),
        x_taps.new_empty(0) if y_taps is None else y_taps.new_empty(y_taps.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dx_out: Tensor, dy_out: Tensor) -> tuple[Tensor | None, ...]:
    x, x_taps, y, y_taps, starts, x_state, y_state = ctx.saved_tensors
    dx, dx_taps, dy, dy_taps = torch.ops.kvshift.shift_backward(
        inner_contiguous(dx_out),
        x,
        x_taps,
        None if y is None else inner_contiguous(dy_out),
        y,
        y_taps,
        starts,
        x_state,
        y_state,
    )
    if y is None:
        return dx, dx_taps, None, None, None, None, None
    return dx, dx_taps, dy, dy_taps, None, None, None


operator(
    "shift(Tensor x, Tensor x_taps, Tensor? y, Tensor? y_taps, Tensor? starts, Tensor? x_state, "
    "Tensor? y_state) -> (Tensor, Tensor)",
    launch=_launch,
    fake=_fake,
)
operator(
    "shift_backward(Tensor dx_out, Tensor x, Tensor x_taps, Tensor? dy_out, Tensor? y, Tensor? y_taps, "
    "Tensor? starts, Tensor? x_state, Tensor? y_state) -> (Tensor, Tensor, Tensor, Tensor)",
    launch=_launch_backward,
    fake=_fake_backward,
    backward_of="the shift",
)
_shift = differentiable("shift", _backward, _keep)


def shift(
    x: Tensor,
    x_taps: Tensor,
    y: Tensor | None = None,
    y_taps: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    x_state: Tensor | None = None,
    y_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shifts one or two projections in one launch; `dispatch.py` says when.

    Args:
        x, y: raw rows, `(batch, time, heads, head_dim)`, of one shape and dtype: bfloat16, float16 or
            float32; any strides.
        x_taps, y_taps: `(heads, window)` or `(heads, head_dim, window)` float32, window 2 to 4.
        starts: `(batch, time)` bool, True where a sequence begins.
        x_state, y_state: the rows before, `(batch, window - 1, heads, head_dim)`; no gradient reaches them.

    Returns:
        The shifted rows, contiguous, in the rows' dtype; an empty tensor where there is no `y`.
    """
    out: tuple[Tensor, Tensor] = _shift(
        inner_contiguous(x),
        x_taps.contiguous(),
        None if y is None else inner_contiguous(y),
        None if y_taps is None else y_taps.contiguous(),
        None if starts is None else starts.contiguous(),
        None if x_state is None else x_state.to(x.dtype).contiguous(),
        None if y_state is None else y_state.to(x.dtype).contiguous(),
    )
    return out
