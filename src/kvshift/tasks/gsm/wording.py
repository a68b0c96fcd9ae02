"""Problems and solutions in words, as ids.

<problem> mill.owl equals barn.hat minus 4. barn.hat equals 9. What is mill.owl? <solution>
Define barn.hat as K; so K = 9. Define mill.owl as L; so L = K - 4 = 9 - 4 = 5. <end>
"""

from __future__ import annotations

from kvshift.tasks.gsm.problem import Problem
from kvshift.tasks.gsm.words import (
    END,
    FIRST_LETTER,
    IDS,
    NAMES,
    PROBLEM,
    SIGNS,
    SOLUTION,
    VERBS,
    ZERO,
    encode,
)

_EQUALS, _STOP, _IS = IDS["equals"], IDS["."], IDS["="]
_DEFINE, _AS = IDS["Define"], IDS["as"]
_SO = encode("; so")
_WHAT, _MARK = encode("What is"), IDS["?"]
_VERBS, _SIGNS = [IDS[verb] for verb in VERBS], [IDS[sign] for sign in SIGNS]


def longest(operations: int, unneeded: int) -> int:
    """No problem with its solution has more tokens.

    A parameter with two dependencies takes the most for an operation: 9 for its sentence, 19 for its step.
    One that is not needed takes 12 at most, with three. The frame and the question take 8.
    """
    return 28 * operations + 12 * unneeded + 8


def prompt(problem: Problem) -> list[int]:
    """All sentences and the question, up to `<solution>`."""
    parameters = problem.parameters
    ids = [PROBLEM]
    for place in problem.order:
        name, operator, operands, constant, _ = parameters[place]
        ids += NAMES[name]
        ids.append(_EQUALS)
        for operand in operands:
            ids += NAMES[parameters[operand].name]
            ids.append(_VERBS[operator])
        if constant:
            ids += (ZERO + constant, _STOP)
        else:
            ids[-1] = _STOP  # instead of the last verb
    ids += _WHAT
    ids += NAMES[problem.asked.name]
    ids += (_MARK, SOLUTION)
    return ids


def solution(problem: Problem) -> tuple[list[int], list[int]]:
    """All steps in order, up to `<end>`.

    Returns:
        The ids, and where among them the result of each step stands, the answer last.
    """
    parameters = problem.parameters
    ids: list[int] = []
    results = []
    for parameter, letter in zip(parameters, problem.letters, strict=False):  # letters end with the needed
        name, operator, operands, constant, value = parameter
        variable = FIRST_LETTER + letter
        ids.append(_DEFINE)
        ids += NAMES[name]
        ids += (_AS, variable, *_SO, variable, _IS)
        if operands:
            sign = _SIGNS[operator]
            symbols = [FIRST_LETTER + problem.letters[operand] for operand in operands]
            values = [ZERO + parameters[operand].value for operand in operands]
            if constant:
                symbols.append(ZERO + constant)
                values.append(ZERO + constant)
            for part in (symbols, values):
                for symbol in part:
                    ids += (symbol, sign)
                ids[-1] = _IS  # instead of the last sign
        results.append(len(ids))
        ids += (ZERO + value, _STOP)
    ids.append(END)
    return ids, results
