"""What the kernels share: where rows lie, which of their predecessors they may read, how work is cut up.

In kernels, `p_` is a pointer, `s_` a stride, `o_` an offset, `m_` a mask. A row is one token of one sequence
of the batch, numbered `batch · time + t`; a channel is one number of it, `head · head_dim + d`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ENOUGH_PROGRAMS = 1024
"""Keeps every multiprocessor of the largest GPUs busy; more only add partial sums."""


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


def strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, time and head."""
    return x.stride(0), x.stride(1), x.stride(2)


def inner_contiguous(x: Tensor) -> Tensor:
    """The same rows with a head's numbers side by side; a copy only if they are not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def as_bytes(starts: Tensor | None, otherwise: Tensor) -> Tensor:
    """What a kernel reads as starts; any pointer if it reads none."""
    return otherwise if starts is None else starts.view(torch.uint8)


def blocks_a_program(blocks: int, beside: int, most: int) -> int:
    """How many of `blocks` one program takes where `beside` times as many programs run, at most `most`."""
    return max(1, min(most, blocks * beside // ENOUGH_PROGRAMS))
