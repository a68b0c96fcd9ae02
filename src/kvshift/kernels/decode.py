"""Decoding a few tokens: shift, norm, rotation, the caches and the state, in one launch.

What `shift_rotary` does to the new tokens, and besides: the new keys and values are written to their places
in preallocated caches, and the raw rows become the state. Nothing is allocated but the queries, every address
stays what it was, and the place in the cache is read on the device: a CUDA graph can hold it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvshift.errors import UsageError
from kvshift.kernels.registry import operator
from kvshift.kernels.rotary_kernels import angles, maybe_shifted, pairs, slot_of, store_pairs, turned
from kvshift.kernels.rows import (
    angle_strides,
    as_bytes,
    check_pairs,
    head_offsets,
    inner_contiguous,
    next_power_of_2,
    or_any,
    strides,
    unbroken,
)

MOST_TOKENS = 16
"""New tokens of a sequence that one launch takes."""
_WARPS = 1
"""More were slower on an H100 at batch 1 and 32 (docs/results/kernels.md)."""


@triton.jit
def _keep_channels(
    p_in, p_state, p_starts, b, head, d, m_d, time, heads, head_dim, s_batch, s_time, s_head,
    WINDOW: tl.constexpr, STARTS: tl.constexpr,
):  # fmt: skip
    o_in = b.to(tl.int64) * s_batch + head_offsets(head, d, s_head)
    p_state += (b.to(tl.int64) * (WINDOW - 1) * heads + head) * head_dim + d
    s_state = heads * head_dim
    for i in tl.static_range(WINDOW - 1):
        # Ascending: a place is read before it is written, since what it takes lies later.
        at = tl.zeros_like(d) + time + i - (WINDOW - 1)
        raw = tl.load(p_in + o_in + at.to(tl.int64) * s_time, mask=m_d & (at >= 0), other=0.0)
        old = tl.load(p_state + (time + i) * s_state, mask=m_d & (at < 0), other=0.0)
        kept = tl.where(at >= 0, raw, old)
        if STARTS:
            last = tl.zeros_like(d) + time - 1
            whole = unbroken(p_starts, b * time + last, last, WINDOW - 2 - i, last >= 0, STARTS)
            kept = tl.where(whole, kept, 0.0)
        tl.store(p_state + i * s_state, kept.to(p_state.dtype.element_ty), mask=m_d)


@triton.jit
def _keep(
    p_in, p_state, p_starts, b, head, one, other, m_pair, time, heads, head_dim, s_batch, s_time, s_head,
    WINDOW: tl.constexpr, STARTS: tl.constexpr,
):  # fmt: skip
    """The last WINDOW - 1 raw rows of one head become its state, those of an earlier sequence as zeros."""
    tl.debug_barrier()  # other threads may still read what is overwritten now
    _keep_channels(
        p_in, p_state, p_starts, b, head, one, m_pair, time, heads, head_dim, s_batch, s_time, s_head,
        WINDOW, STARTS,
    )  # fmt: skip
    _keep_channels(
        p_in, p_state, p_starts, b, head, other, m_pair, time, heads, head_dim, s_batch, s_time, s_head,
        WINDOW, STARTS,
    )  # fmt: skip


@triton.jit
def _kernel(
    p_q, p_k, p_v,  # (batch, time, heads, head_dim): the new tokens
    p_k_taps, p_v_taps,  # (kv_heads, window) or (kv_heads, head_dim, window)
    p_cos, p_sin,  # (batch, time, rotary_dim)
    p_q_norm, p_k_norm,  # (head_dim,)
    p_starts,  # (batch, time)
    p_place,  # (1,) int64: where in the caches the first new token goes
    p_k_state, p_v_state,  # (batch, window - 1, kv_heads, head_dim), contiguous
    p_k_cache, p_v_cache,  # (batch, kv_heads, length, head_dim)
    p_q_out,  # like q, contiguous
    time, q_heads, kv_heads, head_dim, eps,
    q_batch, q_time, q_head,  # strides
    k_batch, k_time, k_head,
    v_batch, v_time, v_head,
    a_batch, a_time,
    kc_batch, kc_head, kc_time,
    vc_batch, vc_head, vc_time,
    SHIFT_K: tl.constexpr, SHIFT_V: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr,
    ROTARY: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    which, head = slot_of(tl.program_id(1), q_heads, kv_heads)
    at = tl.arange(0, ROWS)
    one, other, m_pair, turns = pairs(head_dim, ROTARY, INTERLEAVED, PAIRS)
    m_row = at < time
    batch = tl.zeros((ROWS,), dtype=tl.int32) + b
    row = batch * time + at
    cos, sin = angles(p_cos, p_sin, batch, at, m_row, one, turns, a_batch, a_time)
    if which == 0:
        q_one, q_other = turned(
            p_q, p_q, p_starts, p_q, p_q_norm, row, batch, at, m_row, head, one, other, m_pair, cos, sin,
            head_dim, q_heads, eps, q_batch, q_time, q_head, False, NORM, WINDOW, PER_CHANNEL, STARTS, True,
        )  # fmt: skip
        o_out = (row.to(tl.int64) * q_heads + head) * head_dim
        store_pairs(p_q_out, o_out, one, other, m_row, m_pair, q_one, q_other)
    elif which == 1:
        k_one, k_other = turned(
            p_k, p_k_taps, p_starts, p_k_state, p_k_norm, row, batch, at, m_row, head, one, other, m_pair,
            cos, sin, head_dim, kv_heads, eps, k_batch, k_time, k_head,
            SHIFT_K, NORM, WINDOW, PER_CHANNEL, STARTS, True,
        )  # fmt: skip
        o_cache = b.to(tl.int64) * kc_batch + head.to(tl.int64) * kc_head + (tl.load(p_place) + at) * kc_time
        store_pairs(p_k_cache, o_cache, one, other, m_row, m_pair, k_one, k_other)
        if SHIFT_K:
            _keep(
                p_k, p_k_state, p_starts, b, head, one, other, m_pair, time, kv_heads, head_dim,
                k_batch, k_time, k_head, WINDOW, STARTS,
            )  # fmt: skip
    else:
        v_one, v_other = maybe_shifted(
            p_v, p_v_taps, p_starts, p_v_state, row, batch, at, m_row, head, one, other, m_pair, head_dim,
            kv_heads, v_batch, v_time, v_head, SHIFT_V, WINDOW, PER_CHANNEL, STARTS, True,
        )  # fmt: skip
        o_cache = b.to(tl.int64) * vc_batch + head.to(tl.int64) * vc_head + (tl.load(p_place) + at) * vc_time
        store_pairs(p_v_cache, o_cache, one, other, m_row, m_pair, v_one, v_other)
        if SHIFT_V:
            _keep(
                p_v, p_v_state, p_starts, b, head, one, other, m_pair, time, kv_heads, head_dim,
                v_batch, v_time, v_head, WINDOW, STARTS,
            )  # fmt: skip


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    place: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    starts: Tensor | None,
    eps: float,
    interleaved: bool,
) -> Tensor:
    q, k, v, cos, sin = map(inner_contiguous, (q, k, v, cos, sin))
    starts = None if starts is None else starts.contiguous()
    q_out = _fake(q)
    batch, time, kv_heads, head_dim = k.shape
    q_heads = q.shape[2]
    taps = v_taps if k_taps is None else k_taps
    if batch * time:
        _kernel[batch, q_heads + 2 * kv_heads](
            q, k, v,
            or_any(k_taps, k), or_any(v_taps, v),
            cos, sin,
            or_any(q_norm, q), or_any(k_norm, k),
            as_bytes(starts, k),
            place,
            or_any(k_state, k), or_any(v_state, v),
            k_cache, v_cache,
            q_out,
            time, q_heads, kv_heads, head_dim, eps,
            *strides(q), *strides(k), *strides(v),
            *angle_strides(cos), *strides(k_cache), *strides(v_cache),
            SHIFT_K=k_taps is not None, SHIFT_V=v_taps is not None, NORM=k_norm is not None,
            INTERLEAVED=interleaved,
            WINDOW=2 if taps is None else taps.shape[-1], PER_CHANNEL=taps is not None and taps.dim() == 3,
            STARTS=starts is not None, ROTARY=cos.shape[-1],
            ROWS=next_power_of_2(time), PAIRS=next_power_of_2(head_dim // 2), num_warps=_WARPS,
        )  # fmt: skip
    return q_out


def _fake(q: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape)


operator(
    "decode(Tensor q, Tensor k, Tensor v, Tensor? k_taps, Tensor? v_taps, Tensor cos, Tensor sin, "
    "Tensor place, Tensor(a!)? k_state, Tensor(b!)? v_state, Tensor(c!) k_cache, Tensor(d!) v_cache, "
    "Tensor? q_norm, Tensor? k_norm, Tensor? starts, float eps, bool interleaved) -> Tensor",
    launch=_launch,
    fake=_fake,
    any_strides=True,
)


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    place: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    starts: Tensor | None = None,
) -> Tensor:
    """The new tokens' queries; their keys, values and raw rows go where the next step looks for them.

    Args:
        q, k, v, k_taps, v_taps, cos, sin, q_norm, k_norm, eps, interleaved, starts: as for `shift_rotary`, of
            at most `MOST_TOKENS` new tokens.
        place: `(1,)` int64 on the device: the first new token's place in the caches.
        k_state, v_state: the raw rows before, `(batch, window - 1, kv_heads, head_dim)`, contiguous, in the
            rows' dtype, zeros at the beginning; overwritten. None where nothing is shifted.
        k_cache, v_cache: `(batch, kv_heads, length, head_dim)`; only the new tokens' places are overwritten.

    Returns:
        Normed and rotated queries, contiguous.

    Raises:
        UsageError: a gradient is wanted, there are too many new tokens, or channels do not come in pairs.
    """
    check_pairs(q, cos)
    if q.shape[1] > MOST_TOKENS:
        raise UsageError(f"decode takes at most {MOST_TOKENS} new tokens at once; got {q.shape[1]}.")
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, k_taps, v_taps, q_norm, k_norm)
    ):
        raise UsageError("decode has no gradient. Call it under torch.no_grad().")
    found: Tensor = torch.ops.kvshift.decode(
        q,
        k,
        v,
        k_taps,
        v_taps,
        cos,
        sin,
        place,
        k_state,
        v_state,
        k_cache,
        v_cache,
        q_norm,
        k_norm,
        starts,
        eps,
        interleaved,
    )
    return found
