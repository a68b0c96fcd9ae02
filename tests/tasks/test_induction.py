"""Toy induction against a slow literal reading of the paper's description."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kvshift.tasks.induction import AMBIGUOUS, FIRST, UNAMBIGUOUS, Induction, different_tokens
from kvshift.tasks.task import IGNORED, Batch


def rows_of(batch: Batch) -> list[list[int]]:
    """Whole rows, the last target included; for batches with every token."""
    return torch.cat((batch.inputs, batch.targets[:, -1:]), dim=1).tolist()


def write_literally(rng: random.Random, vocab_size: int, candidates: int, length: int) -> list[int]:
    """A row, token by token."""
    pool = rng.sample(range(vocab_size), candidates)
    row: list[int] = []
    successor: dict[int, int] = {}
    while len(row) < length:
        token = rng.choice(pool)
        if row and token == row[-1]:
            continue
        if token not in row:
            if row:
                successor[row[-1]] = token
            row.append(token)
        else:
            row.append(token)
            if token in successor:
                row.append(successor[token])
    return row[:length]


def read_literally(row: list[int]) -> list[int]:
    """What each token of a row counts for. Fails where the row breaks the rules."""
    groups = [0] * len(row)
    successor: dict[int, int] = {}
    t = 0
    while t < len(row):
        assert t == 0 or row[t] != row[t - 1], "a token is drawn right after itself"
        drawn = row[t]
        if drawn not in row[:t]:
            if t > 0:
                successor[row[t - 1]] = drawn
        elif drawn in successor and t + 1 < len(row):
            t += 1
            assert row[t] == successor[drawn], "a seen token is not followed by its recorded successor"
            observed = {row[i + 1] for i in range(t - 1) if row[i] == drawn}
            groups[t] = UNAMBIGUOUS if observed == {row[t]} else AMBIGUOUS
            assert row[t] in observed
        t += 1
    if any(groups):
        first = next(i for i, group in enumerate(groups) if group)
        assert groups[first] == UNAMBIGUOUS
        groups[first] = FIRST
    return groups


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
    st.integers(3, 40),
    st.integers(0, 30),
    st.integers(2, 80),
)
def test_every_row_read_literally(seed: int, step: int, candidates: int, more: int, length: int) -> None:
    task = Induction(seed, candidates + more, candidates, length, every_token=True)
    for batch in (task.batch(step, 4), task.test(step, 4)):
        for row, groups in zip(rows_of(batch), batch.groups.tolist(), strict=True):
            assert len(set(row)) <= candidates
            assert groups == read_literally(row)[1:]


def test_the_papers_size_read_literally() -> None:
    batch = Induction(every_token=True).batch(3, 600)  # more rows than are made at once
    for row, groups in list(zip(rows_of(batch), batch.groups.tolist(), strict=True))[::23]:
        assert groups == read_literally(row)[1:]
    assert ((batch.groups == FIRST).sum(1) == 1).all()
    determined = Induction().batch(3, 600)
    assert torch.equal(determined.targets, batch.targets.where(batch.groups > 0, torch.tensor(IGNORED)))


def test_a_row_by_hand() -> None:
    a, b, c, d = range(4)
    # a, b, c are new; a is drawn and b must follow; then c is drawn, which has no recorded successor yet; d
    # is new and becomes it; b is drawn: c is recorded, and nothing but c has followed b; a is drawn.
    row = [a, b, c, a, b, c, d, b, c, a, b]
    assert read_literally(row) == [0, 0, 0, 0, FIRST, 0, 0, 0, UNAMBIGUOUS, 0, UNAMBIGUOUS]
    # After the second b comes d, new: it replaces c, but both have followed b.
    row = [a, b, c, a, b, d, b, d]
    assert read_literally(row) == [0, 0, 0, 0, FIRST, 0, 0, AMBIGUOUS]


def summary(rows: list[list[int]]) -> np.ndarray:
    """`(rows, 5)`: first determined position, numbers of each kind, different tokens, free repetitions."""
    numbers = []
    for row in rows:
        groups = np.array(read_literally(row))
        first = int((groups == FIRST).argmax()) if (groups == FIRST).any() else len(row)
        later, ambiguous = int((groups == UNAMBIGUOUS).sum()), int((groups == AMBIGUOUS).sum())
        back = sum(row[i] == row[i - 2] for i in range(2, len(row)))
        numbers.append((first, later, ambiguous, len(set(row)), back))
    return np.array(numbers, float)


def test_rows_are_distributed_as_literally_written_ones() -> None:
    rng = random.Random(0)
    slow = summary([write_literally(rng, 20, 12, 31) for _ in range(3000)])
    fast = summary(rows_of(Induction(0, 20, 12, 30, every_token=True).batch(0, 3000)))
    error = np.sqrt((slow.var(0) + fast.var(0)) / 3000)
    assert (np.abs(slow.mean(0) - fast.mean(0)) < 4 * error).all()
    for one, other in zip(slow.T, fast.T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-4  # conservative: the numbers are whole


def test_free_draws_are_uniform_over_all_candidates_but_the_last_token() -> None:
    rows = rows_of(Induction(0, 6, 6, 60, every_token=True).batch(0, 2000))
    counts = np.zeros((6, 6))
    for row in rows:
        groups = read_literally(row)
        for t in range(1, len(row)):
            if groups[t] == 0:
                counts[row[t - 1], row[t]] += 1
    assert (np.diag(counts) == 0).all()
    for token in range(6):
        assert stats.chisquare(np.delete(counts[token], token)).pvalue > 1e-4


def test_different_tokens_are_equally_likely_in_every_order() -> None:
    chosen = different_tokens(np.random.default_rng(0), 24_000, 3, 4)
    counts = dict.fromkeys(itertools.permutations(range(4), 3), 0)
    for order in map(tuple, chosen.T.tolist()):
        counts[order] += 1  # KeyError where a token repeats
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_tokens_come_from_the_whole_vocabulary() -> None:
    batch = Induction().batch(0, 512)
    first = np.bincount(batch.inputs[:, 0] // 1000, minlength=8)
    assert stats.chisquare(first).pvalue > 1e-4


def test_chance_at_the_first_position_is_what_the_docstring_says() -> None:
    batch = Induction(every_token=True).batch(0, 2000)
    firsts = (batch.groups == FIRST).int().argmax(1) + 1  # place in the whole row
    # Of the tokens before it, the last is a repetition, and the row's very first followed nothing.
    assert (1 / (firsts - 2.0)).mean() == pytest.approx(0.055, abs=0.004)
    # And the answer is uniform among them.
    place = [row.index(row[first]) for row, first in zip(rows_of(batch), firsts.tolist(), strict=True)]
    share = (np.array(place) - 1 + np.random.default_rng(0).random(2000)) / (firsts.numpy() - 2)
    assert stats.kstest(share, "uniform").pvalue > 1e-4


def test_the_recorded_successor_is_the_latest_that_was_new() -> None:
    """So ambiguous positions can be answered, but not by looking for the token alone."""
    latest_is_right = plain = total = 0
    for row, groups in zip(
        *(lambda b: (rows_of(b), b.groups.tolist()))(Induction(every_token=True).batch(1, 20)), strict=True
    ):
        new_after: dict[int, int] = {}
        followers: dict[int, list[int]] = defaultdict(list)
        for t in range(1, len(row)):
            if groups[t - 1] == AMBIGUOUS:
                total += 1
                latest_is_right += new_after[row[t - 1]] == row[t]
                plain += followers[row[t - 1]][-1] == row[t]
            if row[t] not in row[:t]:
                new_after[row[t - 1]] = row[t]
            followers[row[t - 1]].append(row[t])
    assert latest_is_right == total > 100
    assert plain < total
