"""Derivations right and wrong, and where they first go wrong."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshift.errors import UsageError
from kvshift.tasks.gsm import Problem, check, draw_problem, encode, solution
from kvshift.tasks.gsm.words import END, IDS, PAD, WORDS

OWL = "Define barn.owl as k; so k = 9. "
HAT = "Define mill.hat as b; so b = 20. "
BOAT = "Define cabin.boat as A; so A = k - 12 = 9 - 12 = 20. "
ROPE = "Define tower.rope as d; so d = b + k + A = 20 + 9 + 20 = 3. "
BELL = "Define farm.bell as Z; so Z = A - d = 20 - 3 = 17. "
KITE = "Define lake.kite as u; so u = k * Z = 9 * 17 = 15. "
ALL = OWL + HAT + BOAT + ROPE + BELL + "<end>"

# The derivation up to a step, or up to the letter of a step.
AT_2, AT_3, AT_END = OWL + HAT, OWL + HAT + BOAT, OWL + HAT + BOAT + ROPE + BELL
AT_BOAT = OWL + HAT + "Define cabin.boat as A; "
AT_ROPE = OWL + HAT + BOAT + "Define tower.rope as d; "
AT_BELL = OWL + HAT + BOAT + ROPE + "Define farm.bell as Z; "


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (ALL, 5),
        (HAT + OWL + BOAT + ROPE + BELL + "<end>", 5),  # another topological order
        (ALL.replace("b + k + A = 20 + 9 + 20", "A + b + k = 20 + 20 + 9"), 5),  # a sum in another order
        (ALL.replace("b + k + A = 20 + 9 + 20", "k + A + b = 9 + 20 + 20"), 5),
        (ALL.replace("k", "q").replace("Z", "a"), 5),  # other letters
        (ALL + " Define <pad> kite", 5),  # what follows the end
    ],
)
def test_right_derivations(by_hand: Problem, text: str, steps: int) -> None:
    found = check(by_hand, encode(text))
    assert (found.right, found.answers, found.steps, found.unneeded) == (True, True, steps, 0)


def test_steps_that_are_not_needed_are_counted(by_hand: Problem) -> None:
    pig = Problem(
        (
            *by_hand.parameters,
            by_hand.parameters[5]._replace(name=0, operator=0, operands=(), constant=4, value=4),
        ),
        by_hand.needed,
        (*by_hand.order, 6),
        by_hand.letters,
    )
    found = check(pig, encode("Define attic.apple as x; so x = 4. " + ALL))
    assert (found.right, found.answers, found.steps, found.unneeded) == (True, True, 6, 1)


@pytest.mark.parametrize(
    ("text", "step", "wrong", "reason", "answers"),
    [
        # `wrong` is the text up to the first wrong token.
        ("<end>", 0, "", "ends before farm.bell is computed", False),
        ("", 0, "", "breaks off", False),
        (OWL + "<end>", 1, OWL, "ends before farm.bell is computed", False),
        (OWL + HAT + BELL + "<end>", 2, AT_2 + "Define farm.bell as Z; so Z =", "needs cabin.boat", True),
        (AT_END, 5, AT_END, "breaks off", True),
        (ALL.replace("<end>", KITE + "<end>"), 5, AT_END, "expected '<end>', found 'Def", True),
        (ALL.replace("as d", "as k"), 3, AT_3 + "Define tower.rope as", "the letter k is taken", True),
        (OWL + ALL, 1, OWL + "Define", "defines barn.owl a second time", True),
        (ALL.replace("tower.rope", "tower.hat"), 3, AT_3 + "Define", "tower.hat is not in the pr", True),
        (ALL.replace("tower.rope", "5 rope"), 3, AT_3 + "Define", "5 rope is not in the problem", True),
        (ALL.replace("as b", "as 7"), 1, OWL + "Define mill.hat as", "'7' is not a letter", True),
        (ALL.replace("so b", "so k"), 1, OWL + "Define mill.hat as b; so", "expected 'b', found 'k'", True),
        (
            ALL.replace("b = 20", "b = 21"),
            1,
            OWL + "Define mill.hat as b; so b =",
            "expected '20' for the result",
            True,
        ),
        (ALL.replace("k - 12", "k + 12"), 2, AT_BOAT + "so A = k", "expected '-' for the operation", True),
        (
            ALL.replace("k - 12", "12 - k"),
            2,
            AT_BOAT + "so A =",
            "'12' is not the operand that belongs",
            True,
        ),
        (ALL.replace("k - 12", "k - 11"), 2, AT_BOAT + "so A = k -", "'11' is not the operand", True),
        (
            ALL.replace("k - 12 = 9", "k - 12 = 8"),
            2,
            AT_BOAT + "so A = k - 12 =",
            "expected '9' for the value of k",
            True,
        ),
        (ALL.replace("b + k + A", "b + b + A"), 3, AT_ROPE + "so d = b +", "'b' is not the operand", True),
        (
            ALL.replace("b + k + A =", "b + k ="),
            3,
            AT_ROPE + "so d = b + k",
            "expected '+' for the oper",
            True,
        ),
        (
            ALL.replace("20 + 9 + 20 =", "20 + 20 + 9 ="),
            3,
            AT_ROPE + "so d = b + k + A = 20 +",
            "value of k",
            True,
        ),
        (
            ALL.replace("= 3.", "= 4."),
            3,
            AT_ROPE + "so d = b + k + A = 20 + 9 + 20 =",
            "expected '3' for the result, found '4'",
            True,
        ),
        (ALL.replace("A - d", "d - A"), 4, AT_BELL + "so Z =", "'d' is not the operand", True),
        (
            ALL.replace("= 17.", "= 16."),
            4,
            AT_BELL + "so Z = A - d = 20 - 3 =",
            "expected '17' for the res",
            False,
        ),
        (BELL + ALL, 0, "Define farm.bell as Z; so Z =", "needs cabin.boat, which no step has defined", True),
    ],
)
def test_where_it_first_goes_wrong(
    by_hand: Problem, text: str, step: int, wrong: str, reason: str, answers: bool
) -> None:
    found = check(by_hand, encode(text))
    assert found.mistake is not None
    assert (found.mistake.step, found.mistake.position) == (step, len(encode(wrong)))
    assert reason in found.mistake.reason
    assert (found.right, found.answers, found.steps) == (False, answers, step)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (BELL, True),  # alone, unfinished
        ("Define farm.bell as a; so a = 17.", True),  # right, whatever stands before it
        ("Define farm.bell as a; so a = 3 + 4 = 17.", True),
        ("Define farm.bell as a; so a = 17", False),  # no end
        ("Define farm.bell as a; so a = 16. Define farm.bell as a; so a = 17.", True),
        ("Define farm.bell as a; so a = Define lake.kite as u; so u = 17.", False),  # another's
        ("Define farm.bell as a; so a = 17 + 1 = 18.", False),
        ("Define farm.bell; so a = 17.", False),
        ("Define farm.boat as a; so a = 17.", False),
        ("What is farm.bell as a; so a = 17.", False),
        ("<end> " + BELL, False),  # after the end
    ],
)
def test_the_lenient_score(by_hand: Problem, text: str, answers: bool) -> None:
    found = check(by_hand, encode(text))
    assert (found.answers, found.right) == (answers, False)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24), st.data())
def test_no_token_can_be_replaced(seed: int, operations: int, data: st.DataObject) -> None:
    problem = draw_problem(Random(seed), operations, 3)
    ids, results = solution(problem)
    assert check(problem, ids).right
    place = data.draw(st.integers(0, len(ids) - 1))
    instead = data.draw(st.integers(-1, len(WORDS)).filter(lambda token: token != ids[place]))
    found = check(problem, [*ids[:place], instead, *ids[place + 1 :]])
    assert found.mistake is not None
    # Not before the token, and not after the step that holds it. (What is wrong with a name
    # shows in its category; a letter that is introduced wrongly, where the next one differs.)
    step = next((i for i, result in enumerate(results) if place <= result + 1), len(results))
    assert found.mistake.step == found.steps == step
    assert found.mistake.position >= place - (ids[place - 1] in range(IDS["attic."], IDS["apple"]))
    assert found.mistake.position <= (results[step] + 1 if step < len(results) else place)
    if step != len(results) - 1 and instead != END:
        assert found.answers


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24), st.data())
def test_every_cut_is_noticed_at_its_end(seed: int, operations: int, data: st.DataObject) -> None:
    problem = draw_problem(Random(seed), operations, 3)
    ids, results = solution(problem)
    length = data.draw(st.integers(0, len(ids) - 1))
    found = check(problem, ids[:length])
    assert found.mistake is not None
    assert (found.mistake.position, found.mistake.reason) == (length, "breaks off")
    assert found.steps == sum(result + 1 < length for result in results)
    assert found.answers == (length > results[-1] + 1)
    assert check(problem, [*ids, *[PAD] * 5]).right


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(-2, len(WORDS) + 20), max_size=40))
def test_any_tokens_can_be_checked(seed: int, ids: list[int]) -> None:
    found = check(draw_problem(Random(seed), 5, 2), ids)
    assert not found.right
    assert found.mistake is not None
    assert 0 <= found.mistake.position <= len(ids)


def test_words_that_are_none() -> None:
    with pytest.raises(UsageError, match="'pony' is not a word"):
        encode("barn.pony equals 5.")
