"""Grade-school-maths graphs (paper, Table 7; after iGSM): train on short solutions, test on longer ones.

Train with at most N operations and test with exactly M. (Decided here: from 1 to N, all numbers of operations
are equally likely.) What an operation is, and how a problem comes about, is said in `problem.py`; how it is
worded, in `wording.py`.

A row packs whole problems, each with its solution, one behind the other and then padding; each is a
sequence of its own, marked in `starts`. Beside the parameters that the question needs, a problem has up to
`unneeded` others, so that it takes reading to know what to compute. (The paper does not speak of those; 0
leaves them out.)

**Scores.** `score` is teacher-forced: the results of all steps, and the asked one. The paper's score and a
strict one are about derivations that the model writes itself: give it the `prompt` of each of `problems`, let
it write up to `<end>`, and `grade` what it wrote.

**Chance.** Numbers are modulo 23: a uniform guess is right in 4.3% of all cases. Products make 0 the most
frequent answer: in 6% of problems of 15 operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kvshift.errors import UsageError
from kvshift.tasks.gsm.check import check
from kvshift.tasks.gsm.problem import MOST_OPERATIONS, Problem, draw_problem
from kvshift.tasks.gsm.wording import longest, prompt, solution
from kvshift.tasks.gsm.words import NAMES, PAD, WORDS
from kvshift.tasks.task import (
    IGNORED,
    Batch,
    Count,
    Part,
    Scores,
    check_range,
    check_size,
    count_groups,
    source,
)

RESULT, ANSWER = 1, 2  # groups; the answer counts as a result, too


@dataclass(frozen=True)
class GradeSchoolMaths:
    """The paper's grade-school maths. Table 7 has (12, 15) and (21, 24) operations."""

    vocab_size: ClassVar[int] = len(WORDS)
    packs: ClassVar[bool] = True

    seed: int = 0
    train_operations: int = 12
    """Training problems take at most so many operations."""

    test_operations: int = 15
    """Test problems take exactly so many."""

    unneeded: int = 4
    """At most so many parameters beside those the question needs."""

    length: int = 1024
    every_token: bool = False
    """Learn every next token, the problem's too, as a language model would, not only the solution's."""

    def __post_init__(self) -> None:
        check_range(self, "seed", 0, 2**63 - 1)
        for field in ("train_operations", "test_operations"):
            check_range(self, field, 1, MOST_OPERATIONS, "a solution has a letter for each step")
        check_range(self, "unneeded", 0, len(NAMES) - MOST_OPERATIONS)
        check_range(self, "length", 2, 2**20)
        operations = max(self.train_operations, self.test_operations)
        most = longest(operations, self.unneeded) - 1  # the last token is never an input
        if most > self.length:
            raise UsageError(
                f"GradeSchoolMaths.length is {self.length}; a problem of {operations} operations with "
                f"{self.unneeded} unneeded parameters can take {most} positions. Give at least so many, or "
                "fewer operations."
            )

    def batch(self, step: int, size: int) -> Batch:
        """`size` packed rows of `length` tokens; the targets are the next tokens."""
        check_size(size)
        return self._pack(self._endless("train", step), size)

    def test(self, step: int, size: int) -> Batch:
        """Packed rows of `problems(step, …)` with their solutions, in order."""
        check_size(size)
        return self._pack(self._endless("test", step), size)

    def score(self, predictions: Tensor, batch: Batch) -> Scores:
        """`results` of all steps and `answer`, the asked one's, each with the true solution before it."""
        others, answer = count_groups(predictions, batch, ANSWER)
        return {"results": others + answer, "answer": answer}

    def problems(self, step: int, count: int) -> list[Problem]:
        """The first `count` test problems of `step`."""
        check_size(count)
        return [problem for _, problem in zip(range(count), self._endless("test", step), strict=False)]

    def grade(self, problems: Iterable[Problem], derivations: Iterable[Sequence[int]]) -> Scores:
        """Counts over what a model wrote after each prompt.

        Returns:
            `answers`, the paper's score: some step computes the asked quantity correctly. `right`: every step
            is right and the last answers the question.
        """
        found = [check(problem, ids) for problem, ids in zip(problems, derivations, strict=True)]
        return {
            "answers": Count(sum(one.answers for one in found), len(found)),
            "right": Count(sum(one.right for one in found), len(found)),
        }

    def _endless(self, part: Part, step: int) -> Iterator[Problem]:
        # Python's own generator draws single numbers many times faster than NumPy's.
        random = Random(int.from_bytes(source(self.seed, part, step).bytes(16), "little"))
        while True:
            operations = self.test_operations
            if part == "train":
                operations = random.randint(1, self.train_operations)
            yield draw_problem(random, operations, random.randint(0, self.unneeded))

    def _pack(self, problems: Iterator[Problem], size: int) -> Batch:
        shape = (size, self.length)
        inputs = np.full(shape, PAD, np.int64)
        targets = np.full(shape, IGNORED, np.int64)
        starts = np.zeros(shape, bool)
        starts[:, 0] = True
        groups = np.zeros(shape, np.int64)
        row = begin = 0
        for problem in problems:
            question = prompt(problem)
            steps, results = solution(problem)
            ids = np.array(question + steps, np.int64)
            end = begin + len(ids) - 1  # its last token is a target only
            if end > self.length:
                row, begin, end = row + 1, 0, len(ids) - 1
                if row == size:
                    break
            known = 0 if self.every_token else len(question) - 1
            inputs[row, begin:end] = ids[:-1]
            targets[row, begin + known : end] = ids[known + 1 :]
            starts[row, begin] = True
            place = begin + len(question) - 1  # where the first token of the solution is predicted
            groups[row, [place + result for result in results]] = RESULT
            groups[row, place + results[-1]] = ANSWER
            begin = end
        starts[:, 1:] |= (inputs[:, 1:] == PAD) & (inputs[:, :-1] != PAD)  # padding is no part of a sequence
        return Batch(*map(torch.from_numpy, (inputs, targets, starts, groups)))
