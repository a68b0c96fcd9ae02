from __future__ import annotations

import math

import pytest
import torch

from kvshift.errors import UsageError
from kvshift.paper.theory.attention import MASKS, Head, allowed, linear

READS = {  # places from 1
    "causal": lambda s, t: s <= t,
    "not_first": lambda s, t: 1 < s <= t,
    "before": lambda s, t: s < t,
    "between": lambda s, t: 1 < s < t,
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask) -> None:
    table = allowed(mask, 5)
    for t in range(1, 6):
        assert table[t - 1].tolist() == [READS[mask](s, t) for s in range(1, 6)]


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(UsageError, match="'full': expected one of causal, not_first, before, between"):
        allowed("full", 3)


def by_hand(x, matrices, *, slope, scale, mask, taps):
    """One sequence, place by place, with lists of floats."""
    query, key, value = ([(matrix @ row).tolist() for row in x] for matrix in matrices[:3])
    (alpha1, alpha2), (beta1, beta2) = taps
    width = len(key[0])

    def mixed(rows, now, before, s):
        return [now * rows[s][c] + (before * rows[s - 1][c] if s > 0 else 0.0) for c in range(width)]

    result = []
    for t in range(len(x)):
        places = [s for s in range(len(x)) if READS[mask](s + 1, t + 1)]
        scores = []
        for s in places:
            k_hat = mixed(key, alpha1, alpha2, s)
            scores.append(scale * sum(a * b for a, b in zip(query[t], k_hat, strict=True)) - slope * (t - s))
        total = sum(math.exp(score) for score in scores)
        row = [0.0] * width
        for s, score in zip(places, scores, strict=True):
            v_hat = mixed(value, beta1, beta2, s)
            row = [old + math.exp(score) / total * new for old, new in zip(row, v_hat, strict=True)]
        result.append((matrices[3] @ torch.tensor(row, dtype=torch.float64)).tolist())
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("taps", [None, ((0.3, -0.8), (1.2, 0.5))], ids=["plain", "shifted"])
def test_a_head_equals_the_loops(mask, taps) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    matrices = [torch.randn(5, 5, dtype=torch.float64) for _ in range(4)]
    head = Head(
        slope=0.3,
        scale=0.7,
        mask=mask,
        taps=taps,
        **dict(zip(("query", "key", "value", "output"), map(linear, matrices), strict=True)),
    )
    with torch.no_grad():
        found = head(x)
    for sequence, rows in zip(x, found, strict=True):
        wanted = by_hand(
            sequence, matrices, slope=0.3, scale=0.7, mask=mask, taps=taps or ((1.0, 0.0), (1.0, 0.0))
        )
        torch.testing.assert_close(rows, wanted, atol=1e-13, rtol=0)


def test_rows_that_may_read_nothing_are_zero() -> None:
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    out = Head(slope=0.0, scale=1.0, mask="between")(x)
    assert out[:, :2].eq(0).all()
    assert out[:, 2].equal(x[:, 1])  # one place to read
