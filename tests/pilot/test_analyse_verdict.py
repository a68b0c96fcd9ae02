"""The verdict's rule: each case by hand, and how often chance alone would pass it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from kvshift.pilot.results import Estimate, Verdict
from kvshift.pilot.statistics import mean_interval
from kvshift.pilot.verdict import MARGIN, MOST_SEEDS, Effort, Evidence, Reason, decide, seeds_needed

EFFORT = Effort(seconds=600, seconds_per_seed=180, fixed_seconds=60)
LOSS = 4.0
CLAIMS = {"adopt", "harmful"}
COUNTS = {"pairs", "candidate_diverged", "baseline_diverged"}
GAINS = {"gain", "low", "high", "largest_gain", "largest_low", "largest_high", "margin", "gain_share"}
ASKS = {"seeds_needed", "seeds_now", "capped"}


def judge(differences: Any, **changes: Any) -> Verdict:
    """The verdict on a (sizes, seeds) table of gains."""
    table = np.asarray(differences, dtype=float)
    evidence = {
        "overall": mean_interval(table.mean(axis=0)),
        "overall_seeds": table.shape[1],
        "largest": mean_interval(table[-1]),
        "differences": table.ravel().tolist(),
        "baseline_loss": LOSS,
        "throughput_ratio": 1.0,
        "time_saved": saved(0.3, 0.2, 0.4),
        "data_saved": 0.3,
    }
    return decide(Evidence(**(evidence | changes)), EFFORT)


def saved(value: float, low: float | None, high: float | None) -> Estimate:
    """Of the training time."""
    return Estimate(value=value, low=low, high=high, n=3)


CLEAR = [[0.30, 0.31, 0.29], [0.20, 0.22, 0.21], [0.10, 0.11, 0.12]]
HARM = [[-gain for gain in row] for row in CLEAR]
NOISE = [[0.1, -0.12, 0.02], [-0.05, 0.08, 0.03], [0.06, -0.07, 0.01]]
TINY = [[0.001, -0.002, 0.001], [0.0, 0.001, -0.001], [0.002, -0.001, 0.0]]
FADES = [[0.50, 0.52, 0.51], [0.30, 0.31, 0.29], [0.01, -0.02, 0.09]]
SMALL = [[0.0110, 0.0112, 0.0111], [0.011, 0.0111, 0.0112], [0.009, 0.012, 0.015]]
# Overall, a gain of the margin is excluded; at the largest size it is not.
WIDE_TOP = [[-0.041, 0.039, 0.001], [0.001, 0.0, -0.001], [0.041, -0.039, 0.0]]
MIXED = [[-0.20, -0.21, -0.19], [-0.3, -0.3, -0.3], [0.9, 0.92, 0.91]]


@pytest.mark.parametrize(
    ("table", "changes", "decision", "decided", "reason"),
    [
        (CLEAR, {}, "adopt", True, Reason.ADOPT_CLEAR),
        (CLEAR, {"throughput_ratio": None, "time_saved": None}, "adopt", True, Reason.ADOPT_TIME_UNCLEAR),
        (CLEAR, {"throughput_ratio": 0.9}, "adopt", True, Reason.ADOPT_SLOWER),
        (CLEAR, {"time_saved": saved(0.1, -0.1, 0.3)}, "adopt", True, Reason.ADOPT_TIME_UNCLEAR),
        (CLEAR, {"time_saved": saved(-0.1, -0.3, 0.1)}, "adopt", True, Reason.ADOPT_TIME_UNCLEAR),
        (CLEAR, {"time_saved": saved(0.1, None, None)}, "adopt", True, Reason.ADOPT_TIME_UNCLEAR),
        (CLEAR, {"time_saved": saved(0.1, 0.05, None)}, "adopt", True, Reason.ADOPT_CLEAR),
        (CLEAR, {"time_saved": saved(-0.1, None, -0.05)}, "bigger_pilot", True, Reason.GAIN_BUT_SLOWER),
        (CLEAR, {"time_saved": saved(-0.1, -0.2, -0.05)}, "bigger_pilot", True, Reason.GAIN_BUT_SLOWER),
        (CLEAR, {"candidate_diverged": 1}, "bigger_pilot", False, Reason.CANDIDATE_UNSTABLE),
        (CLEAR, {"baseline_diverged": 3}, "adopt", True, Reason.ADOPT_CLEAR),
        (CLEAR, {"candidate_diverged": 6}, "harmful", True, Reason.HARMFUL_DIVERGES),
        (CLEAR, {"largest": None}, "bigger_pilot", False, Reason.FEW_PAIRS),
        (CLEAR, {"overall": None}, "bigger_pilot", False, Reason.FEW_PAIRS),
        (CLEAR, {"largest": mean_interval([0.1])}, "bigger_pilot", False, Reason.FEW_PAIRS),
        (HARM, {}, "harmful", True, Reason.HARMFUL_CLEAR),
        (NOISE, {}, "bigger_pilot", False, Reason.UNDECIDED),
        (TINY, {}, "no_benefit", False, Reason.NULL_PRECISE),
        (FADES, {}, "bigger_pilot", False, Reason.LARGEST_UNCLEAR),
        (SMALL, {}, "bigger_pilot", False, Reason.GAIN_SMALL),
        (MIXED, {}, "bigger_pilot", False, Reason.PAIRS_DISAGREE),
        (-np.array(SMALL), {}, "no_benefit", True, Reason.NULL_PRECISE),  # harm below the margin
        (WIDE_TOP, {}, "bigger_pilot", False, Reason.UNDECIDED),
        (np.zeros((3, 3)), {}, "no_benefit", False, Reason.NULL_PRECISE),
        (np.full((3, 3), 0.005), {}, "no_benefit", True, Reason.NULL_PRECISE),
    ],
)
def test_rule(table, changes, decision, decided, reason):
    verdict = judge(table, **changes)
    assert (verdict.decision, verdict.decided, verdict.reason) == (decision, decided, reason)
    promised = set(COUNTS)
    if reason not in (Reason.FEW_PAIRS, Reason.HARMFUL_DIVERGES):
        promised |= GAINS
    if decision == "bigger_pilot":
        promised |= ASKS
        assert verdict.next_budget_seconds >= 2 * EFFORT.seconds
    else:
        assert verdict.next_budget_seconds is None
    if reason in (Reason.ADOPT_CLEAR, Reason.ADOPT_SLOWER, Reason.GAIN_BUT_SLOWER):
        promised |= {"throughput_ratio", "time_saved"}
    assert promised <= set(verdict.values)


def test_every_reason_has_a_case():
    (cases,) = (mark.args[1] for mark in test_rule.pytestmark)
    assert {case[-1] for case in cases} == set(Reason)


def test_undecided_is_said_whenever_the_interval_spans_zero():
    random = np.random.default_rng(3)
    for _ in range(500):
        table = random.normal(random.normal(0, 0.05), 0.05, size=(3, 3))
        verdict = judge(table)
        if not mean_interval(table.mean(axis=0)).clear_of_zero:
            assert not verdict.decided
            assert verdict.decision in ("bigger_pilot", "no_benefit")


def test_swapping_the_arms_swaps_adopt_and_harmful():
    random = np.random.default_rng(4)
    swapped = {"adopt": "harmful", "harmful": "adopt"}
    seen = Counter()
    for _ in range(300):
        table = random.normal(random.choice([-0.3, 0.3]), 0.05, size=(2, 3))
        here, there = judge(table).decision, judge(-table).decision
        seen[here] += 1
        if here in swapped:
            assert there == swapped[here]
    assert seen["adopt"] > 50
    assert seen["harmful"] > 50


# Shapes of the noise between two identical arms: normal; heavy tails; two groups of runs, those that found
# induction in time and those that did not, so that a pair differs by -1, 0 or 1 and a little.
def normal(random, shape):
    return random.normal(size=shape)


def heavy(random, shape):
    return random.standard_t(3, size=shape)


def groups(random, shape):
    return random.integers(2, size=shape) - random.integers(2, size=shape) + 0.1 * random.normal(size=shape)


@pytest.mark.parametrize("noise", [normal, heavy, groups])
@pytest.mark.parametrize("spreads", [[0.05, 0.05], [0.05, 0.05, 0.05], [0.15, 0.05, 0.02], [0.01, 0.03, 0.1]])
@pytest.mark.parametrize("correlated", [False, True])
def test_identical_arms_are_rarely_told_apart(noise, spreads, correlated):
    random = np.random.default_rng(5)
    pilots, claims = 1500, 0
    for _ in range(pilots):
        table = noise(random, (len(spreads), 3))
        if correlated:
            table = (table + noise(random, (1, 3))) / np.sqrt(2)
        verdict = judge(table * np.array(spreads)[:, None])
        claims += verdict.decision in CLAIMS or (verdict.decided and verdict.decision != "no_benefit")
    assert claims / pilots <= 0.05


def test_one_size_claims_at_the_intervals_own_rate():
    random = np.random.default_rng(6)
    pilots = 4000
    claims = sum(judge(random.normal(0, 0.05, size=(1, 4))).decision in CLAIMS for _ in range(pilots))
    assert claims / pilots <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / pilots)


@pytest.mark.parametrize(("effect", "least"), [(3.0, 0.6), (5.0, 0.9)])
def test_real_effects_are_found(effect, least):
    random = np.random.default_rng(7)
    pilots = 500
    found = sum(
        judge(random.normal(effect, 1, size=(3, 3)) * 0.05).decision == "adopt" for _ in range(pilots)
    )
    assert found / pilots >= least


def test_the_next_budget_pays_for_the_seeds_it_names():
    verdict = judge(NOISE)
    seeds = verdict.values["seeds_needed"]
    assert verdict.values["seeds_now"] == 3
    assert 3 < seeds <= MOST_SEEDS
    least = EFFORT.fixed_seconds + seeds * EFFORT.seconds_per_seed
    assert least <= verdict.next_budget_seconds < least + 60


def test_a_large_estimate_needs_no_more_than_its_own_size():
    """Seeds enough to tell 0.15 from zero are asked for, not those that would find the margin of 0.012."""
    table = [[0.3, 0.02, 0.13]]
    verdict = judge(table)
    estimate = mean_interval(table[0])
    assert verdict.reason == Reason.UNDECIDED
    assert verdict.values["seeds_needed"] == seeds_needed(estimate, 3, estimate.value / 1.25)
    assert verdict.values["seeds_needed"] < seeds_needed(estimate, 3, MARGIN * LOSS)


def test_hopeless_noise_is_capped():
    verdict = judge([[3.0, -3.1, 0.2], [2.0, -2.2, 0.1]])
    assert verdict.values["capped"] == 1.0
    assert verdict.values["seeds_needed"] == MOST_SEEDS


def test_seeds_needed_would_narrow_the_interval():
    """With the same spread, the number named is enough and one seed fewer is not."""
    spread, target = 0.05, 0.03
    estimate = mean_interval(np.array([-1.0, 0.0, 1.0]) * spread)
    needed = seeds_needed(estimate, 3, target)

    def half(n: int) -> float:
        found = mean_interval(standardised(n) * spread)
        return (found.high - found.low) / 2

    assert half(needed) < target <= half(needed - 1)


def standardised(n: int) -> np.ndarray:
    """n numbers with mean 0 and sample standard deviation 1."""
    numbers = np.arange(n, dtype=float)
    return (numbers - numbers.mean()) / numbers.std(ddof=1)


def test_margin_is_a_share_of_the_largest_baseline():
    assert judge(CLEAR).values["margin"] == pytest.approx(MARGIN * LOSS)
    assert judge(CLEAR).values["gain_share"] == pytest.approx(0.11 / LOSS)
