"""What all synthetic tasks have in common."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvshift.errors import UsageError
from kvshift.tasks.gsm import GradeSchoolMaths
from kvshift.tasks.hops import Hops
from kvshift.tasks.induction import Induction
from kvshift.tasks.ngram import NGram
from kvshift.tasks.task import IGNORED, Batch, Count, Task, count_groups, merge, source

SMALL: list[Task] = [
    Induction(vocab_size=50, candidates=16, length=40),
    Induction(vocab_size=50, candidates=16, length=40, every_token=True),
    NGram(vocab_size=16, rules=20, length=40),
    NGram(vocab_size=16, rules=20, length=40, every_token=True),
    Hops(),
    Hops(most_hops=3, characters=30),
    GradeSchoolMaths(train_operations=3, test_operations=4, length=256),
    GradeSchoolMaths(train_operations=3, test_operations=4, length=256, every_token=True),
]
over_tasks = pytest.mark.parametrize("task", SMALL, ids=repr)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(Batch)
    )


@over_tasks
def test_shapes_types_and_ranges(task: Task) -> None:
    for batch in (task.batch(0, 5), task.test(0, 5)):
        for field in dataclasses.fields(Batch):
            assert getattr(batch, field.name).shape == (5, task.length)
        assert batch.inputs.dtype == batch.targets.dtype == batch.groups.dtype == torch.int64
        assert batch.starts.dtype == torch.bool
        assert batch.starts[:, 0].all()
        assert 0 <= batch.inputs.min() <= batch.inputs.max() < task.vocab_size
        asked = batch.targets[batch.targets != IGNORED]
        assert 0 <= asked.min() <= asked.max() < task.vocab_size
        assert (batch.targets[batch.groups > 0] != IGNORED).all(), "what is scored is also learned"


@over_tasks
def test_a_batch_is_a_function_of_seed_and_step(task: Task) -> None:
    again = dataclasses.replace(task)  # no state is carried over, and the order of calls does not matter
    expected = [task.batch(step, 4) for step in range(3)]
    for step in (2, 0, 1):
        assert same(again.batch(step, 4), expected[step])
    assert same(again.test(1, 4), task.test(1, 4))


@over_tasks
def test_batches_do_not_repeat(task: Task) -> None:
    other_seed = dataclasses.replace(task, seed=1)
    batches = [
        task.batch(0, 50),
        task.batch(1, 50),
        task.test(0, 50),
        task.test(1, 50),
        other_seed.batch(0, 50),
    ]
    rows = [tuple(row) for batch in batches for row in batch.inputs.tolist()]
    assert len(set(rows)) == len(rows)


@over_tasks
def test_every_token_asks_for_more_of_the_same(task: Task) -> None:
    if not hasattr(task, "every_token"):
        assert (task.batch(0, 8).targets != IGNORED).all()
        return
    few = dataclasses.replace(task, every_token=False).batch(0, 8)
    all_ = dataclasses.replace(task, every_token=True).batch(0, 8)
    assert torch.equal(few.inputs, all_.inputs)
    assert torch.equal(few.groups, all_.groups)
    asked = few.targets != IGNORED
    assert torch.equal(few.targets[asked], all_.targets[asked])
    assert (all_.targets != IGNORED).sum() > asked.sum()


@over_tasks
def test_scores_of_perfect_and_of_wrong_predictions(task: Task) -> None:
    batch = task.batch(0, 50)
    for scores, accuracy in (
        (task.score(batch.targets, batch), 1),
        (task.score(batch.targets + 1, batch), 0),
    ):
        assert scores
        for count in scores.values():
            assert count.total > 0
            assert count.accuracy == accuracy
            assert count.error == 1 - accuracy
    unscored = batch.targets.where(batch.groups > 0, torch.randint_like(batch.targets, task.vocab_size))
    assert task.score(unscored, batch) == task.score(batch.targets, batch)


@over_tasks
def test_a_score_is_the_share_of_right_answers(task: Task) -> None:
    batch = task.batch(0, 20)
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(batch.targets.shape, generator=generator) < 0.7
    predictions = torch.where(right, batch.targets, batch.targets + 1)
    everything = max(task.score(predictions, batch).values(), key=lambda count: count.total)
    scored = batch.groups > 0
    assert everything == Count(int((right & scored).sum()), int(scored.sum()))


@over_tasks
def test_batches_that_cannot_be(task: Task) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        task.batch(0, 0)
    with pytest.raises(ValueError, match="at least one row"):
        task.test(0, -1)
    with pytest.raises(ValueError, match="from 0, not -1"):
        task.batch(-1, 2)
    with pytest.raises(ValueError, match="one prediction a position"):
        task.score(torch.zeros(2, 3, dtype=torch.int64), task.batch(0, 2))


@over_tasks
def test_a_batch_moves_between_devices(task: Task) -> None:
    batch = task.batch(0, 2)
    assert same(batch.to("cpu"), batch)
    assert batch.to("meta").groups.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Induction(seed=-1), r"Induction\.seed is -1; expected a whole number from 0 to"),
        (lambda: Induction(candidates=9000), r"Induction\.candidates is 9000; .* to 8,000"),
        (lambda: Induction(candidates=2), r"Induction\.candidates is 2; expected a whole number from 3"),
        (lambda: Induction(length=1.5), r"Induction\.length is 1\.5"),
        (
            lambda: NGram(rules=1025),
            r"NGram\.rules is 1025; .* to 1,024 \(a quarter of all pairs; give more tokens",
        ),
        (lambda: NGram(rules=True), r"NGram\.rules is True"),
        (lambda: NGram(density=0.0), r"NGram\.density is 0\.0; expected a probability above 0"),
        (lambda: NGram(density=math.nan), r"NGram\.density is nan"),
        (lambda: Hops(most_hops=17), r"Hops\.most_hops is 17; .* to 16 \(hops have the token ids 0 to 16\)"),
        (lambda: Hops(characters=2), r"Hops\.characters is 2; .* \(the last two are not shown\)"),
        (
            lambda: GradeSchoolMaths(test_operations=53),
            r"test_operations is 53; .* 52 \(a solution has a letter",
        ),
        (lambda: GradeSchoolMaths(train_operations=0), r"train_operations is 0"),
        (
            lambda: GradeSchoolMaths(test_operations=24, unneeded=4, length=726),
            r"length is 726; a problem of 24 operations with 4 unneeded parameters can take 727 positions\.",
        ),
    ],
)
def test_settings_that_cannot_be(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_counts_add_up() -> None:
    assert Count(1, 2) + Count(3, 5) == Count(4, 7)
    assert math.isnan(Count(0, 0).accuracy)
    assert math.isnan(Count(0, 0).error)
    merged = merge([{"a": Count(1, 2)}, {"a": Count(0, 3), "b": Count(4, 4)}])
    assert merged == {"a": Count(1, 5), "b": Count(4, 4)}
    assert merge([]) == {}


def test_groups_are_counted_one_by_one() -> None:
    targets = torch.tensor([[5, 6, 7], [8, 9, IGNORED]])
    groups = torch.tensor([[1, 3, 1], [3, 0, 0]])
    batch = Batch(targets, targets, targets == 5, groups)
    predictions = torch.tensor([[5, 0, 0], [8, 0, 0]])
    assert count_groups(predictions, batch, 3) == [Count(1, 2), Count(0, 0), Count(1, 2)]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1), st.sampled_from(["train", "test", "rules"]), st.integers(0, 2**40)
        ),
        min_size=2,
        max_size=6,
        unique=True,
    )
)
def test_every_seed_part_and_step_has_numbers_of_its_own(keys) -> None:
    drawn = [tuple(source(*key).integers(2**63, size=2)) for key in keys]
    assert len(set(drawn)) == len(keys)


def test_neighbouring_streams_do_not_resemble_each_other() -> None:
    streams = np.stack(
        [
            source(seed, part, step).random(2000)
            for seed in (0, 1)
            for part in ("train", "test")
            for step in (0, 1)
        ]
    )
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(2000)
