"""Problems and solutions against a slow literal reading of their text."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kvshift.tasks.gsm import Problem, decode, draw_problem, encode, prompt, solution
from kvshift.tasks.gsm.problem import MOST_OPERATIONS
from kvshift.tasks.gsm.wording import longest
from kvshift.tasks.gsm.words import END, NAMES, PROBLEM, SOLUTION, WORDS

SIGN = {"plus": "+", "minus": "-", "times": "*"}
Rules = dict[str, tuple[str, list[str]]]


def read_problem(text: str) -> tuple[Rules, str]:
    """What each sentence says, by name: its verb ("" for a constant) and operands; and what is asked."""
    found = re.fullmatch(r"<problem> (.*\.) What is (\S+)\? <solution>", text)
    assert found
    rules: Rules = {}
    for sentence in found[1].removesuffix(".").split(". "):
        subject, definition = sentence.split(" equals ")
        words = definition.split()
        verbs = set(words[1::2])
        assert len(verbs) <= 1
        assert subject not in rules
        rules[subject] = (verbs.pop() if verbs else "", words[::2])
    return rules, found[2]


def evaluate(rules: Rules, name: str) -> int:
    """The value of a parameter, by recursion, modulo 23 at the very end only."""

    def exact(word: str) -> int:
        if word.isdigit():
            return int(word)
        verb, operands = rules[word]
        values = [exact(operand) for operand in operands]
        if verb == "minus":
            return values[0] - sum(values[1:])
        return math.prod(values) if verb == "times" else sum(values)

    return exact(name) % 23


def needed_for(rules: Rules, name: str) -> set[str]:
    found = {name}
    for operand in rules[name][1]:
        if not operand.isdigit():
            found |= needed_for(rules, operand)
    return found


def operations_of(rules: Rules, name: str) -> int:
    """Signs in the step that computes it, and one for a constant."""
    return max(1, len(rules[name][1]) - 1)


def read_solution(text: str) -> list[tuple[str, str, str]]:
    """Name, letter and everything behind `so LETTER = ` of each step."""
    steps, count = re.subn(r"Define (\S+) as (\w); so \2 = ([^.]+)\. ", "", text)
    assert (steps, count) == ("<end>", text.count("Define"))
    return re.findall(r"Define (\S+) as (\w); so \2 = ([^.]+)\. ", text)


def check_literally(problem: Problem, operations: int, unneeded: int) -> None:
    ids, results = solution(problem)
    rules, asked = read_problem(decode(prompt(problem)))
    steps = read_solution(decode(ids))

    needed = needed_for(rules, asked)
    assert len(rules) == len(needed) + unneeded
    assert sum(operations_of(rules, name) for name in needed) == operations == problem.operations
    assert {name for name, _, _ in steps} == needed
    assert len(steps) == len(needed) == len(results)
    assert steps[-1][0] == asked
    letters: dict[str, str] = {}
    values: dict[str, int] = {}
    for (name, letter, right), result in zip(steps, results, strict=True):
        assert letter not in letters.values()
        verb, operands = rules[name]
        values[name] = evaluate(rules, name)
        # KeyError where an operand has not been computed before
        symbols = [word if word.isdigit() else letters[word] for word in operands]
        numbers = [word if word.isdigit() else str(values[word]) for word in operands]
        forms = [f" {SIGN[verb]} ".join(form) for form in (symbols, numbers)] if verb else []
        assert right == " = ".join([*forms, str(values[name])])
        assert WORDS[ids[result]] == str(values[name])
        letters[name] = letter
    for name, (verb, operands) in rules.items():
        assert set(operands) <= rules.keys() | {str(n) for n in range(1, 23)}
        constants = [word for word in operands if word.isdigit()]
        assert len(constants) == (len(operands) == 1 and not verb) or len(operands) == 2
        assert len(set(operands) - set(constants)) == len(operands) - len(constants) <= 3
        assert name not in operands


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**64), st.integers(1, MOST_OPERATIONS), st.integers(0, 12))
def test_every_problem_read_literally(seed: int, operations: int, unneeded: int) -> None:
    problem = draw_problem(Random(seed), operations, unneeded)
    check_literally(problem, operations, unneeded)
    ids = prompt(problem) + solution(problem)[0]
    assert len(ids) <= longest(operations, unneeded)
    assert encode(decode(ids)) == ids


def test_the_problem_by_hand(by_hand: Problem) -> None:
    assert decode(prompt(by_hand)) == (
        "<problem> lake.kite equals barn.owl times farm.bell. cabin.boat equals barn.owl minus 12. "
        "farm.bell equals cabin.boat minus tower.rope. barn.owl equals 9. "
        "tower.rope equals mill.hat plus barn.owl plus cabin.boat. mill.hat equals 20. "
        "What is farm.bell? <solution>"
    )
    ids, results = solution(by_hand)
    assert decode(ids) == (
        "Define barn.owl as k; so k = 9. Define mill.hat as b; so b = 20. "
        "Define cabin.boat as A; so A = k - 12 = 9 - 12 = 20. "
        "Define tower.rope as d; so d = b + k + A = 20 + 9 + 20 = 3. "
        "Define farm.bell as Z; so Z = A - d = 20 - 3 = 17. <end>"
    )
    assert [decode([ids[result]]) for result in results] == ["9", "20", "20", "3", "17"]
    check_literally(by_hand, operations=6, unneeded=1)


def test_no_length_is_out_of_reach_of_the_bound() -> None:
    """The bound is one that is nearly met, so that it does not refuse what would fit."""
    random = Random(0)
    for operations in (12, 24):
        lengths = [
            len(prompt(problem) + solution(problem)[0])
            for problem in (draw_problem(random, operations, 4) for _ in range(2000))
        ]
        assert 0.8 * longest(operations, 4) < max(lengths) <= longest(operations, 4)


def test_what_is_drawn_uniformly_is_uniform() -> None:
    random = Random(1)
    problems = [draw_problem(random, 15, 3) for _ in range(3000)]
    parameters = [parameter for problem in problems for parameter in problem.parameters]
    counts = {
        "names": (Counter(parameter.name for parameter in parameters), len(NAMES)),
        "constants": (Counter(p.constant for p in parameters if p.constant), 22),
        "first letters": (Counter(problem.letters[0] for problem in problems), 52),
        "operators": (Counter(p.operator for p in parameters if p.operands), 3),
    }
    for what, (counter, size) in counts.items():
        assert len(counter) == size, what
        assert stats.chisquare(list(counter.values())).pvalue > 1e-4, what
    # The asked parameter's sentence may stand anywhere.
    places = [problem.order.index(problem.needed - 1) / len(problem.order) for problem in problems]
    jitter = [place + random.random() / len(p.order) for place, p in zip(places, problems, strict=True)]
    assert stats.kstest(jitter, "uniform").pvalue > 1e-4


def test_letters_follow_each_other_from_any_on() -> None:
    """Letters drawn one by one are about equally likely, and greedy derivations tend to repeat one."""
    random = Random(2)
    for _ in range(200):
        steps = read_solution(decode(solution(draw_problem(random, 9, 2))[0]))
        letters = "".join(letter for _, letter, _ in steps)
        assert letters in string.ascii_letters * 2


def test_no_operand_is_preferred_as_the_first() -> None:
    """What is subtracted from is as often needed elsewhere as what is taken away."""
    random = Random(4)
    first_more = second_more = 0
    for _ in range(1500):
        problem = draw_problem(random, 15, 0)
        uses = Counter(operand for parameter in problem.parameters for operand in parameter.operands)
        for parameter in problem.parameters:
            if len(parameter.operands) == 2:
                first, second = (uses[operand] for operand in parameter.operands)
                first_more += first > second
                second_more += first < second
    assert first_more + second_more > 1000
    assert stats.binomtest(first_more, first_more + second_more).pvalue > 1e-4


def test_graphs_are_neither_chains_nor_flat() -> None:
    random = Random(2)
    depths, kinds, unneeded_on_asked = Counter(), Counter(), 0
    for _ in range(1000):
        problem = draw_problem(random, 15, 2)
        depth: list[int] = []
        for parameter in problem.parameters[: problem.needed]:
            depth.append(1 + max((depth[operand] for operand in parameter.operands), default=0))
            kinds[len(parameter.operands)] += 1
        depths[depth[-1]] += 1
        unneeded_on_asked += any(
            problem.needed - 1 in parameter.operands for parameter in problem.parameters[problem.needed :]
        )
    assert sum(depth * count for depth, count in depths.items()) / 1000 == pytest.approx(8.7, abs=0.3)
    assert len(depths) >= 9
    assert min(kinds.values()) / kinds.total() > 0.15
    assert unneeded_on_asked > 100, "what is not needed may depend on the answer"


def test_zero_is_the_most_frequent_answer() -> None:
    random = Random(3)
    answers = Counter(draw_problem(random, 15, 0).asked.value for _ in range(6000))
    assert answers.most_common(1)[0][0] == 0
    assert answers[0] / 6000 == pytest.approx(0.06, abs=0.012)
    assert len(answers) == 23


def test_one_operation_is_a_constant() -> None:
    problem = draw_problem(Random(0), 1, 0)
    assert problem.needed == len(problem.parameters) == 1
    assert decode(prompt(problem)).count(".") == 3  # two names and the end of the only sentence


def test_words_are_different_and_special_ones_come_first() -> None:
    assert len(set(WORDS)) == len(WORDS) == 143
    assert [WORDS[i] for i in (PROBLEM, SOLUTION, END)] == ["<problem>", "<solution>", "<end>"]
