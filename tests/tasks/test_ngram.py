"""3-gram rules against a slow literal reading."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kvshift.errors import UsageError
from kvshift.tasks.ngram import NGram
from kvshift.tasks.task import Batch


def rows_of(batch: Batch) -> list[list[int]]:
    """Whole rows, the last target included; for batches with every token."""
    return torch.cat((batch.inputs, batch.targets[:, -1:]), dim=1).tolist()


def rules_of(task: NGram) -> dict[tuple[int, int], int]:
    return {(first, second): third for first, second, third in task.table.tolist()}


def write_literally(rng: random.Random, task: NGram) -> list[int]:
    """A row, token by token."""
    rules = rules_of(task)
    row: list[int] = []
    planned: int | None = None
    while len(row) < task.length + 1:
        if tuple(row[-2:]) in rules:
            row.append(rules[row[-2], row[-1]])
            planned = None
        elif planned is not None:
            row.append(planned)
            planned = None
        elif rng.random() < task.density:
            first, planned = rng.choice(list(rules))
            row.append(first)
        else:
            row.append(rng.randrange(task.vocab_size))
    return row


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(4, 40), st.data())
def test_every_row_read_literally(seed: int, step: int, vocab_size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, vocab_size**2 // 8))
    density = data.draw(st.floats(0.01, 1))
    task = NGram(seed, vocab_size, count, 30, density, every_token=True)
    rules = rules_of(task)
    assert len(rules) == count, "the pairs are different"
    for batch in (task.batch(step, 4), task.test(step, 4)):
        for row, groups in zip(rows_of(batch), batch.groups.tolist(), strict=True):
            assert groups[0] == 0
            for t in range(2, len(row)):
                pair = row[t - 2], row[t - 1]
                assert groups[t - 1] == (pair in rules)
                assert row[t] == rules.get(pair, row[t])


@given(st.integers(0, 2**63 - 1), st.integers(4, 40), st.data())
def test_rules_do_not_lead_to_each_other(seed: int, vocab_size: int, data: st.DataObject) -> None:
    rules = rules_of(NGram(seed, vocab_size, data.draw(st.integers(1, vocab_size**2 // 8))))
    for (_, second), third in rules.items():
        assert (second, third) not in rules


def test_rules_are_uniform_and_belong_to_the_seed() -> None:
    tables = [NGram(seed).table for seed in range(60)]
    for column in np.concatenate(tables).T:
        assert stats.chisquare(np.bincount(column, minlength=64)).pvalue > 1e-4
    assert len({table.tobytes() for table in tables}) == 60
    assert (NGram(7, length=20, density=1.0).table == tables[7]).all()


def test_rows_are_distributed_as_literally_written_ones() -> None:
    task = NGram(0, vocab_size=8, rules=10, length=40, density=0.4, every_token=True)
    rng = random.Random(0)
    slow = [write_literally(rng, task) for _ in range(2000)]
    fast = rows_of(task.batch(0, 2000))

    def windows(rows: list[list[int]]) -> np.ndarray:
        """How often each run of three tokens occurs, at every second place so that runs overlap little."""
        counts = Counter(tuple(row[t : t + 3]) for row in rows for t in range(0, len(row) - 2, 2))
        return np.array([counts[i, j, k] for i in range(8) for j in range(8) for k in range(8)])

    table = np.stack((windows(slow), windows(fast)))
    table = table[:, table.sum(0) > 20]
    assert table.shape[1] > 300
    assert stats.chi2_contingency(table).pvalue > 1e-4
    begins = [[row[t] for row in fast] for t in (0, 1)], [[row[t] for row in slow] for t in (0, 1)]
    for one, other in zip(*begins, strict=True):
        counts = np.stack([np.bincount(tokens, minlength=8) for tokens in (one, other)])
        assert stats.chi2_contingency(counts).pvalue > 1e-4


def test_every_rule_is_practised() -> None:
    task = NGram()
    batch = task.batch(0, 256)
    scored = batch.groups > 0
    assert scored.float().mean() == pytest.approx(0.188, abs=0.005)
    seconds = batch.inputs[scored].tolist()
    firsts = batch.inputs.roll(1, dims=1)[scored].tolist()
    used = Counter(zip(firsts, seconds, strict=True))
    assert set(used) == set(rules_of(task))
    assert min(used.values()) > 60
    assert task.score(batch.targets, batch)["rules"].total == scored.sum() == used.total()


def test_the_last_token_alone_cannot_do_it() -> None:
    task = NGram()
    best: dict[int, Counter[int]] = {}
    for _, second, third in task.table.tolist():
        best.setdefault(second, Counter())[third] += 1
    reachable = sum(counter.most_common(1)[0][1] for counter in best.values()) / 200
    assert task.last_token_ceiling == reachable
    assert 0.25 < reachable < 0.45
    guess = torch.tensor([best[x].most_common(1)[0][0] if x in best else 0 for x in range(64)])
    batch = task.batch(0, 256)
    assert task.score(guess[batch.inputs], batch)["rules"].accuracy == pytest.approx(reachable, abs=0.02)


def test_rules_that_cannot_be_drawn() -> None:
    def of_many_seeds() -> None:
        for seed in range(3000):
            NGram(seed, vocab_size=4, rules=4)

    # With one token that begins all of the 4 rules over 4 tokens, no x3 is left for the rule that ends in it.
    with pytest.raises(UsageError, match=r"every pair that begins with token \d is one; give fewer rules"):
        of_many_seeds()
