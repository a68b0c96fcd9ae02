"""Following a derivation step by step, to where it first goes wrong.

A step is right if

- it defines a parameter of the problem that no step before it has defined, by a letter still free;
- it computes it from what the problem says, each operand by the letter of an earlier step (a sum's and a
  product's operands, and what a difference takes away, may come in any order);
- it puts in the numbers those letters stand for, in the order of the letters;
- its result is right modulo 23.

A derivation is right if all its steps are, the last of them defines what was asked, and it ends there. Steps
the question does not need are counted and allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvshift.tasks.gsm.problem import Parameter, Problem
from kvshift.tasks.gsm.words import (
    END,
    FIRST_LETTER,
    IDS,
    LETTERS,
    NAMES,
    SIGNS,
    ZERO,
    decode,
    word,
)

_DEFINE, _IS, _STOP = IDS["Define"], IDS["="], IDS["."]


@dataclass(frozen=True)
class Mistake:
    """Where a derivation first goes wrong.

    Attributes:
        step: counted from 0.
        position: index of the first token that is wrong; the derivation's length if one is missing.
        reason: in plain words.
    """

    step: int
    position: int
    reason: str


@dataclass(frozen=True)
class Derivation:
    """What was found in a derivation.

    Attributes:
        steps: how many steps are right before the first mistake.
        unneeded: how many of those the question does not need.
        answers: the paper's score: some step, whatever stands around it, computes the asked quantity
            correctly.
        mistake: None if all is right: the strict score.
    """

    steps: int
    unneeded: int
    answers: bool
    mistake: Mistake | None

    @property
    def right(self) -> bool:
        return self.mistake is None


def check(problem: Problem, derivation: Sequence[int]) -> Derivation:
    """Follows the ids after `<solution>`. What comes after `<end>`, padding say, is not looked at."""
    ids = list(derivation)
    if END in ids:
        ids = ids[: ids.index(END) + 1]
    reader = _Reader(problem, ids)
    mistake = None
    try:
        reader.read()
    except _WrongToken as wrong:
        mistake = Mistake(len(reader.letters), wrong.position, wrong.reason)
    unneeded = sum(place >= problem.needed for place in reader.letters)
    return Derivation(len(reader.letters), unneeded, _answers(problem, ids), mistake)


def _answers(problem: Problem, ids: list[int]) -> bool:
    """Whether some step begins `Define ASKED as` and its sentence ends in `= VALUE.` with the true value."""
    begin = [_DEFINE, *NAMES[problem.asked.name], IDS["as"]]
    end = [_IS, ZERO + problem.asked.value, _STOP]
    for place in range(len(ids)):
        if ids[place : place + len(begin)] == begin and _STOP in ids[place:]:
            stop = ids.index(_STOP, place)
            if ids[stop - 2 : stop + 1] == end and _DEFINE not in ids[place + 1 : stop]:
                return True
    return False


class _WrongToken(Exception):
    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class _Reader:
    """Reads steps one after another; `letters` holds, by place in the problem, those of the right ones."""

    def __init__(self, problem: Problem, ids: list[int]) -> None:
        self.problem = problem
        self.ids = ids
        self.at = 0
        self.letters: dict[int, int] = {}
        self._place_of = {NAMES[parameter.name]: i for i, parameter in enumerate(problem.parameters)}

    def read(self) -> None:
        """Raises _WrongToken at the first mistake."""
        asked = self.problem.needed - 1
        while asked not in self.letters:
            if self.ids[self.at : self.at + 1] == [END]:
                raise _WrongToken(self.at, f"ends before {self._name(asked)} is computed")
            place, letter = self._step()
            self.letters[place] = letter
        self._expect(END)

    def _step(self) -> tuple[int, int]:
        self._expect(_DEFINE)
        begin = self.at
        name = (self._next(), self._next())
        place = self._place_of.get(name)
        if place is None:
            raise _WrongToken(begin, f"{decode(name)} is not in the problem")
        if place in self.letters:
            raise _WrongToken(begin, f"defines {decode(name)} a second time")
        self._expect(IDS["as"])
        letter = self._next()
        if not FIRST_LETTER <= letter < FIRST_LETTER + LETTERS:
            raise _WrongToken(self.at - 1, f"{word(letter)!r} is not a letter")
        if letter in self.letters.values():
            raise _WrongToken(self.at - 1, f"the letter {word(letter)} is taken")
        for expected in (IDS[";"], IDS["so"], letter, _IS):
            self._expect(expected)
        parameter = self.problem.parameters[place]
        if parameter.operands:
            self._expressions(parameter)
        self._expect(ZERO + parameter.value, "the result")
        self._expect(_STOP)
        return place, letter

    def _expressions(self, parameter: Parameter) -> None:
        """`K - 4 = 9 - 4 =`: letters, then the numbers they stand for."""
        for operand in parameter.operands:
            if operand not in self.letters:
                raise _WrongToken(self.at, f"needs {self._name(operand)}, which no step has defined")
        # The letter or number of every operand and what it is worth.
        worth = {self.letters[place]: self.problem.parameters[place].value for place in parameter.operands}
        if parameter.constant:
            worth[ZERO + parameter.constant] = parameter.constant
        sign = IDS[SIGNS[parameter.operator]]
        first = next(iter(worth))
        left = Counter(worth.keys())
        read: list[int] = []
        while +left:
            if read:
                self._expect(sign, "the operation")
            symbol = self._next()
            misplaced = SIGNS[parameter.operator] == "-" and not read and symbol != first
            if not left[symbol] or misplaced:
                raise _WrongToken(self.at - 1, f"{word(symbol)!r} is not the operand that belongs here")
            left[symbol] -= 1
            read.append(symbol)
        self._expect(_IS)
        for number, symbol in enumerate(read):
            if number:
                self._expect(sign, "the operation")
            self._expect(ZERO + worth[symbol], f"the value of {word(symbol)}")
        self._expect(_IS)

    def _next(self) -> int:
        if self.at == len(self.ids):
            raise _WrongToken(self.at, "breaks off")
        self.at += 1
        return self.ids[self.at - 1]

    def _expect(self, expected: int, what: str = "") -> None:
        found = self._next()
        if found != expected:
            meant = f" for {what}" if what else ""
            raise _WrongToken(self.at - 1, f"expected {word(expected)!r}{meant}, found {word(found)!r}")

    def _name(self, place: int) -> str:
        return decode(NAMES[self.problem.parameters[place].name])
