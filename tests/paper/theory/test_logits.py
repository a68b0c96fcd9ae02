from __future__ import annotations

import math

import pytest
import torch

from kvshift.errors import UsageError
from kvshift.paper.theory.logits import CLASSES, Counts, logits, loss

TAPS = [(0.2, 0.8, 0.7, 0.3), (0.0, 1.0, 1.0, 0.0), (1.4, -0.6, -0.3, 0.9), (0.5, 0.5, 0.5, 0.5)]


def attention_by_hand(taps, distinct, repeated, vocabulary):
    """Logits of every token of the vocabulary: one-hot embeddings through the definition, place by place.

    Tokens count from 1; the sequence is 1 … `distinct`, then `repeated`.
    """
    alpha1, alpha2, beta1, beta2 = taps
    sequence = [*range(1, distinct + 1), repeated]

    def mixed(place, now, before):
        row = {sequence[place]: now}
        if place > 0:
            row[sequence[place - 1]] = row.get(sequence[place - 1], 0.0) + before
        return row

    scores = [mixed(place, alpha1, alpha2).get(repeated, 0.0) for place in range(len(sequence))]
    total = sum(map(math.exp, scores))
    found = dict.fromkeys(range(1, vocabulary + 1), 0.0)
    for place, score in enumerate(scores):
        for token, amount in mixed(place, beta1, beta2).items():
            found[token] += math.exp(score) / total * amount
    return found


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize(("distinct", "repeated"), [(4, 2), (5, 2), (5, 3), (9, 7), (30, 12)])
@pytest.mark.parametrize("absent", [0, 3])
def test_the_formulas_are_one_hot_attention(taps, distinct, repeated, absent) -> None:
    found = attention_by_hand(taps, distinct, repeated, distinct + absent)
    numbers, counts = torch.tensor(taps, dtype=torch.float64), Counts.exact(distinct, distinct + absent)
    wanted = dict(zip(CLASSES, logits(numbers, counts).tolist(), strict=True))
    special = {repeated - 1: "i-1", repeated: "i", repeated + 1: "i+1", distinct: "T"}
    for token, value in found.items():
        expected = 0.0 if token > distinct else wanted[special.get(token, "others")]
        assert value == pytest.approx(expected, abs=1e-14)
    by_hand = math.log(sum(map(math.exp, found.values()))) - found[repeated + 1]
    assert float(loss(numbers, counts)) == pytest.approx(by_hand, abs=1e-14)


@pytest.mark.parametrize("taps", TAPS[:3])
def test_what_the_formulas_leave_out(taps) -> None:
    """i = 1, T − 1 and T, as the module's text says."""
    alpha1, alpha2, beta1, beta2 = taps
    e1, e2 = math.exp(alpha1), math.exp(alpha2)
    a1, a2 = (e / (2 * e1 + e2 + 8) for e in (e1, e2))  # ten tokens
    assert attention_by_hand(taps, 10, 9, 10)[10] == pytest.approx(beta1 * a2 + beta2 * a1, abs=1e-14)
    assert attention_by_hand(taps, 10, 1, 10)[1] == pytest.approx(2 * beta1 * a1 + beta2 * a2, abs=1e-14)
    last = math.exp(alpha1 + alpha2)
    total = e1 + last + 9
    assert attention_by_hand(taps, 10, 10, 10)[9] == pytest.approx(
        beta1 / total + beta2 * e1 / total, abs=1e-14
    )


def test_the_papers_form_is_one_number_for_both() -> None:
    assert Counts.paper(10) == Counts(places=10, tokens=10, absent=0)
    assert Counts.exact(12) == Counts(places=10, tokens=8, absent=0)
    taps = torch.tensor(TAPS[0], dtype=torch.float64)
    relative = []
    for distinct in (50, 5000):
        exact, paper = loss(taps, Counts.exact(distinct)), loss(taps, Counts.paper(distinct))
        relative.append(abs(float(paper - exact)))
    assert relative[1] < relative[0] / 50


def test_a_slip_writes_alpha2_for_alpha1_in_its_row_alone() -> None:
    alpha1, alpha2, beta1, beta2 = TAPS[0]
    e1, e2 = math.exp(alpha1), math.exp(alpha2)
    total = 2 * e1 + e2 + 10
    wanted = {"i-1": beta1 + beta2 * e2, "i": 2 * beta1 * e2 + beta2 * e2, "T": beta1 + beta2 * e2}
    taps = torch.tensor(TAPS[0], dtype=torch.float64)
    right = logits(taps, Counts.paper(10))
    for row, value in wanted.items():
        found = logits(taps, Counts.paper(10), slipped=[row])
        place = CLASSES.index(row)
        assert float(found[place]) == pytest.approx(value / total, abs=1e-15)
        assert (found != right).nonzero().tolist() == [[place]]
    with pytest.raises(UsageError, match="'others' is no row with e\\^α1: expected some of i-1, i, T"):
        logits(taps, Counts.paper(10), slipped=["T", "others"])


def test_taps_broadcast() -> None:
    taps = torch.rand(2, 3, 4, dtype=torch.float64)
    assert logits(taps, Counts.paper(5)).shape == (2, 3, 5)
    every = loss(taps, Counts.paper(5))
    for one, row in zip(taps.flatten(0, 1), every.flatten(), strict=True):
        assert float(loss(one, Counts.paper(5))) == pytest.approx(float(row), abs=1e-15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Counts.exact(3), "3 distinct tokens: expected 4 or more"),
        (lambda: Counts.exact(10, 9), "A vocabulary of 9: expected 10 or more"),
        (lambda: Counts.paper(-1), r"O\(T\) = -1: expected 0 or more"),
        (lambda: Counts.paper(math.nan), r"O\(T\) = nan"),
    ],
)
def test_impossible_counts_are_refused(make, said) -> None:
    with pytest.raises(UsageError, match=said):
        make()
