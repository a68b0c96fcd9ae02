"""Packed documents in the one form that keeps them apart in the library's attention.

That attention sees documents only where `position_ids` do not go on by one, and only without a 2-D mask; it
looks at no `seq_idx`, and at `cu_seq_lens` in its flash kernels alone. So whatever form a batch comes in, a
call that is not cached gets such positions and no mask; padding becomes documents of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvshift.errors import UnsupportedModelError
from kvshift.models.families import Family
from kvshift.models.starts import Boundaries

_MARKS = ("seq_idx", "cu_seq_lens_q")


def marked(given: dict[str, Any]) -> bool:
    """Whether a call's keywords say where packed documents begin, beside `position_ids`."""
    return any(given.get(name) is not None for name in _MARKS)


def mixing(family: Family) -> UnsupportedModelError:
    """The refusal of packed documents where the library's own layers mix them, shifted or not."""
    return UnsupportedModelError(
        f"The library's {family.model_type!r} layers read across packed documents, with or without KV shift. "
        "Give each document a row of its own, with an attention_mask for the padding and without "
        "position_ids."
    )


def divided(starts: Tensor | None, real: Tensor | None) -> bool | None:
    """Whether a document begins right after another. Waits for the device; None: it records a CUDA graph,
    and cannot be asked.

    Args:
        starts: `(batch, time)` bool, see `Boundaries`.
        real: `(batch, time)` bool, False on padding; None: nothing is padding.
    """
    if starts is None:
        return False
    begins = starts[:, 1:]
    if real is not None:
        begins = begins & real[:, 1:] & real[:, :-1]
    return None if _is_recorded(begins) else bool(begins.any())


def _is_recorded(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def dividing_positions(boundaries: Boundaries, position_ids: Tensor | None) -> Tensor:
    """Positions that do not go on by one wherever a sequence or padding begins.

    Args:
        boundaries: with `starts`.
        position_ids: `(batch or 1, time)`, kept where they say the same; None: from 0 in each sequence.

    Returns:
        int64 `(batch, time)`.
    """
    starts, real = boundaries.starts, boundaries.real
    assert starts is not None
    place = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    positions = place - torch.where(starts, place, 0).cummax(1).values
    if position_ids is not None:
        given = position_ids.expand_as(positions)
        reads_across = starts[:, 1:] & (given.diff(dim=1) == 1)
        if real is not None:
            reads_across = reads_across & real[:, :-1]  # what follows padding is seen to below
        positions = torch.where(reads_across.any(), positions, given)
    if real is not None:
        # Padding takes the position of a token that follows it, so that this token does not go on from it.
        after = torch.cat((positions[:, 1:], torch.zeros_like(positions[:, :1])), dim=1)
        follows = torch.cat((real[:, 1:], torch.zeros_like(real[:, :1])), dim=1)
        positions = torch.where(real, positions, torch.where(follows, after, 0))
    return positions
