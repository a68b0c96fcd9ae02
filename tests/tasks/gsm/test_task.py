"""Packed rows, operation counts and grades."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from scipy import stats

from kvshift.tasks.gsm import GradeSchoolMaths, Problem, decode, prompt, solution
from kvshift.tasks.gsm.words import END, PAD, PROBLEM, SOLUTION
from kvshift.tasks.task import IGNORED, Batch, Count


def sequences(batch: Batch) -> list[list[int]]:
    """What `starts` separates, with each sequence's last target behind it; padding is left out."""
    found = []
    for inputs, targets, starts in zip(batch.inputs, batch.targets, batch.starts, strict=True):
        places = [*starts.nonzero().flatten().tolist(), len(inputs)]
        for begin, end in pairwise(places):
            if inputs[begin] != PAD:
                found.append([*inputs[begin:end].tolist(), int(targets[end - 1])])
            else:
                assert (inputs[begin:end] == PAD).all()
                assert (targets[begin:end] == IGNORED).all()
                assert end == len(inputs)
    return found


@pytest.mark.parametrize("operations", [(12, 15), (21, 24)])
def test_rows_hold_whole_problems_in_order(operations: tuple[int, int]) -> None:
    task = GradeSchoolMaths(3, *operations)
    batch = task.test(2, 8)
    found = sequences(batch)
    problems = task.problems(2, len(found))
    assert found == [prompt(problem) + solution(problem)[0] for problem in problems]
    assert all(problem.operations == operations[1] for problem in problems)
    # No row had room for the problem that the next one begins with.
    filled = (batch.inputs != PAD).sum(1).tolist()
    first = [len(sequences(row_of(batch, i))[0]) - 1 for i in range(8)]
    assert all(one + following > task.length for one, following in zip(filled, first[1:], strict=False))


def row_of(batch: Batch, row: int) -> Batch:
    return Batch(*(tensor[row : row + 1] for tensor in fields(batch)))


def fields(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.inputs, batch.targets, batch.starts, batch.groups


@pytest.mark.parametrize("every_token", [False, True])
def test_targets_read_literally(every_token: bool) -> None:
    batch = GradeSchoolMaths(every_token=every_token).batch(0, 6)
    for inputs, targets, starts in zip(*(x.tolist() for x in fields(batch)[:3]), strict=True):
        solving = False
        for t, token in enumerate(inputs):
            solving = token == SOLUTION or (solving and not starts[t])
            last = t + 1 == len(inputs) or starts[t + 1]
            if token == PAD or not (solving or every_token):
                assert targets[t] == IGNORED
            else:
                assert targets[t] == (END if last else inputs[t + 1])
            assert starts[t] == (token == PROBLEM or (token == PAD and inputs[t - 1] != PAD))


def test_scored_are_the_results_and_the_last_is_the_answer() -> None:
    task = GradeSchoolMaths()
    batch = task.test(0, 4)
    scored: list[tuple[int, int]] = []
    for targets, groups in zip(batch.targets.tolist(), batch.groups.tolist(), strict=True):
        scored += [(group, target) for group, target in zip(groups, targets, strict=True) if group]
    expected = []
    for problem in task.problems(0, len(sequences(batch))):
        ids, results = solution(problem)
        expected += [(1, ids[result]) for result in results[:-1]] + [(2, ids[results[-1]])]
    assert scored == expected
    scores = task.score(batch.targets, batch)
    assert scores["answer"].total == len(sequences(batch))
    assert scores["results"].total == len(expected)


def operations_in(ids: list[int]) -> int:
    """Signs behind the first equals sign of each step, and one for each step without."""
    steps = decode(ids[ids.index(SOLUTION) + 1 : -1]).split(".")
    total = 0
    for step in [piece for piece in steps if "; so" in piece]:
        symbols = step.split(" = ")[1]
        total += max(1, sum(symbols.count(sign) for sign in "+-*"))
    return total


def test_training_has_every_number_of_operations_equally_often() -> None:
    counts = Counter(operations_in(ids) for ids in sequences(GradeSchoolMaths().batch(0, 250)))
    assert set(counts) == set(range(1, 13))
    assert counts.total() > 1000
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_every_number_of_unneeded_parameters_is_equally_frequent() -> None:
    problems = GradeSchoolMaths().problems(0, 2000)
    counts = Counter(len(problem.parameters) - problem.needed for problem in problems)
    assert set(counts) == set(range(5))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    assert all(len(p.parameters) == p.needed for p in GradeSchoolMaths(unneeded=0).problems(0, 50))


def test_grades() -> None:
    task = GradeSchoolMaths()
    problems = task.problems(0, 20)
    right = [solution(problem)[0] for problem in problems]
    assert task.grade(problems, right) == {"answers": Count(20, 20), "right": Count(20, 20)}
    without_first_step = [ids[ids.index(ids[0], 1) :] for ids in right]
    assert task.grade(problems, without_first_step) == {"answers": Count(20, 20), "right": Count(0, 20)}
    assert task.grade(problems, [[]] * 20) == {"answers": Count(0, 20), "right": Count(0, 20)}
    of_another = right[1:] + right[:1]
    assert task.grade(problems, of_another)["right"] == Count(0, 20)
    with pytest.raises(ValueError):
        task.grade(problems, right[1:])


def test_problems_do_not_repeat() -> None:
    def of(task: GradeSchoolMaths, step: int) -> set[Problem]:
        return set(task.problems(step, 100))

    task = GradeSchoolMaths()
    together = of(task, 0) | of(task, 1) | of(GradeSchoolMaths(seed=1), 0)
    assert len(together) == 300
    assert task.problems(0, 5) == task.problems(0, 100)[:5]
