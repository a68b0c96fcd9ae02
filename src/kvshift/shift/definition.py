"""The mechanism. Everything else in this package runs these few lines, or is tested against them.

    K̂[t] = α1·K[t] + α2·K[t-1]        V̂[t] = β1·V[t] + β2·V[t-1]

with one (α1, α2, β1, β2) for each KV head, before rotary embedding (paper §1). A longer window adds
K[t-2] and so on. Nothing is read across the beginning of a sequence: what lies before it counts as zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvshift.errors import UsageError


class ShiftState(NamedTuple):
    """The last `window - 1` raw rows, oldest first, with zeros for rows before the sequence began.

    Each is `(batch, window - 1, heads, head_dim)` in its tensor's dtype, or None where it is not shifted.
    """

    k: Tensor | None
    v: Tensor | None
    q: Tensor | None = None


def shift(
    x: Tensor,
    weight: Tensor,
    *,
    starts: Tensor | None = None,
    state: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mixes each row of one projection with the rows before it.

    Args:
        x: raw rows, `(batch, time, heads, head_dim)`, any floating dtype and strides.
        weight: taps, `(heads, window)`, or `(heads, head_dim, window)` for one set a channel. Column j
            multiplies the row j steps back; column 0 is the current row.
        starts: `(batch, time)` bool, True where a sequence begins. None: nothing begins inside `x`.
        state: the rows before `x`, `(batch, window - 1, heads, head_dim)`, as the previous call returned
            them. None: `x` is the beginning.
        last: `(batch,)` column of each sequence's last real token, -1 where `x` holds only padding; what
            follows it is padding and never becomes state. None: the last column.

    Returns:
        The shifted rows, shaped and typed like `x`, and the state for the call that continues `x`.
        The sum is formed in the wider of the two dtypes and rounded to `x.dtype` once.
    """
    batch, time = x.shape[:2]
    back = weight.shape[-1] - 1
    if state is None:
        state = x.new_zeros(batch, back, *x.shape[2:])
    rows = torch.cat((state.to(x.dtype), x), dim=1)  # x's row t is rows[:, t + back]
    taps = weight if weight.dim() == 3 else weight.unsqueeze(1)  # (heads, head_dim or 1, window)
    shifted = x * taps[..., 0]
    broken: Tensor | None = None  # True where a sequence began after the row j steps back
    for j in range(1, back + 1):
        earlier = rows[:, back - j : back - j + time]
        if starts is not None:
            began = _back_by(starts, j - 1)
            broken = began if broken is None else broken | began
            earlier = earlier.masked_fill(broken[:, :, None, None], 0)
        shifted = shifted + earlier * taps[..., j]
    return shifted.to(x.dtype), last_rows(rows, starts, last, back)


def kv_shift(
    k: Tensor,
    v: Tensor,
    k_weight: Tensor | None,
    v_weight: Tensor | None,
    *,
    starts: Tensor | None = None,
    state: ShiftState | tuple[Tensor | None, ...] | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor, ShiftState]:
    """KV shifting attention's shift of keys and values (paper §1), before rotary embedding.

    Args:
        k, v: raw projections, `(batch, time, kv_heads, head_dim)`.
        k_weight, v_weight: taps, `(kv_heads, window)` or `(kv_heads, head_dim, window)`; column 0
            multiplies the current row, column j the row j steps back. None leaves that tensor as it is.
        starts: `(batch, time)` bool, True where a sequence begins: nothing is read across it.
        state: what the previous call returned; None: `k` and `v` are the beginning.
        last: `(batch,)` column of each sequence's last real token where padding follows it; see `shift`.

    Returns:
        `(k_hat, v_hat, state)`: shifted rows like `k` and `v`, and the raw rows that the call for the
        tokens after these needs.

    Raises:
        UsageError: the shapes do not fit together.
    """
    k_state, v_state = (None, None) if state is None else (state[0], state[1])
    for name, x, weight, before in (("k", k, k_weight, k_state), ("v", v, v_weight, v_state)):
        check(name, x, weight, starts, before)
    k_hat, v_hat = k, v
    if k_weight is not None:
        k_hat, k_state = shift(k, k_weight, starts=starts, state=k_state, last=last)
    if v_weight is not None:
        v_hat, v_state = shift(v, v_weight, starts=starts, state=v_state, last=last)
    return k_hat, v_hat, ShiftState(k_state, v_state)


def _back_by(starts: Tensor, steps: int) -> Tensor:
    """`starts[t - steps]` at t, False where that lies before the first column."""
    if steps == 0:
        return starts
    return torch.nn.functional.pad(starts, (steps, 0))[:, : starts.shape[1]]


def last_rows(rows: Tensor, starts: Tensor | None, last: Tensor | None, back: int) -> Tensor:
    """The last `back` real rows, those of an earlier sequence than the last real token's set to zero."""
    time = rows.shape[1] - back
    if last is None:
        kept = rows[:, time:]
    else:
        places = last[:, None] + torch.arange(1, back + 1, device=rows.device)  # (batch, back), in `rows`
        kept = rows.gather(1, places[:, :, None, None].expand(-1, -1, *rows.shape[2:]))
    if starts is None:
        return kept
    begun = torch.nn.functional.pad(starts.cumsum(1), (back, 0))  # sequences begun up to each of `rows`
    if last is None:
        foreign = begun[:, time:] != begun[:, -1:]
    else:
        foreign = begun.gather(1, places) != begun.gather(1, places[:, -1:])
    return kept.masked_fill(foreign[:, :, None, None], 0)


def check(name: str, x: Tensor, weight: Tensor | None, starts: Tensor | None, state: Tensor | None) -> None:
    """Raises UsageError unless these shapes fit together; `name` is what the error calls `x`."""
    if x.dim() != 4:
        raise UsageError(f"{name} has shape {tuple(x.shape)}; expected (batch, time, kv_heads, head_dim).")
    if weight is not None and (
        weight.dim() not in (2, 3)
        or weight.shape[0] != x.shape[2]
        or (weight.dim() == 3 and weight.shape[1] != x.shape[3])
    ):
        raise UsageError(
            f"{name}_weight has shape {tuple(weight.shape)}; expected ({x.shape[2]}, window) or "
            f"({x.shape[2]}, {x.shape[3]}, window) to fit {name} of shape {tuple(x.shape)}."
        )
    if weight is not None and state is not None:
        expected = (x.shape[0], weight.shape[-1] - 1, *x.shape[2:])
        if tuple(state.shape) != expected:
            raise UsageError(
                f"The state of {name} has shape {tuple(state.shape)}; expected {expected}, as the previous "
                "call returned it."
            )
    if starts is not None and (starts.dtype != torch.bool or starts.shape != x.shape[:2]):
        raise UsageError(
            f"starts is {starts.dtype} of shape {tuple(starts.shape)}; expected torch.bool of shape "
            f"{tuple(x.shape[:2])}."
        )
