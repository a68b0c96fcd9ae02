"""What the kernels share: where rows lie, which of their predecessors they may read, how work is cut up.

In kernels, `p_` is a pointer, `s_` a stride, `o_` an offset, `m_` a mask. A row is one token of one sequence
of the batch, numbered `batch · time + t`; a channel is one number of it, `head · head_dim + d`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvshift.errors import UsageError

ENOUGH_PROGRAMS = 1024
"""Keeps every multiprocessor of the largest GPUs busy; more only add partial sums."""


class Tile(NamedTuple):
    """What a program works on at a time; `benchmarks/tiles.py` times them, a user never tunes."""

    rows: int
    across: int
    """Channels; with rotary embedding, heads that turn with the same angles, one after the other."""
    warps: int


@triton.jit
def share_of(program, groups):
    """The tile of rows a program takes, and which of the groups of channels.

    Neighbours take the same rows: what runs at a time then lies side by side in memory, and finds its angles
    in the cache.
    """
    tile = program // groups
    return tile, program - tile * groups


@triton.jit
def place_of(row, time):
    """A row's sequence and its place there."""
    batch = row // time
    return batch, row - batch * time


@triton.jit
def row_offsets(batch, at, s_batch, s_time):
    """In 64 bits: a batch of activations passes two billion numbers."""
    return batch.to(tl.int64) * s_batch + at.to(tl.int64) * s_time


@triton.jit
def channel_offsets(channel, head_dim, s_head):
    head = channel // head_dim
    return head.to(tl.int64) * s_head + (channel - head * head_dim)


@triton.jit
def head_offsets(head, d, s_head):
    """Where a head's channels lie in a row."""
    return (tl.zeros_like(d).to(tl.int64) + head) * s_head + d


@triton.jit
def tap_offsets(channel, head_dim, WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr):
    return (channel if PER_CHANNEL else channel // head_dim) * WINDOW


@triton.jit
def unbroken(p_starts, row, at, j: tl.constexpr, m_row, STARTS: tl.constexpr):
    """Whether no sequence began after the row j steps back, up to this row."""
    whole = at >= 0
    if STARTS:
        for i in tl.static_range(j):
            began = tl.load(p_starts + row - i, mask=m_row & (at >= i), other=0)
            whole = whole & (began == 0)
    return whole


@triton.jit
def shifted(
    p_in, p_taps, p_starts, p_state,
    row, batch, at, m_row,  # (ROWS,)
    o_in, o_state, o_taps, m_channel,  # (CHANNELS,): where the channels lie in a row, a state's row, the taps
    s_batch, s_time, s_state,
    WINDOW: tl.constexpr, STARTS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Σⱼ taps[j] · x[t - j] as far back as the sequence began: (ROWS, CHANNELS) float32."""
    total = tl.zeros((row.shape[0], o_in.shape[0]), dtype=tl.float32)
    for j in tl.static_range(WINDOW):
        tap = tl.load(p_taps + o_taps + j, mask=m_channel, other=0.0)
        m_here = (m_row & (at >= j))[:, None] & m_channel[None, :]
        o_row = row_offsets(batch, at - j, s_batch, s_time)
        x = tl.load(p_in + o_row[:, None] + o_in[None, :], mask=m_here, other=0.0).to(tl.float32)
        if STATE and j > 0:
            x += before(p_state, batch, at, j, m_row, o_state, m_channel, s_state, WINDOW)
        total += kept_if(unbroken(p_starts, row, at, j, m_row, STARTS), x, j, STARTS) * tap[None, :]
    return total


@triton.jit
def kept_if(whole, x, j: tl.constexpr, STARTS: tl.constexpr):
    """Zeros for rows across a beginning. As a mask of the load it would make that wait for the starts."""
    if STARTS and j > 0:
        x = tl.where(whole[:, None], x, 0.0)
    return x


@triton.jit
def before(p_state, batch, at, j: tl.constexpr, m_row, o_state, m_channel, s_state, WINDOW: tl.constexpr):
    """The rows j steps back that lie in the state; 0 for those that do not."""
    o_row = (batch.to(tl.int64) * (WINDOW - 1) + (WINDOW - 1 + at - j)) * s_state
    mask = (m_row & (at < j))[:, None] & m_channel[None, :]
    return tl.load(p_state + o_row[:, None] + o_state[None, :], mask=mask, other=0.0).to(tl.float32)


def check_pairs(q: Tensor, cos: Tensor) -> None:
    """Refuses heads and rotations whose channels are not pairs."""
    if q.shape[-1] % 2 or cos.shape[-1] % 2 or cos.shape[-1] > q.shape[-1]:
        raise UsageError(
            f"Heads have {q.shape[-1]} channels of which {cos.shape[-1]} turn; expected even numbers, the "
            "second no larger."
        )


def strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, time and head."""
    return x.stride(0), x.stride(1), x.stride(2)


def angle_strides(cos: Tensor) -> tuple[int, int]:
    """Of batch, 0 if all sequences have the same angles, and time."""
    return 0 if cos.shape[0] == 1 else cos.stride(0), cos.stride(1)


def or_any(x: Tensor | None, otherwise: Tensor) -> Tensor:
    """Any pointer, for an argument that the kernel will not read."""
    return otherwise if x is None else x


def inner_contiguous(x: Tensor) -> Tensor:
    """The same rows with a head's numbers side by side; a copy only if they are not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def as_bytes(starts: Tensor | None, otherwise: Tensor) -> Tensor:
    """What a kernel reads as starts; any pointer if it reads none."""
    return otherwise if starts is None else starts.view(torch.uint8)


def ceil_div(count: int, size: int) -> int:
    """As `triton.cdiv`, which takes microseconds outside a kernel: here a step of decoding waits for it."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """As `triton.next_power_of_2`, from 1."""
    return 1 << (count - 1).bit_length()


def blocks_a_program(blocks: int, beside: int, most: int) -> int:
    """How many of `blocks` one program takes where `beside` times as many programs run, at most `most`."""
    return max(1, min(most, blocks * beside // ENOUGH_PROGRAMS))
