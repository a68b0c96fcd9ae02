"""What lets decoding go back: the raw rows behind the state, call by call.

`crop` takes tokens off a cache, and the state must become what it was before them. A layer therefore keeps
its last calls: their raw rows, where sequences began in them, and the state after each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kvshift.models.starts import Boundaries
from kvshift.shift import ShiftState
from kvshift.shift.definition import last_rows

KEPT = 64
"""Columns that can always be taken off again."""


class _Event(NamedTuple):
    """A call of the model, or a change of the batch, and the state it left."""

    after: ShiftState
    columns: int = 0
    raw: ShiftState = ShiftState(None, None)
    boundaries: Boundaries = Boundaries(None, None)
    change: Callable[[ShiftState], ShiftState] | None = None


class History:
    """One cache layer's last calls, oldest first; nothing is computed before something is taken back."""

    def __init__(self, start: ShiftState | None = None) -> None:
        """Begins at a state; None is the beginning of all sequences."""
        self.start = start
        self.events: deque[_Event] = deque()
        self.columns = 0

    @property
    def state(self) -> ShiftState | None:
        """The state after the last event."""
        return self.events[-1].after if self.events else self.start

    def call(self, raw: ShiftState, boundaries: Boundaries, after: ShiftState, *, everything: bool) -> None:
        """Remembers a call of the model.

        Args:
            raw: its raw rows, `(batch, time, heads, head_dim)` each.
            boundaries: of the same tokens.
            after: the state it left.
            everything: forget nothing; else calls before the last `KEPT` columns go.
        """
        columns = next(rows.shape[1] for rows in raw if rows is not None)
        self.events.append(_Event(after, columns, raw, boundaries))
        self.columns += columns
        if not everything:
            self.trim()

    def change(self, how: Callable[[ShiftState], ShiftState], after: ShiftState) -> None:
        """Remembers that the batch's rows changed places or number."""
        self.events.append(_Event(after, change=how))

    def trim(self) -> None:
        """Forgets calls that lie more than `KEPT` columns back, and most of a long one."""
        while self.events and self.columns - self.events[0].columns >= KEPT:
            oldest = self.events.popleft()
            self.start = oldest.after
            self.columns -= oldest.columns
        if (cut := self.columns - KEPT) > KEPT:
            oldest = self.events.popleft()
            self.start = _state_at(self.start, oldest.raw, oldest.boundaries, oldest.after, cut)
            # Copied: a slice would keep the raw rows of the whole prompt alive.
            raw = ShiftState(*(None if rows is None else rows[:, cut:].clone() for rows in oldest.raw))
            kept = _between(oldest.boundaries, cut, oldest.columns)
            self.events.appendleft(oldest._replace(columns=oldest.columns - cut, raw=raw, boundaries=kept))
            self.columns -= cut

    def take_back(self, columns: int) -> ShiftState | None:
        """Forgets the last `columns`, of at most `self.columns`; the state before them, in today's batch."""
        changes = []
        self.columns -= columns
        while columns > 0:
            event = self.events.pop()
            if event.change is not None:
                changes.append(event.change)
            elif event.columns <= columns:
                columns -= event.columns
            else:
                cut = event.columns - columns
                state = _state_at(self.state, event.raw, event.boundaries, event.after, cut)
                raw = ShiftState(*(None if rows is None else rows[:, :cut] for rows in event.raw))
                self.events.append(_Event(state, cut, raw, _between(event.boundaries, 0, cut)))
                columns = 0
        for change in reversed(changes):
            if (state_then := self.state) is not None:
                self.change(change, change(state_then))
        return self.state


def _between(boundaries: Boundaries, begin: int, end: int) -> Boundaries:
    starts, real = (None if x is None else x[:, begin:end] for x in (boundaries.starts, boundaries.real))
    return Boundaries(starts, None, real)


def _state_at(
    before: ShiftState | None, raw: ShiftState, boundaries: Boundaries, after: ShiftState, column: int
) -> ShiftState:
    """The state before a column of a call that began at the state `before` and left the state `after`."""
    starts, _, real = _between(boundaries, 0, column)
    last = None
    if real is not None:
        last = (real * torch.arange(1, column + 1, device=real.device)).amax(1) - 1

    def at(state: Tensor | None, rows: Tensor | None, left: Tensor | None) -> Tensor | None:
        if rows is None or left is None:
            return None
        back = left.shape[1]
        if state is None:
            state = torch.zeros_like(left)
        begin = 0 if last is not None else max(column - back, 0)
        rows = torch.cat((state.to(rows.dtype), rows[:, begin:column]), dim=1)
        return last_rows(rows, None if starts is None else starts[:, begin:], last, back)

    return ShiftState(*map(at, before or ShiftState(None, None), raw, after))
