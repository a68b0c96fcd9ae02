"""Multi-hop induction against its definition, read literally."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kvshift.tasks.hops import BLANK, NOWHERE, Hops
from kvshift.tasks.task import Batch, Count


def find(letters: list[int], i: int, k: int) -> int | None:
    """findᵏ(i), or None for ⊥."""
    if k == 0:
        return i
    i_before = find(letters, i, k - 1)
    if i_before is None:
        return None
    earlier = [j for j in range(i_before) if letters[j] == letters[i_before]]
    return earlier[-1] + 1 if earlier else None


def answers(letters: list[int], k: int) -> list[int]:
    """The target after BLANK."""
    places = [find(letters, i, k) for i in range(len(letters))]
    return [NOWHERE if place is None else letters[place] for place in places]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 16), st.integers(3, 60))
def test_every_target_read_literally(seed: int, step: int, most_hops: int, characters: int) -> None:
    task = Hops(seed, most_hops, characters)
    for batch in (task.batch(step, 6), task.test(step, 6)):
        for (k, *letters), (blank, *targets), (none, *groups) in zip(
            batch.inputs.tolist(), batch.targets.tolist(), batch.groups.tolist(), strict=True
        ):
            assert 0 <= k <= most_hops
            assert len(letters) == characters - 2
            assert set(letters) <= {17, 18, 19, 20}
            assert all(one != other for one, other in pairwise(letters))
            assert blank == BLANK == 22
            assert targets == answers(letters, k)
            assert none == 0
            assert groups == [0 if target == NOWHERE else 1 + k for target in targets]


def test_a_row_by_hand() -> None:
    a, b, c = 17, 18, 19
    letters = [a, b, c, a, b, a, c]
    # prev:    -  -  -  0  1  3  2
    # find¹:   -  -  -  1  2  4  3
    assert answers(letters, 0) == letters
    assert answers(letters, 1) == [NOWHERE, NOWHERE, NOWHERE, b, c, b, a]
    assert answers(letters, 2) == [NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, c, b]
    assert answers(letters, 3) == [NOWHERE] * 7


def test_the_papers_ids_and_shape() -> None:
    task = Hops()
    assert (task.length, task.vocab_size) == (99, 30)
    batch = task.batch(0, 2000)
    assert set(batch.inputs[:, 0].tolist()) == set(range(17))
    assert set(batch.inputs[:, 1:].unique().tolist()) == {17, 18, 19, 20}
    assert set(batch.targets.unique().tolist()) == {17, 18, 19, 20, 21, 22}


def test_letters_and_hops_are_uniform() -> None:
    batch = Hops().batch(0, 3000)
    hops, letters = batch.inputs[:, 0].numpy(), batch.inputs[:, 1:].numpy() - 17
    assert stats.chisquare(np.bincount(hops, minlength=17)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(letters[:, 0], minlength=4)).pvalue > 1e-4
    for letter in range(4):
        following = letters[:, 1:][letters[:, :-1] == letter]
        counts = np.bincount(following, minlength=4)
        assert counts[letter] == 0
        assert stats.chisquare(np.delete(counts, letter)).pvalue > 1e-4
    # Whether a letter comes back after one other does not depend on how it got there.
    back = letters[:, 2:] == letters[:, :-2]
    table = [[(back[:, 1:] & back[:, :-1]).sum(), (back[:, 1:] & ~back[:, :-1]).sum()]]
    table.append([(~back[:, 1:] & back[:, :-1]).sum(), (~back[:, 1:] & ~back[:, :-1]).sum()])
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_tests_hold_every_number_of_hops_equally_often() -> None:
    task = Hops()
    batch = task.test(0, 1700)
    assert torch.equal(batch.inputs[:, 0].bincount(), torch.full((17,), 100))
    scores = task.score(batch.targets, batch)
    # All find¹ of a row make chains without branches. One consists of the first letter alone, which nothing
    # leads to; the other three begin where another letter appears first, and lose a place each with each hop.
    for k in range(17):
        assert scores[f"hops={k}"] == Count(*[100 * (98 - (1 + 3 * k if k else 0))] * 2)
    assert scores["all"].total == sum(scores[f"hops={k}"].total for k in range(17))


def test_blank_and_nowhere_do_not_count() -> None:
    task = Hops()
    batch = task.batch(0, 64)
    neither = (batch.targets != NOWHERE) & (batch.targets != BLANK)
    assert torch.equal(neither, batch.groups > 0)
    wrong = batch.targets.masked_fill(~neither, 0)
    assert task.score(wrong, batch)["all"].error == 0


def repeated(batch: Batch, task: Hops) -> dict[str, Count]:
    """The scores of a model that says each letter again."""
    return task.score(batch.inputs, batch)


def test_chance_is_what_the_docstring_says() -> None:
    task = Hops()
    batch = task.test(1, 17 * 300)
    scores = repeated(batch, task)
    assert scores["hops=0"].accuracy == 1
    assert scores["hops=1"].accuracy == 0
    assert scores["hops=2"].accuracy == pytest.approx(0.507, abs=0.01)
    assert scores["hops=3"].accuracy == pytest.approx(0.12, abs=0.01)
    assert scores["hops=4"].accuracy == pytest.approx(0.35, abs=0.01)
    for k in range(12, 17):
        assert scores[f"hops={k}"].accuracy == pytest.approx(0.25, abs=0.015)
    scored = batch.targets[batch.groups > 1]  # one letter said everywhere
    assert (scored.bincount(minlength=21)[17:].double() / len(scored)).tolist() == pytest.approx(
        [0.25] * 4, abs=0.01
    )
