"""A problem is an acyclic graph of parameters, of which one is asked for.

A parameter "category.item" is computed, modulo 23, from the d parameters it depends on:

    d = 0     a constant from 1 to 22                                        1 operation
    d = 1     that one +, − or × a constant from 1 to 22                     1 operation
    d = 2, 3  their sum, the first minus the others, or their product        d - 1 operations

A problem of n operations is one whose *solution* takes n: those of all parameters that the asked one depends
on, directly or not, and its own. (That writing a constant down counts as one is decided here; the paper does
not say.)

**The graph** grows from the asked parameter towards the constants. A parameter is taken at random from
those that wait to be decided; it gets 0 to 3 dependencies, some of which are others that wait and some new
ones that wait from then on. Dependencies always wait when they are chosen, so the order in which parameters
were taken, reversed, is a topological order. How many dependencies, and how many of them are new, is drawn
uniformly from what leaves a way to end with exactly n operations, so nothing is drawn in vain.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from kvshift.tasks.gsm.words import LETTERS, MODULUS, NAMES

MOST_DEPENDENCIES = 3
MOST_OPERATIONS = LETTERS  # one letter a parameter


class Parameter(NamedTuple):
    """One quantity and how it follows from others.

    Attributes:
        name: index into `words.NAMES`.
        operator: index into `words.SIGNS`; 0 for a constant, which has none.
        operands: indices of other parameters of the problem, all smaller than its own.
        constant: 1 to 22; 0 where there is none.
        value: 0 to 22.
    """

    name: int
    operator: int
    operands: tuple[int, ...]
    constant: int
    value: int

    @property
    def operations(self) -> int:
        """How many operations its step takes."""
        return max(1, len(self.operands) - 1)


class Problem(NamedTuple):
    """What is said, in which order, and what is asked.

    Attributes:
        parameters: in a topological order. The first `needed` are those the question needs; the last of
            them is the asked one.
        needed: at least 1.
        order: the sentences, as indices into `parameters`.
        letters: what the solution calls each needed parameter, 0 to 51, each the one after the letter
            before it; 51 is followed by 0.
    """

    parameters: tuple[Parameter, ...]
    needed: int
    order: tuple[int, ...]
    letters: tuple[int, ...]

    @property
    def asked(self) -> Parameter:
        return self.parameters[self.needed - 1]

    @property
    def operations(self) -> int:
        """How many operations the solution takes."""
        return sum(parameter.operations for parameter in self.parameters[: self.needed])


def draw_problem(random: Random, operations: int, unneeded: int) -> Problem:
    """A problem whose solution takes exactly `operations`, with `unneeded` parameters beside it.

    Unneeded parameters depend on any that come before them, needed or not. The first letter is drawn from all
    52, so that a longer solution than those learned from uses no letter for the first time. The others follow
    in order, which is decided here: of letters that are all drawn, whoever writes the likeliest token may
    well write one that is taken, for that it is makes the others hardly likelier.
    """
    graph = _draw_graph(random, operations)
    needed = len(graph)
    for size in range(needed, needed + unneeded):
        graph.append(tuple(random.sample(range(size), min(_below(random, MOST_DEPENDENCIES + 1), size))))
    parameters: list[Parameter] = []
    for name, operands in zip(random.sample(range(len(NAMES)), len(graph)), graph, strict=True):
        operator = _below(random, 3) if operands else 0
        constant = 1 + _below(random, MODULUS - 1) if len(operands) < 2 else 0
        values = [parameters[operand].value for operand in operands]
        value = compute(operator, [*values, constant] if constant else values)
        parameters.append(Parameter(name, operator, operands, constant, value))
    order = list(range(len(graph)))
    random.shuffle(order)
    first = _below(random, LETTERS)
    letters = tuple((first + place) % LETTERS for place in range(needed))
    return Problem(tuple(parameters), needed, tuple(order), letters)


def compute(operator: int, values: list[int]) -> int:
    """Sum, first minus the others, or product, modulo 23; a single value is itself."""
    if operator == 0:
        return sum(values) % MODULUS
    result = values[0]
    for value in values[1:]:
        result = result - value if operator == 1 else result * value
    return result % MODULUS


def _draw_graph(random: Random, operations: int) -> list[tuple[int, ...]]:
    """What each needed parameter depends on, in a topological order with the asked one last."""
    waiting = [0]
    taken: list[int] = []
    depends: list[list[int]] = [[]]
    left = operations  # never less than the number that wait: each takes one at least
    while waiting:
        place = _below(random, len(waiting))
        node, waiting[place] = waiting[place], waiting[-1]
        waiting.pop()
        others = len(waiting)
        choices = []
        for count in range(MOST_DEPENDENCIES + 1):
            after = left - max(1, count - 1)
            # Some must be new if too few wait, or if nothing would wait with operations left.
            least = max(count - others, int(others == 0 and after > 0), 0)
            most = min(count, after - others)
            if least <= most:
                choices.append((count, least, most, after))
        count, least, most, left = choices[_below(random, len(choices))]
        new = least + _below(random, most - least + 1)
        chosen = random.sample(waiting, count - new) if count > new else []
        for _ in range(new):
            chosen.append(len(depends))
            waiting.append(len(depends))
            depends.append([])
        if len(chosen) > 1:
            random.shuffle(chosen)  # the first is what others are subtracted from
        depends[node] = chosen
        taken.append(node)
    taken.reverse()
    place_of = {node: place for place, node in enumerate(taken)}
    return [tuple(place_of[operand] for operand in depends[node]) for node in taken]


def _below(random: Random, bound: int) -> int:
    """Uniform from 0 to `bound - 1`, in a third of the time of `randrange`."""
    return int(random.random() * bound)
