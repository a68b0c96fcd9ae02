"""Keys shifted, normed and rotated, values shifted, queries normed and rotated: one launch each way.

Rotary embedding reads and writes queries and keys anyway, so shifting the keys costs no memory traffic.
Bytes: forward reads and writes each of q, k, v once; backward reads the three gradients and the raw k and v
(and q, if it is normed) once and writes three gradients once. Cosines, sines and predecessors come out of
the cache.

A channel d of the first `rotary_dim` turns with a partner: the one half a rotation away, or its neighbour if
interleaved. With its sign s(d), -1 for the first of a pair and +1 for the second:

    y[d] = cos[d] · x[d] + s(d) · sin[d] · x[partner]
    dx[d] = cos[d] · dy[d] - s(d) · sin[partner] · dy[partner]

and the RMS norm of a head, if there is one (Qwen3's order), lies between shift and rotation:

    x = w · n,   n = r · h,   r = (mean(h²) + ε)^(-1/2)        dh = r · (dn - n · mean(dn · n)),   dn = w · dx

Everything is computed in float32 and rounded once, when it is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvshift.kernels.rows import before, head_offsets, place_of, row_offsets, shifted, unbroken


@triton.jit
def partner_of(d, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The channel that turns with d, and its sign, for d below ROTARY."""
    if INTERLEAVED:
        partner = d ^ 1
        sign = tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        partner = (d + ROTARY // 2) % ROTARY
        sign = tl.where(d < ROTARY // 2, -1.0, 1.0)
    return partner, sign


@triton.jit
def angles(p_cos, p_sin, batch, at, m_row, d, d_sin, sign, s_batch, s_time, ROTARY: tl.constexpr):
    """cos[d] and sign · sin[d_sin], 1 and 0 for channels that do not turn: (ROWS, D) float32."""
    o_row = row_offsets(batch, at, s_batch, s_time)
    mask = m_row[:, None] & (d < ROTARY)[None, :]
    cos = tl.load(p_cos + o_row[:, None] + d[None, :], mask=mask, other=1.0).to(tl.float32)
    sin = tl.load(p_sin + o_row[:, None] + d_sin[None, :], mask=mask, other=0.0).to(tl.float32)
    return cos, sin * sign[None, :]


@triton.jit
def head_rows(p_in, batch, at, m_row, o_channel, m_channel, s_batch, s_time):
    o_row = row_offsets(batch, at, s_batch, s_time)
    mask = m_row[:, None] & m_channel[None, :]
    return tl.load(p_in + o_row[:, None] + o_channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def maybe_shifted(
    p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, d, m_channel, head_dim, heads,
    s_batch, s_time, s_head,
    SHIFT: tl.constexpr, WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr,
    STATE: tl.constexpr,
):  # fmt: skip
    """A head's rows, shifted if SHIFT says so."""
    o_in = head_offsets(head, d, s_head)
    if SHIFT:
        o_state = head * head_dim + d
        o_taps = (o_state if PER_CHANNEL else head + 0 * d) * WINDOW
        x = shifted(
            p_in, p_taps, p_starts, p_state, row, batch, at, m_row, o_in, o_state, o_taps, m_channel,
            s_batch, s_time, heads * head_dim, WINDOW, STARTS, STATE,
        )  # fmt: skip
    else:
        x = head_rows(p_in, batch, at, m_row, o_in, m_channel, s_batch, s_time)
    return x


@triton.jit
def root_of(x, head_dim, eps):
    """(mean(x²) + ε)^(-1/2) of each row."""
    return tl.rsqrt(tl.sum(x * x, axis=1) / head_dim + eps)[:, None]


@triton.jit
def turned(
    p_in, p_taps, p_starts, p_state, p_norm, row, batch, at, m_row, head, d, m_d, partner, m_partner,
    cos, sin, head_dim, heads, eps, s_batch, s_time, s_head,
    SHIFT: tl.constexpr, NORM: tl.constexpr, WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr,
    STARTS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """A head's rows, shifted if SHIFT says so, normed if NORM does, and rotated."""
    x = maybe_shifted(
        p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, d, m_d, head_dim, heads,
        s_batch, s_time, s_head, SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
    )  # fmt: skip
    x_partner = maybe_shifted(
        p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, partner, m_partner, head_dim, heads,
        s_batch, s_time, s_head, SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
    )  # fmt: skip
    if NORM:
        root = root_of(x, head_dim, eps)
        x *= root * tl.load(p_norm + d, mask=m_d, other=0.0).to(tl.float32)[None, :]
        x_partner *= root * tl.load(p_norm + partner, mask=m_partner, other=0.0).to(tl.float32)[None, :]
    return cos * x + sin * x_partner


@triton.jit
def forward_kernel(
    p_q, p_k, p_v,  # (batch, time, heads, head_dim)
    p_k_taps, p_v_taps,  # (kv_heads, window) or (kv_heads, head_dim, window)
    p_cos, p_sin,  # (batch, time, rotary_dim)
    p_q_norm, p_k_norm,  # (head_dim,)
    p_starts,  # (batch, time)
    p_k_state, p_v_state,  # (batch, window - 1, kv_heads, head_dim), contiguous
    p_q_out, p_k_out, p_v_out,  # like q, k, v, contiguous
    rows, time, q_heads, kv_heads, head_dim, eps,
    q_batch, q_time, q_head,  # strides
    k_batch, k_time, k_head,
    v_batch, v_time, v_head,
    a_batch, a_time,
    SHIFT_K: tl.constexpr, SHIFT_V: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROTARY: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * HEADS
    d = tl.arange(0, D)
    m_row, m_d = row < rows, d < head_dim
    batch, at = place_of(row, time)
    m_out = m_row[:, None] & m_d[None, :]
    if tl.program_id(2) == 2:
        for head in range(first, min(first + HEADS, kv_heads)):
            v = maybe_shifted(
                p_v, p_v_taps, p_starts, p_v_state, row, batch, at, m_row, head, d, m_d, head_dim, kv_heads,
                v_batch, v_time, v_head, SHIFT_V, WINDOW, PER_CHANNEL, STARTS, STATE,
            )  # fmt: skip
            o_out = (row.to(tl.int64) * kv_heads + head) * head_dim
            tl.store(p_v_out + o_out[:, None] + d[None, :], v.to(p_v_out.dtype.element_ty), mask=m_out)
    else:
        partner, sign = partner_of(d, ROTARY, INTERLEAVED)
        m_partner = d < ROTARY
        cos, sin = angles(p_cos, p_sin, batch, at, m_row, d, d, sign, a_batch, a_time, ROTARY)
        if tl.program_id(2) == 0:
            for head in range(first, min(first + HEADS, q_heads)):
                q = turned(
                    p_q, p_q, p_starts, p_q, p_q_norm, row, batch, at, m_row, head, d, m_d,
                    partner, m_partner, cos, sin, head_dim, q_heads, eps, q_batch, q_time, q_head,
                    False, NORM, WINDOW, PER_CHANNEL, STARTS, STATE,
                )  # fmt: skip
                o_out = (row.to(tl.int64) * q_heads + head) * head_dim
                tl.store(p_q_out + o_out[:, None] + d[None, :], q.to(p_q_out.dtype.element_ty), mask=m_out)
        else:
            for head in range(first, min(first + HEADS, kv_heads)):
                k = turned(
                    p_k, p_k_taps, p_starts, p_k_state, p_k_norm, row, batch, at, m_row, head, d, m_d,
                    partner, m_partner, cos, sin, head_dim, kv_heads, eps, k_batch, k_time, k_head,
                    SHIFT_K, NORM, WINDOW, PER_CHANNEL, STARTS, STATE,
                )  # fmt: skip
                o_out = (row.to(tl.int64) * kv_heads + head) * head_dim
                tl.store(p_k_out + o_out[:, None] + d[None, :], k.to(p_k_out.dtype.element_ty), mask=m_out)


@triton.jit
def _turned_back(p_dout, cos, sin, batch, at, m_row, o_d, m_d, o_partner, m_partner, s_batch, s_time):
    """The gradient before the rotation, from the one after it; `cos` and `sin` as `_angles` gives them."""
    dout = head_rows(p_dout, batch, at, m_row, o_d, m_d, s_batch, s_time)
    of_partner = head_rows(p_dout, batch, at, m_row, o_partner, m_partner, s_batch, s_time)
    return cos * dout - sin * of_partner


@triton.jit
def _norm_back(dx, h, p_norm, d, m_d, head_dim, eps):
    """The gradient before the norm, and the weight's in each row, from the one after it."""
    root = root_of(h, head_dim, eps)
    n = root * h
    dn = dx * tl.load(p_norm + d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    dh = root * (dn - n * (tl.sum(dn * n, axis=1) / head_dim)[:, None])
    return dh, dx * n


@triton.jit
def _shifted_back(
    p_dout, p_in, p_taps, p_cos, p_sin, p_norm, p_starts, p_state, p_din, p_sums, p_norm_sums,
    rows, time, heads, head_dim, head, blocks, eps, s_batch, s_time, s_head, d_batch, d_time, d_head,
    a_batch, a_time,
    SHIFT: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROTARY: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One head of keys or values: what `forward_kernel` does to it, backwards.

    dx[t] = Σⱼ taps[j] · dh[t + j]        dtaps[j] = Σₜ dh[t + j] · x[t]
    """
    d = tl.arange(0, D)
    m_d, m_partner = d < head_dim, d < ROTARY
    partner, sign = partner_of(d, ROTARY, INTERLEAVED)
    o_in, o_dout = head_offsets(head, d, s_head), head_offsets(head, d, d_head)
    o_partner = head_offsets(head, partner, d_head)
    o_state = head * head_dim + d
    o_taps = (o_state if PER_CHANNEL else head + 0 * d) * WINDOW
    sum_0 = tl.zeros((ROWS, D), dtype=tl.float32)
    sum_1, sum_2, sum_3, norm_sum = sum_0, sum_0, sum_0, sum_0
    for block in range(blocks):
        row = (tl.program_id(0) * blocks + block) * ROWS + tl.arange(0, ROWS)
        m_row = row < rows
        batch, at = place_of(row, time)
        x = head_rows(p_in, batch, at, m_row, o_in, m_d, s_batch, s_time)
        total = tl.zeros((ROWS, D), dtype=tl.float32)
        dh_here = total
        for j in tl.static_range(WINDOW if SHIFT else 1):
            m_later = m_row & (at + j < time)
            m_later = m_later & unbroken(p_starts, row + j, at + j, j, m_later, STARTS)
            if TURN:
                cos, sin = angles(
                    p_cos, p_sin, batch, at + j, m_later, d, partner, sign, a_batch, a_time, ROTARY
                )
                dh = _turned_back(
                    p_dout, cos, sin, batch, at + j, m_later, o_dout, m_d, o_partner, m_partner,
                    d_batch, d_time,
                )  # fmt: skip
            else:
                dh = head_rows(p_dout, batch, at + j, m_later, o_dout, m_d, d_batch, d_time)
            if NORM:
                h = maybe_shifted(
                    p_in, p_taps, p_starts, p_state, row + j, batch, at + j, m_later, head, d, m_d, head_dim,
                    heads, s_batch, s_time, s_head, SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
                )  # fmt: skip
                dh, of_weight = _norm_back(dh, h, p_norm, d, m_d, head_dim, eps)
                if j == 0:
                    norm_sum += of_weight
            if SHIFT:
                total += dh * tl.load(p_taps + o_taps + j, mask=m_d, other=0.0)[None, :]
                part = dh * x
                if j == 0:
                    dh_here = dh
                elif STATE:
                    m_read = m_row & unbroken(p_starts, row, at, j, m_row, STARTS)
                    part += dh_here * before(
                        p_state, batch, at, j, m_read, o_state, m_d, heads * head_dim, WINDOW
                    )
                if j == 0:
                    sum_0 += part
                elif j == 1:
                    sum_1 += part
                elif j == 2:
                    sum_2 += part
                else:
                    sum_3 += part
            else:
                total += dh
        o_din = (row.to(tl.int64) * heads + head) * head_dim
        tl.store(
            p_din + o_din[:, None] + d[None, :],
            total.to(p_din.dtype.element_ty),
            mask=m_row[:, None] & m_d[None, :],
        )
    program = tl.program_id(0).to(tl.int64)
    channels = heads * head_dim
    if SHIFT:
        p_sums += program * WINDOW * channels + o_state
        tl.store(p_sums, tl.sum(sum_0, axis=0), mask=m_d)
        tl.store(p_sums + channels, tl.sum(sum_1, axis=0), mask=m_d)
        if WINDOW > 2:
            tl.store(p_sums + 2 * channels, tl.sum(sum_2, axis=0), mask=m_d)
        if WINDOW > 3:
            tl.store(p_sums + 3 * channels, tl.sum(sum_3, axis=0), mask=m_d)
    if NORM:
        tl.store(p_norm_sums + program * channels + o_state, tl.sum(norm_sum, axis=0), mask=m_d)


@triton.jit
def backward_kernel(
    p_dq_out, p_dk_out, p_dv_out,  # gradients of the results
    p_q, p_k, p_v,  # q only if it is normed
    p_k_taps, p_v_taps,
    p_cos, p_sin,
    p_q_norm, p_k_norm,
    p_starts,
    p_k_state, p_v_state,
    p_dq, p_dk, p_dv,  # like q, k, v, contiguous
    p_k_sums, p_v_sums,  # (programs, window, kv_heads, head_dim) float32: parts of the taps' gradients
    p_q_norm_sums,  # (programs, groups, head_dim) float32: parts of the norms' gradients
    p_k_norm_sums,  # (programs, kv_heads, head_dim) float32
    rows, time, q_heads, kv_heads, head_dim, blocks, eps,
    q_batch, q_time, q_head,
    k_batch, k_time, k_head,
    v_batch, v_time, v_head,
    dq_batch, dq_time, dq_head,
    dk_batch, dk_time, dk_head,
    dv_batch, dv_time, dv_head,
    a_batch, a_time,
    SHIFT_K: tl.constexpr, SHIFT_V: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
    ROTARY: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * HEADS
    if tl.program_id(2) == 0:
        d = tl.arange(0, D)
        m_d, m_partner = d < head_dim, d < ROTARY
        partner, sign = partner_of(d, ROTARY, INTERLEAVED)
        norm_sum = tl.zeros((ROWS, D), dtype=tl.float32)
        for block in range(blocks):
            row = (tl.program_id(0) * blocks + block) * ROWS + tl.arange(0, ROWS)
            m_row = row < rows
            batch, at = place_of(row, time)
            cos, sin = angles(p_cos, p_sin, batch, at, m_row, d, partner, sign, a_batch, a_time, ROTARY)
            for head in range(first, min(first + HEADS, q_heads)):
                o_dout, o_partner = head_offsets(head, d, dq_head), head_offsets(head, partner, dq_head)
                dq = _turned_back(
                    p_dq_out, cos, sin, batch, at, m_row, o_dout, m_d, o_partner, m_partner, dq_batch, dq_time
                )  # fmt: skip
                if NORM:
                    q = head_rows(p_q, batch, at, m_row, head_offsets(head, d, q_head), m_d, q_batch, q_time)
                    dq, of_weight = _norm_back(dq, q, p_q_norm, d, m_d, head_dim, eps)
                    norm_sum += of_weight
                o_dq = (row.to(tl.int64) * q_heads + head) * head_dim
                tl.store(
                    p_dq + o_dq[:, None] + d[None, :],
                    dq.to(p_dq.dtype.element_ty),
                    mask=m_row[:, None] & m_d[None, :],
                )
        if NORM and first < q_heads:
            groups = (q_heads + HEADS - 1) // HEADS
            p_q_norm_sums += (tl.program_id(0).to(tl.int64) * groups + tl.program_id(1)) * head_dim
            tl.store(p_q_norm_sums + d, tl.sum(norm_sum, axis=0), mask=m_d)
    elif tl.program_id(2) == 1:
        for head in range(first, min(first + HEADS, kv_heads)):
            _shifted_back(
                p_dk_out, p_k, p_k_taps, p_cos, p_sin, p_k_norm, p_starts, p_k_state, p_dk, p_k_sums,
                p_k_norm_sums, rows, time, kv_heads, head_dim, head, blocks, eps, k_batch, k_time, k_head,
                dk_batch, dk_time, dk_head, a_batch, a_time,
                SHIFT_K, True, NORM, INTERLEAVED, WINDOW, PER_CHANNEL, STARTS, STATE, ROTARY, ROWS, D,
            )  # fmt: skip
    else:
        for head in range(first, min(first + HEADS, kv_heads)):
            _shifted_back(
                p_dv_out, p_v, p_v_taps, p_cos, p_sin, p_k_norm, p_starts, p_v_state, p_dv, p_v_sums,
                p_k_norm_sums, rows, time, kv_heads, head_dim, head, blocks, eps, v_batch, v_time, v_head,
                dv_batch, dv_time, dv_head, a_batch, a_time,
                SHIFT_V, False, False, INTERLEAVED, WINDOW, PER_CHANNEL, STARTS, STATE, ROTARY, ROWS, D,
            )  # fmt: skip
