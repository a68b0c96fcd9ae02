"""The experiments with tasks: their rules on made-up records."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_up_records import Shares, at_least, hops, made_up, small_at_last, verdict

from kvshift.paper.experiment import Scale
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.learning import Curve
from kvshift.tasks.ngram import NGram
from kvshift.training.model import draw_model
from kvshift.training.task_recipe import TaskRecipe

pytest.importorskip("matplotlib")

TRAINED = ("fig1a", "fig1b", "fig3", "fig9", "table7", "vocabulary", "hops_dropout")


# Depth


def depth(*, kv=(0.5, 1.0, 1.0), one=0.05, two=(0.0, 0.0, 0.0), four=(0.0, 0.0, 0.0)) -> Shares:
    def shares(run: Curve) -> dict[str, list[float]]:
        vanilla = {1: [one] * 3, 2: list(two), 4: list(four)}
        return {"first": list(kv) if run.shifted else vanilla[run.layers]}

    return shares


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (depth(), "reproduced"),
        (depth(two=(0, 0, 1)), "reproduced"),
        (depth(two=(0, 1, 1)), "not"),  # as soon
        (depth(four=(1, 1, 1)), "partly"),
        (depth(one=0.3), "partly"),
        (depth(kv=(0, 0.98, 0.98)), "not"),
    ],
)
def test_fig1a(shares, expected) -> None:
    assert verdict("fig1a", "gpu", shares) == expected


def test_fig1a_needs_every_seed() -> None:
    def shares(run: Curve) -> dict[str, list[float]]:
        return depth(two=(1, 1, 1) if run.seed == 2 else (0, 0, 0))(run)

    assert verdict("fig1a", "small", shares) == "not"


# Width


def width(gaps: dict[int, tuple[float, float, float]]) -> Shares:
    """`gaps`: a seed's accuracy above vanilla's by width."""

    def shares(run: Curve) -> dict[str, list[float]]:
        gap = gaps.get(run.width, (0.8, 0.8, 0.8))[run.seed - 1]
        return {"determined": [0.0, 0.1 + gap if run.shifted else 0.1]}

    return shares


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({}, "reproduced"),
        ({128: (0, 0, 0)}, "reproduced"),  # wider than what decides
        ({8: (0.7, 0.7, 0.7)}, "partly"),
        ({8: (0.9, 0.9, 0.0)}, "partly"),  # enough on average, but not by every seed
        (dict.fromkeys((8, 16, 32, 64), (0, 0, 0)), "not"),
        (dict.fromkeys((8, 16, 32, 64), (-0.1, -0.1, -0.1)), "not"),
    ],
)
def test_fig1b(gaps, expected) -> None:
    assert verdict("fig1b", "gpu", width(gaps)) == expected


@pytest.mark.parametrize("scale", ["tiny", "small", "gpu"])
def test_fig1b_leaves_half_of_the_narrowest_head_to_contents(scale: Scale) -> None:
    """In both arms two of its four rotary frequencies hardly turn in a row; wider heads have Llama's own."""
    recipes = [TaskRecipe(**run.settings) for run in EXPERIMENTS["fig1b"].runs[scale]]
    narrowest = [each for each in recipes if each.model["hidden_size"] == 8]
    assert {each.shift is None for each in narrowest} == {True, False}
    assert all("rope_parameters" not in each.model for each in recipes if each not in narrowest)
    for recipe in narrowest:
        turns = draw_model(recipe, 256).model.rotary_emb.inv_freq * recipe.sequence_length
        assert len(turns) == 4
        assert (turns < 0.02).sum() == 2


# 3-gram rules


def ngram(gains: dict[int, tuple[float, float, float]], level=0.6, early=0.0) -> Shares:
    """`gains`: by seed, of each width; `early`: more that KV shift has at the first evaluation alone."""

    def shares(run: Curve) -> dict[str, list[float]]:
        gain = gains.get(run.width, (0.01, 0.0, -0.01))[run.seed % 3] if run.shifted else 0.0
        return {"rules": [0.3 + (early if run.shifted else 0), level + gain]}

    return shares


WIDTHS = (8, 128, 1024)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (ngram({}), "reproduced"),
        (ngram(dict.fromkeys(WIDTHS, (0.03, 0.03, 0.03))), "reproduced"),  # a difference, too small to matter
        (ngram({8: (0.1, 0.0, -0.1)}), "partly"),  # too noisy to tell
        (ngram(dict.fromkeys(WIDTHS, (0.1, 0.0, -0.1))), "undecided"),
        (ngram({8: (0.1, 0.1, 0.1)}), "not"),
        (ngram({8: (-0.1, -0.1, -0.1)}), "not"),
        (ngram({}, early=0.4), "not"),  # the same at the end, but sooner
        (ngram({}, level=0.05), "undecided"),  # nobody learned anything
        (ngram({}, level=0.33), "undecided"),  # only which token follows the last one
        (ngram(dict.fromkeys(WIDTHS, (0.03, 0.03, 0.03)), level=0.32), "undecided"),  # vanilla does no more
    ],
)
def test_fig3(shares, expected) -> None:
    assert verdict("fig3", "gpu", shares) == expected


# 3-gram rules over fewer and more tokens


def ngram_by_vocabulary(fewer: Shares, more: Shares) -> Shares:
    return lambda run: (fewer if "vocab_size" not in run.task_settings else more)(run)


GAIN, NOISE, LOSS = (0.1, 0.1, 0.1), (0.1, 0.0, -0.1), (-0.1, -0.1, -0.1)


@pytest.mark.parametrize(
    ("fewer", "more", "expected"),
    [
        (ngram({8: GAIN}), ngram({}, level=0.98), "reproduced"),
        (ngram({8: GAIN}), ngram({128: NOISE}, level=0.98), "partly"),
        (ngram({8: GAIN}), ngram(dict.fromkeys(WIDTHS, NOISE), level=0.98), "undecided"),
        (ngram({8: NOISE}), ngram({}, level=0.98), "undecided"),
        (ngram({}), ngram({}, level=0.98), "not"),  # no difference there either
        (ngram({8: LOSS}), ngram({}, level=0.98), "not"),
        (ngram({8: GAIN}), ngram({128: GAIN}, level=0.85), "not"),
        (ngram({8: GAIN}), ngram({1024: LOSS}, level=0.98), "not"),
        (ngram({8: GAIN}), ngram({}, level=0.85), "undecided"),  # only which token follows the last one
    ],
)
def test_vocabulary(fewer, more, expected) -> None:
    assert verdict("vocabulary", "gpu", ngram_by_vocabulary(fewer, more)) == expected


def test_vocabulary_tells_what_the_last_token_tells_by_each_runs_rules() -> None:
    shares = ngram_by_vocabulary(ngram({8: GAIN}), ngram({}, level=0.98))
    said = EXPERIMENTS["vocabulary"].judge(made_up("vocabulary", "gpu", shares)).finding
    for vocabulary in (64, 1024):
        rules = [NGram(seed=seed, vocab_size=vocabulary) for seed in (3, 4, 5)]
        found = [each.last_token_ceiling for each in rules]
        assert f"{min(found):.1%} to {max(found):.1%} ({vocabulary:,} tokens)" in said


@pytest.mark.parametrize("scale", ["tiny", "small", "gpu"])
def test_vocabulary_differs_from_fig3_in_tokens_and_seeds_alone(scale) -> None:
    def settings(name: str) -> dict[tuple[int, int | None], list[dict]]:
        found: dict[tuple[int, int | None], list[dict]] = {}
        for run in EXPERIMENTS[name].runs[scale]:
            copy = {**run.settings, "task_settings": dict(run.settings["task_settings"])}
            key = copy.pop("seed"), copy["task_settings"].pop("vocab_size", None)
            found.setdefault(key, []).append(copy)
        return found

    theirs, ours = settings("fig3"), settings("vocabulary")
    assert not {seed for seed, _ in theirs} & {seed for seed, _ in ours}
    every = next(iter(theirs.values()))
    large = max(vocabulary for _, vocabulary in ours if vocabulary is not None)
    for (_, vocabulary), runs in ours.items():
        expected = every if vocabulary == large else every[:2]  # the smallest size alone
        assert sorted(runs, key=repr) == sorted(expected, key=repr)


# Grade-school maths


def maths(
    gain: Callable[[int, int], float],
    level: float = 0.5,
    as_long: Callable[[int], float] = lambda seed: 0.0,
) -> Shares:
    """`gain` by operations of the test and seed; `as_long` by seed, of problems as long as those learned."""

    def shares(run: Curve) -> dict[str, list[float]]:
        more = gain(run.task_settings["test_operations"], run.seed) if run.shifted else 0
        known = 0.6 + as_long(run.seed) if run.shifted else 0.6
        return {"answer": [0.5], "graded": [level + more, known]}

    return shares


def no_longer_ones(test: int, seed: int) -> float:
    """Gains of those who guess."""
    return 0.01


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (maths(lambda test, seed: 0.1), "reproduced"),
        (maths(lambda test, seed: 0.1 if test == 15 else 0.1 * seed), "partly"),
        (maths(lambda test, seed: 0.1 if test == 15 else -0.1), "not"),
        (maths(lambda test, seed: 0.0), "not"),
        (maths(lambda test, seed: 0.0, as_long=lambda seed: 0.1), "not"),
        (maths(lambda test, seed: 0.1, as_long=lambda seed: -0.1), "reproduced"),
        (maths(no_longer_ones, level=0.04), "undecided"),
        (maths(no_longer_ones, level=0.04, as_long=lambda seed: 0.1), "undecided"),
        # Those of 15 operations are learned, those of 24 are not.
        (maths(lambda test, seed: 0.1 if test == 15 else 0.01, level=0.04), "undecided"),
    ],
)
def test_table7(shares, expected) -> None:
    assert verdict("table7", "gpu", shares) == expected


def test_table7_takes_few_unneeded_parameters_at_scale_small() -> None:
    settings = [run.settings["task_settings"] for run in EXPERIMENTS["table7"].runs["small"]]
    assert all(each["unneeded"] == 1 and each["length"] == 192 for each in settings)


def test_table7_tells_of_both_lengths() -> None:
    shares = maths(lambda test, seed: 0.1, as_long=lambda seed: 0.1 * (seed + 1))
    judged = EXPERIMENTS["table7"].judge(made_up("table7", "gpu", shares))
    assert "12 → 15: 0.500, 0.600; 21 → 24: 0.500, 0.600" in judged.ours
    assert "24 operations 0.100 [0.100, 0.100]. Of problems as long" in judged.finding
    assert "12 operations 0.600, 0.800, a gain of 0.200 [-0.048, 0.448]" in judged.finding
    assert "12 operations 0.300, 0.400; 15 operations 0.250, 0.300; 21" in judged.finding


# Every rule


@pytest.mark.parametrize("points", [0, 1])
@pytest.mark.parametrize("name", TRAINED)
def test_a_baseline_that_diverged_is_not_beaten(name, points) -> None:
    right = {
        "fig1a": depth(),
        "fig1b": width({}),
        "fig3": ngram({}),
        "fig9": hops(at_least(0.05), small_at_last),
        "table7": maths(lambda test, seed: 0.1),
        "vocabulary": ngram_by_vocabulary(ngram({8: GAIN}), ngram({}, level=0.98)),
        "hops_dropout": hops(at_least(0.05)),
    }
    found = made_up(name, "gpu", right[name])
    assert EXPERIMENTS[name].judge(found).verdict == "reproduced"
    vanilla = next(each for each in found if each.settings["shift"] is None)
    vanilla.measured.update(status="diverged", points=vanilla.measured["points"][:points], grades={})
    judged = EXPERIMENTS[name].judge(found)
    assert judged.verdict == "undecided"
    assert "vanilla" in judged.finding
    assert EXPERIMENTS[name].draw(found, "png").startswith(b"\x89PNG")
