"""Where sequences begin and which tokens are padding: found once per forward, used by every layer.

What a batch says about its sequences comes in several forms; each is a column of `starts`:

- `position_ids` that do not continue by one: packed documents, and left padding under `generate`.
- a 2-D attention mask: the first real token after padding begins its sequence.
- `seq_idx` that changes, or offsets in `cu_seq_lens_q`: packed documents once more.

What came before the batch's first column is the cache's business: its state holds only rows of the running
sequences, and zeros where one has not begun.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor

from kvshift.errors import UnsupportedModelError


class Boundaries(NamedTuple):
    """What every attention layer needs to know about the batch's sequences."""

    starts: Tensor | None
    """`(batch, time)` bool, True where a sequence begins; None: nothing begins after the first column."""

    last: Tensor | None
    """`(batch,)` column of each row's last real token, -1 where there is none; None: the last column."""

    real: Tensor | None = None
    """`(batch, time)` bool, False on padding; None: nothing is padding."""


def find_boundaries(
    batch: int,
    time: int,
    device: torch.device,
    *,
    past: int | Tensor = 0,
    room: bool = False,
    attention_mask: object = None,
    position_ids: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
) -> Boundaries:
    """The boundaries of a batch of `time` tokens that follow `past` cached ones.

    Args:
        past: a tensor where a static cache counts them.
        room: the cache is static, and the mask may have columns for tokens to come.
        attention_mask: `(batch, past + time)`, non-zero where a token is real; or `(batch, 1 or heads, time,
            past + time)`, True or 0.0 where a token is seen, together with something that tells starts.
        position_ids: `(batch or 1, time)`.
        seq_idx: `(batch or 1, time)`, the number of each token's document.
        cu_seq_lens: offsets of the documents in the flattened batch, from 0 to `batch * time`.

    Raises:
        UnsupportedModelError: the mask does not say which tokens are padding, contradicts the starts, or has
            padding in the middle of a sequence.
    """
    starts = document_starts(batch, time, device, position_ids, seq_idx, cu_seq_lens)
    if position_ids is not None:
        position_ids = position_ids.expand(batch, time)
    if attention_mask is None:
        return Boundaries(starts, None)
    if is_4d(attention_mask) and starts is not None:
        if not torch.compiler.is_compiling():
            _refuse_other_predecessors(attention_mask, starts)
        return Boundaries(starts, None)
    real = _real_tokens(attention_mask, batch, past, time, room).to(device)
    if isinstance(past, Tensor):
        now = real.index_select(1, torch.arange(time, device=device) + past)
    else:
        now = real[:, past : past + time]
    after_padding = _with_first(torch.zeros_like(now[:, :1]), now[:, 1:] & ~now[:, :-1])
    if time > 1 and not torch.compiler.is_compiling():
        resumed = after_padding if position_ids is None else after_padding & (position_ids != 0)
        _refuse_holes(real, resumed, int(past))
        _refuse_numbers(cast(Tensor, attention_mask))
    starts = after_padding if starts is None else starts | after_padding
    columns = torch.arange(1, time + 1, device=device)
    return Boundaries(starts, (now * columns).amax(1) - 1, now)


def document_starts(
    batch: int,
    time: int,
    device: torch.device,
    position_ids: Tensor | None,
    seq_idx: Tensor | None,
    cu_seq_lens: Tensor | None,
) -> Tensor | None:
    """`(batch, time)` bool, True where any of these says that a sequence begins; None without them.

    See `find_boundaries` for the arguments.
    """
    found = []
    if position_ids is not None:
        position_ids = position_ids.expand(batch, time)
        found.append(_with_first(position_ids[:, :1] == 0, position_ids.diff(dim=1) != 1))
    if seq_idx is not None:
        seq_idx = seq_idx.expand(batch, time)
        found.append(
            _with_first(torch.zeros_like(seq_idx[:, :1], dtype=torch.bool), seq_idx.diff(dim=1) != 0)
        )
    if cu_seq_lens is not None:
        offsets = torch.zeros(batch * time + 1, dtype=torch.bool, device=device)
        offsets = offsets.index_fill(0, cu_seq_lens.to(device=device, dtype=torch.long), True)
        found.append(offsets[:-1].view(batch, time))
    return reduce(torch.logical_or, found) if found else None


def _with_first(first: Tensor, rest: Tensor) -> Tensor:
    return torch.cat((first, rest), dim=1)


def is_4d(attention_mask: object) -> TypeGuard[Tensor]:
    """Whether a mask says of each token which others it sees, and nothing about padding."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 4


def _real_tokens(attention_mask: object, batch: int, past: int | Tensor, time: int, room: bool) -> Tensor:
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        what = (
            f"{attention_mask.dim()}-D"
            if isinstance(attention_mask, Tensor)
            else f"a {type(attention_mask).__name__}"
        )
        raise UnsupportedModelError(
            f"The attention mask is {what}, and KV shift cannot tell from it where sequences begin. Pass the "
            "2-D mask of real tokens, or position_ids that restart at 0 where a packed document begins."
        )
    if torch.compiler.is_compiling() and isinstance(past, Tensor):
        return attention_mask != 0  # how many tokens are cached cannot be asked in a compiled graph
    length = int(past) + time
    rows, columns = attention_mask.shape
    if rows != batch or columns < length or (columns > length and not room):
        raise UnsupportedModelError(
            f"The attention mask has shape {tuple(attention_mask.shape)}; expected {(batch, length)}, the "
            "cached tokens' columns included, to tell real tokens from padding."
        )
    return attention_mask != 0


def _refuse_holes(real: Tensor, resumed: Tensor, past: int) -> None:
    earlier = (real.cumsum(1) - real.to(torch.int64))[:, past : past + resumed.shape[1]]
    if bool((resumed & (earlier > 0)).any()):
        raise UnsupportedModelError(
            "The attention mask has padding between two tokens of one sequence, and KV shift would read "
            "past it. Pad on the left or on the right, or give position_ids that restart at 0 where a new "
            "document begins."
        )


def _refuse_numbers(attention_mask: Tensor) -> None:
    if attention_mask.dtype != torch.bool and bool(((attention_mask != 0) & (attention_mask != 1)).any()):
        raise UnsupportedModelError(
            f"The attention mask holds {attention_mask.max().item()}; expected 0 for padding and 1 for "
            "tokens. The library takes every other number for a token too, so documents that are numbered "
            "in the mask would not be kept apart. Give the numbers as seq_idx, without use_cache."
        )


def _refuse_other_predecessors(attention_mask: Tensor, starts: Tensor) -> None:
    """A token must see the one before it if it continues it, and nothing before itself if it starts."""
    time = starts.shape[1]
    seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    seen = seen.any(1)[..., -time:].expand(len(starts), -1, -1)
    # A token that sees what follows it, or nothing, is padding.
    token = ~seen.triu(1).any(-1) & seen.any(-1)
    predecessor = _with_first(torch.zeros_like(token[:, :1]), seen.diagonal(-1, 1, 2))
    any_before = seen.tril(-1).any(-1)
    begins = _with_first(torch.ones_like(starts[:, :1]), starts[:, 1:])
    if bool((token & torch.where(begins, any_before, ~predecessor)).any()):
        raise UnsupportedModelError(
            "The 4-D attention mask and the position_ids do not describe the same sequences: KV shift reads "
            "the token before, so a token must see it, or begin a sequence and see nothing earlier. Trees of "
            "candidates and other masks of that kind are not supported."
        )
