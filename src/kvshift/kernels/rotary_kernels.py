"""Keys shifted, normed and rotated, values shifted, queries normed and rotated: one launch.

Rotary embedding reads and writes queries and keys anyway, so shifting the keys costs no memory traffic.
Bytes: forward reads and writes each of q, k, v once; backward reads the three gradients and the raw k and v
(and q, if it is normed) once and writes three gradients once. Cosines, sines and predecessors come out of
the cache.

Two channels of the first `rotary_dim` turn with each other, by one angle: those half a rotation apart, or
neighbours if interleaved. A program holds them as two tiles, so nothing is read twice:

    y₁ = cos · x₁ - sin · x₂        dx₁ = cos · dy₁ + sin · dy₂
    y₂ = cos · x₂ + sin · x₁        dx₂ = cos · dy₂ - sin · dy₁

Channels from `rotary_dim` on come in pairs as well, by the angle 0. The RMS norm of a head, if there is one
(Qwen3's order), lies between shift and rotation:

    x = w · n,   n = r · h,   r = (mean(h²) + ε)^(-1/2)        dh = r · (dn - n · mean(dn · n)),   dn = w · dx

Everything is computed in float32 and rounded once, when it is stored. `rotary_backward.py` has the way back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvshift.kernels.rows import head_offsets, place_of, row_offsets, share_of, shifted


@triton.jit
def pairs(head_dim, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr):
    """Each pair's two channels, whether there is such a pair, and whether it turns: (PAIRS,)."""
    pair = tl.arange(0, PAIRS)
    turns = pair < ROTARY // 2
    if INTERLEAVED:
        one = 2 * pair
        other = one + 1
    else:
        one = tl.where(turns, pair, ROTARY // 2 + pair)
        other = one + tl.where(turns, ROTARY // 2, (head_dim - ROTARY) // 2)
    return one, other, pair < head_dim // 2, turns


@triton.jit
def angles(p_cos, p_sin, batch, at, m_row, one, turns, s_batch, s_time):
    """Each pair's cosine and sine, 1 and 0 for those that do not turn: (ROWS, PAIRS) float32."""
    o_angle = row_offsets(batch, at, s_batch, s_time)[:, None] + one[None, :]
    mask = m_row[:, None] & turns[None, :]
    cos = tl.load(p_cos + o_angle, mask=mask, other=1.0).to(tl.float32)
    sin = tl.load(p_sin + o_angle, mask=mask, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def head_rows(p_in, batch, at, m_row, o_channel, m_channel, s_batch, s_time):
    o_row = row_offsets(batch, at, s_batch, s_time)
    mask = m_row[:, None] & m_channel[None, :]
    return tl.load(p_in + o_row[:, None] + o_channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _maybe_shifted(
    p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, d, m_d, head_dim, heads,
    s_batch, s_time, s_head,
    SHIFT: tl.constexpr, WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr,
    STATE: tl.constexpr,
):  # fmt: skip
    """The channels d of a head's rows, shifted if SHIFT says so."""
    o_in = head_offsets(head, d, s_head)
    if SHIFT:
        o_state = head * head_dim + d
        o_taps = (o_state if PER_CHANNEL else head + 0 * d) * WINDOW
        x = shifted(
            p_in, p_taps, p_starts, p_state, row, batch, at, m_row, o_in, o_state, o_taps, m_d,
            s_batch, s_time, heads * head_dim, WINDOW, STARTS, STATE,
        )  # fmt: skip
    else:
        x = head_rows(p_in, batch, at, m_row, o_in, m_d, s_batch, s_time)
    return x


@triton.jit
def maybe_shifted(
    p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, one, other, m_pair, head_dim, heads,
    s_batch, s_time, s_head,
    SHIFT: tl.constexpr, WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, STARTS: tl.constexpr,
    STATE: tl.constexpr,
):  # fmt: skip
    """A head's rows, shifted if SHIFT says so: two tiles."""
    x_one = _maybe_shifted(
        p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, one, m_pair, head_dim, heads,
        s_batch, s_time, s_head, SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
    )  # fmt: skip
    x_other = _maybe_shifted(
        p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, other, m_pair, head_dim, heads,
        s_batch, s_time, s_head, SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
    )  # fmt: skip
    return x_one, x_other


@triton.jit
def mean_product(x_one, x_other, y_one, y_other, head_dim):
    """mean(x · y) of each row."""
    return ((tl.sum(x_one * y_one, axis=1) + tl.sum(x_other * y_other, axis=1)) / head_dim)[:, None]


@triton.jit
def root_of(x_one, x_other, head_dim, eps):
    """(mean(x²) + ε)^(-1/2) of each row."""
    return tl.rsqrt(mean_product(x_one, x_other, x_one, x_other, head_dim) + eps)


@triton.jit
def norm_weights(p_norm, one, other, m_pair):
    w_one = tl.load(p_norm + one, mask=m_pair, other=0.0).to(tl.float32)[None, :]
    return w_one, tl.load(p_norm + other, mask=m_pair, other=0.0).to(tl.float32)[None, :]


@triton.jit
def turned(
    p_in, p_taps, p_starts, p_state, p_norm, row, batch, at, m_row, head, one, other, m_pair,
    cos, sin, head_dim, heads, eps, s_batch, s_time, s_head,
    SHIFT: tl.constexpr, NORM: tl.constexpr, WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr,
    STARTS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """A head's rows, shifted if SHIFT says so, normed if NORM does, and rotated: two tiles."""
    x_one, x_other = maybe_shifted(
        p_in, p_taps, p_starts, p_state, row, batch, at, m_row, head, one, other, m_pair, head_dim, heads,
        s_batch, s_time, s_head, SHIFT, WINDOW, PER_CHANNEL, STARTS, STATE,
    )  # fmt: skip
    if NORM:
        root = root_of(x_one, x_other, head_dim, eps)
        w_one, w_other = norm_weights(p_norm, one, other, m_pair)
        x_one *= root * w_one
        x_other *= root * w_other
    return cos * x_one - sin * x_other, cos * x_other + sin * x_one


@triton.jit
def store_pairs(p_out, o_row, one, other, m_row, m_pair, x_one, x_other):
    """Rounded to the type of `p_out`; `o_row` says where each row's head lies there."""
    mask = m_row[:, None] & m_pair[None, :]
    tl.store(p_out + o_row[:, None] + one[None, :], x_one.to(p_out.dtype.element_ty), mask=mask)
    tl.store(p_out + o_row[:, None] + other[None, :], x_other.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def slot_of(slot, q_slots, kv_slots):
    """Which tensor a program works on (0, 1, 2: queries, keys, values), and which of its groups of heads."""
    which = tl.where(slot < q_slots, 0, tl.where(slot < q_slots + kv_slots, 1, 2))
    return which, slot - tl.where(which == 0, 0, q_slots + (which - 1) * kv_slots)


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
    ROTARY: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    q_slots, kv_slots = tl.cdiv(q_heads, HEADS), tl.cdiv(kv_heads, HEADS)
    tile, slot = share_of(tl.program_id(0), q_slots + 2 * kv_slots)
    row = tile * ROWS + tl.arange(0, ROWS)
    which, group = slot_of(slot, q_slots, kv_slots)
    first = group * HEADS
    one, other, m_pair, turns = pairs(head_dim, ROTARY, INTERLEAVED, PAIRS)
    m_row = row < rows
    batch, at = place_of(row, time)
    if which == 2:
        for head in range(first, min(first + HEADS, kv_heads)):
            v_one, v_other = maybe_shifted(
                p_v, p_v_taps, p_starts, p_v_state, row, batch, at, m_row, head, one, other, m_pair, head_dim,
                kv_heads, v_batch, v_time, v_head, SHIFT_V, WINDOW, PER_CHANNEL, STARTS, STATE,
            )  # fmt: skip
            o_out = (row.to(tl.int64) * kv_heads + head) * head_dim
            store_pairs(p_v_out, o_out, one, other, m_row, m_pair, v_one, v_other)
    else:
        cos, sin = angles(p_cos, p_sin, batch, at, m_row, one, turns, a_batch, a_time)
        if which == 0:
            for head in range(first, min(first + HEADS, q_heads)):
                q_one, q_other = turned(
                    p_q, p_q, p_starts, p_q, p_q_norm, row, batch, at, m_row, head, one, other, m_pair,
                    cos, sin, head_dim, q_heads, eps, q_batch, q_time, q_head,
                    False, NORM, WINDOW, PER_CHANNEL, STARTS, STATE,
                )  # fmt: skip
                o_out = (row.to(tl.int64) * q_heads + head) * head_dim
                store_pairs(p_q_out, o_out, one, other, m_row, m_pair, q_one, q_other)
        else:
            for head in range(first, min(first + HEADS, kv_heads)):
                k_one, k_other = turned(
                    p_k, p_k_taps, p_starts, p_k_state, p_k_norm, row, batch, at, m_row, head, one, other,
                    m_pair, cos, sin, head_dim, kv_heads, eps, k_batch, k_time, k_head,
                    SHIFT_K, NORM, WINDOW, PER_CHANNEL, STARTS, STATE,
                )  # fmt: skip
                o_out = (row.to(tl.int64) * kv_heads + head) * head_dim
                store_pairs(p_k_out, o_out, one, other, m_row, m_pair, k_one, k_other)
