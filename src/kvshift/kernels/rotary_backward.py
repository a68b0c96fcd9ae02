"""What `rotary_kernels.py` does, backwards; its formulas and bytes are there.

Queries have a launch of their own: keys and values need many registers, and a program that may be either kind
reserves them for both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvshift.kernels.rotary_kernels import (
    angles,
    head_rows,
    maybe_shifted,
    mean_product,
    norm_weights,
    pairs,
    root_of,
    store_pairs,
)
from kvshift.kernels.rows import before, head_offsets, kept_if, place_of, share_of, unbroken


@triton.jit
def _turned_back(
    p_dout, cos, sin, batch, at, m_row, head, one, other, m_pair, s_batch, s_time, s_head,
    TURN: tl.constexpr,
):  # fmt: skip
    """A head's gradient before the rotation, from the one after it: two tiles."""
    d_one = head_rows(p_dout, batch, at, m_row, head_offsets(head, one, s_head), m_pair, s_batch, s_time)
    d_other = head_rows(p_dout, batch, at, m_row, head_offsets(head, other, s_head), m_pair, s_batch, s_time)
    if TURN:
        d_one, d_other = cos * d_one + sin * d_other, cos * d_other - sin * d_one
    return d_one, d_other


@triton.jit
def _norm_back(dx_one, dx_other, h_one, h_other, p_norm, one, other, m_pair, head_dim, eps):
    """The gradient before the norm, and the weight's in each row, from the one after it: two tiles each."""
    root = root_of(h_one, h_other, head_dim, eps)
    w_one, w_other = norm_weights(p_norm, one, other, m_pair)
    n_one, n_other, dn_one, dn_other = root * h_one, root * h_other, dx_one * w_one, dx_other * w_other
    mean = mean_product(dn_one, dn_other, n_one, n_other, head_dim)
    dh_one, dh_other = root * (dn_one - n_one * mean), root * (dn_other - n_other * mean)
    return dh_one, dh_other, dx_one * n_one, dx_other * n_other


@triton.jit
def _added(part, j: tl.constexpr, sum_0, sum_1, sum_2, sum_3):
    if j == 0:
        sum_0 += part
    elif j == 1:
        sum_1 += part
    elif j == 2:
        sum_2 += part
    else:
        sum_3 += part
    return sum_0, sum_1, sum_2, sum_3


@triton.jit
def _store_sums(p_sums, channels, m_pair, sum_0, sum_1, sum_2, sum_3, WINDOW: tl.constexpr):
    tl.store(p_sums, tl.sum(sum_0, axis=0), mask=m_pair)
    tl.store(p_sums + channels, tl.sum(sum_1, axis=0), mask=m_pair)
    if WINDOW > 2:
        tl.store(p_sums + 2 * channels, tl.sum(sum_2, axis=0), mask=m_pair)
    if WINDOW > 3:
        tl.store(p_sums + 3 * channels, tl.sum(sum_3, axis=0), mask=m_pair)


@triton.jit
def _tap_products(
    dh, dh_here, x, p_state, batch, at, j: tl.constexpr, m_row, whole, o_state, m_pair, channels,
    WINDOW: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """What one row adds to the gradient of tap j: its own row with the gradient j later, and the state's."""
    part = dh * x
    if STATE and j > 0:
        early = before(p_state, batch, at, j, m_row, o_state, m_pair, channels, WINDOW)
        part += dh_here * kept_if(whole, early, j, STARTS)
    return part


@triton.jit
def _shifted_back(
    p_dout, p_in, p_taps, p_cos, p_sin, p_norm, p_starts, p_state, p_din, p_sums, p_norm_sums,
    rows, time, heads, head_dim, head, blocks, eps, s_batch, s_time, s_head, d_batch, d_time, d_head,
    a_batch, a_time,
    SHIFT: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROTARY: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One head of keys or values.

    dx[t] = Σⱼ taps[j] · dh[t + j]        dtaps[j] = Σₜ dh[t + j] · x[t]
    """
    one, other, m_pair, turns = pairs(head_dim, ROTARY, INTERLEAVED, PAIRS)
    o_one, o_other = head_offsets(head, one, s_head), head_offsets(head, other, s_head)
    channels = heads * head_dim
    c_one, c_other = head * head_dim + one, head * head_dim + other
    t_one = (c_one if PER_CHANNEL else head + 0 * one) * WINDOW
    t_other = (c_other if PER_CHANNEL else head + 0 * one) * WINDOW
    zeros = tl.zeros((ROWS, PAIRS), dtype=tl.float32)
    one_0, one_1, one_2, one_3 = zeros, zeros, zeros, zeros
    other_0, other_1, other_2, other_3 = zeros, zeros, zeros, zeros
    norm_one, norm_other = zeros, zeros
    for block in range(blocks):
        row = (tl.program_id(0) * blocks + block) * ROWS + tl.arange(0, ROWS)
        m_row = row < rows
        batch, at = place_of(row, time)
        x_one = head_rows(p_in, batch, at, m_row, o_one, m_pair, s_batch, s_time)
        x_other = head_rows(p_in, batch, at, m_row, o_other, m_pair, s_batch, s_time)
        total_one, total_other, cos, sin, here_one, here_other = zeros, zeros, zeros, zeros, zeros, zeros
        for j in tl.static_range(WINDOW if SHIFT else 1):
            m_later = m_row & (at + j < time)
            if TURN:
                cos, sin = angles(p_cos, p_sin, batch, at + j, m_later, one, turns, a_batch, a_time)
            d_one, d_other = _turned_back(
                p_dout, cos, sin, batch, at + j, m_later, head, one, other, m_pair, d_batch, d_time, d_head,
                TURN,
            )  # fmt: skip
            if NORM:
                h_one, h_other = maybe_shifted(
                    p_in, p_taps, p_starts, p_state, row + j, batch, at + j, m_later, head, one, other,
                    m_pair, head_dim, heads, s_batch, s_time, s_head,
                    SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
                )  # fmt: skip
                d_one, d_other, w_one, w_other = _norm_back(
                    d_one, d_other, h_one, h_other, p_norm, one, other, m_pair, head_dim, eps
                )
                if j == 0:
                    norm_one += w_one
                    norm_other += w_other
            if SHIFT:
                whole = unbroken(p_starts, row + j, at + j, j, m_later, STARTS)
                d_one, d_other = kept_if(whole, d_one, j, STARTS), kept_if(whole, d_other, j, STARTS)
                total_one += d_one * tl.load(p_taps + t_one + j, mask=m_pair, other=0.0)[None, :]
                total_other += d_other * tl.load(p_taps + t_other + j, mask=m_pair, other=0.0)[None, :]
                if j == 0:
                    here_one, here_other = d_one, d_other
                whole = unbroken(p_starts, row, at, j, m_row, STARTS)
                part = _tap_products(
                    d_one, here_one, x_one, p_state, batch, at, j, m_row, whole, c_one, m_pair, channels,
                    WINDOW, STARTS, STATE,
                )  # fmt: skip
                one_0, one_1, one_2, one_3 = _added(part, j, one_0, one_1, one_2, one_3)
                part = _tap_products(
                    d_other, here_other, x_other, p_state, batch, at, j, m_row, whole, c_other, m_pair,
                    channels, WINDOW, STARTS, STATE,
                )  # fmt: skip
                other_0, other_1, other_2, other_3 = _added(part, j, other_0, other_1, other_2, other_3)
            else:
                total_one, total_other = d_one, d_other
        o_din = (row.to(tl.int64) * heads + head) * head_dim
        store_pairs(p_din, o_din, one, other, m_row, m_pair, total_one, total_other)
    program = tl.program_id(0).to(tl.int64)
    if SHIFT:
        p_sums += program * WINDOW * channels
        _store_sums(p_sums + c_one, channels, m_pair, one_0, one_1, one_2, one_3, WINDOW)
        _store_sums(p_sums + c_other, channels, m_pair, other_0, other_1, other_2, other_3, WINDOW)
    if NORM:
        p_norm_sums += program * channels
        tl.store(p_norm_sums + c_one, tl.sum(norm_one, axis=0), mask=m_pair)
        tl.store(p_norm_sums + c_other, tl.sum(norm_other, axis=0), mask=m_pair)


@triton.jit
def queries_backward_kernel(
    p_dq_out,  # (batch, time, heads, head_dim): the gradient of the result
    p_q,  # only if it is normed
    p_cos, p_sin, p_norm,
    p_dq,  # like q, contiguous
    p_norm_sums,  # (programs, groups, head_dim) float32: parts of the norm's gradient
    rows, time, heads, head_dim, blocks, eps,
    q_batch, q_time, q_head,  # strides
    d_batch, d_time, d_head,
    a_batch, a_time,
    NORM: tl.constexpr, INTERLEAVED: tl.constexpr, ROTARY: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(heads, HEADS)
    program, group = share_of(tl.program_id(0), groups)
    first = group * HEADS
    one, other, m_pair, turns = pairs(head_dim, ROTARY, INTERLEAVED, PAIRS)
    norm_one = tl.zeros((ROWS, PAIRS), dtype=tl.float32)
    norm_other = norm_one
    for block in range(blocks):
        row = (program * blocks + block) * ROWS + tl.arange(0, ROWS)
        m_row = row < rows
        batch, at = place_of(row, time)
        cos, sin = angles(p_cos, p_sin, batch, at, m_row, one, turns, a_batch, a_time)
        for head in range(first, min(first + HEADS, heads)):
            d_one, d_other = _turned_back(
                p_dq_out, cos, sin, batch, at, m_row, head, one, other, m_pair, d_batch, d_time, d_head, True
            )
            if NORM:
                o_one, o_other = head_offsets(head, one, q_head), head_offsets(head, other, q_head)
                h_one = head_rows(p_q, batch, at, m_row, o_one, m_pair, q_batch, q_time)
                h_other = head_rows(p_q, batch, at, m_row, o_other, m_pair, q_batch, q_time)
                d_one, d_other, w_one, w_other = _norm_back(
                    d_one, d_other, h_one, h_other, p_norm, one, other, m_pair, head_dim, eps
                )
                norm_one += w_one
                norm_other += w_other
            o_dq = (row.to(tl.int64) * heads + head) * head_dim
            store_pairs(p_dq, o_dq, one, other, m_row, m_pair, d_one, d_other)
    if NORM:
        p_norm_sums += (program.to(tl.int64) * groups + group) * head_dim
        tl.store(p_norm_sums + one, tl.sum(norm_one, axis=0), mask=m_pair)
        tl.store(p_norm_sums + other, tl.sum(norm_other, axis=0), mask=m_pair)


@triton.jit
def keys_values_backward_kernel(
    p_dk_out, p_dv_out,  # gradients of the results
    p_k, p_v,
    p_k_taps, p_v_taps,
    p_cos, p_sin, p_norm,
    p_starts,
    p_k_state, p_v_state,
    p_dk, p_dv,  # like k and v, contiguous
    p_sums,  # (1 or 2 that are shifted, programs, window, heads, head_dim) float32: of the taps' gradients
    p_norm_sums,  # (programs, heads, head_dim) float32: of the keys' norm
    rows, time, heads, head_dim, blocks, eps,
    k_batch, k_time, k_head,
    v_batch, v_time, v_head,
    dk_batch, dk_time, dk_head,
    dv_batch, dv_time, dv_head,
    a_batch, a_time,
    SHIFT_K: tl.constexpr, SHIFT_V: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROTARY: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(heads, HEADS)
    of_values = tl.program_id(1) >= groups
    first = (tl.program_id(1) - tl.where(of_values, groups, 0)) * HEADS
    if of_values:
        if SHIFT_K:
            p_sums += tl.num_programs(0).to(tl.int64) * WINDOW * heads * head_dim
        for head in range(first, min(first + HEADS, heads)):
            _shifted_back(
                p_dv_out, p_v, p_v_taps, p_cos, p_sin, p_norm, p_starts, p_v_state, p_dv, p_sums,
                p_norm_sums, rows, time, heads, head_dim, head, blocks, eps, v_batch, v_time, v_head,
                dv_batch, dv_time, dv_head, a_batch, a_time,
                SHIFT_V, False, False, INTERLEAVED, WINDOW, PER_CHANNEL, STARTS, STATE, ROTARY, ROWS, PAIRS,
            )  # fmt: skip
    else:
        for head in range(first, min(first + HEADS, heads)):
            _shifted_back(
                p_dk_out, p_k, p_k_taps, p_cos, p_sin, p_norm, p_starts, p_k_state, p_dk, p_sums,
                p_norm_sums, rows, time, heads, head_dim, head, blocks, eps, k_batch, k_time, k_head,
                dk_batch, dk_time, dk_head, a_batch, a_time,
                SHIFT_K, True, NORM, INTERLEAVED, WINDOW, PER_CHANNEL, STARTS, STATE, ROTARY, ROWS, PAIRS,
            )  # fmt: skip
