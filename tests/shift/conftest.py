"""The mechanism once more, in plain Python loops over numbers, written from PAPER's equations alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def shift_by_hand(
    x: Tensor,
    weight: Tensor,
    starts: Tensor | None = None,
    state: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One projection's shifted rows and state, in float64, each token carrying the number of its sequence."""
    batch, time, heads, width = x.shape
    back = weight.shape[-1] - 1
    values, taps = x.double().tolist(), weight.double().tolist()
    zero_row = [[0.0] * width for _ in range(heads)]
    shifted, states = [], []
    for b in range(batch):
        number = 0
        history = []  # (number of the sequence, row), oldest first
        for i in range(back):
            history.append((number, state[b, i].double().tolist() if state is not None else zero_row))
        rows = []
        for t in range(time):
            if starts is not None and bool(starts[b, t]):
                number += 1
            history.append((number, values[b][t]))
            row = []
            for h in range(heads):
                channels = []
                for c in range(width):
                    tap = taps[h][c] if weight.dim() == 3 else taps[h]
                    total = 0.0
                    for j in range(back + 1):
                        owner, earlier = history[back + t - j]
                        if owner == number:
                            total += tap[j] * earlier[h][c]
                    channels.append(total)
                row.append(channels)
            rows.append(row)
        shifted.append(rows)
        end = back + (time if last is None else int(last[b]) + 1)
        running = history[end - 1][0]
        states.append([row if owner == running else zero_row for owner, row in history[end - back : end]])
    return (
        torch.tensor(shifted, dtype=torch.float64).reshape(x.shape),
        torch.tensor(states, dtype=torch.float64).reshape(batch, back, heads, width),
    )


@pytest.fixture
def by_hand() -> Callable[..., tuple[Tensor, Tensor]]:
    return shift_by_hand
