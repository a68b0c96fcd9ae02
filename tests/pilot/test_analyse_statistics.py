"""Intervals: right by hand, and right about as often as they claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kvshift.pilot.statistics import (
    censored_interval,
    mean_interval,
    ratio_interval,
    share_interval,
    t_quantile,
)

PILOTS = 20_000


def test_interval_is_scipys_one_sample_t():
    values = [0.12, 0.05, 0.31, 0.2]
    ours = mean_interval(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.value == pytest.approx(np.mean(values))
    assert ours.n == 4


def test_none_one_and_identical_values():
    assert mean_interval([]) is None
    one = mean_interval([0.3])
    assert (one.value, one.low, one.high, one.n) == (0.3, None, None, 1)
    same = mean_interval([0.1, 0.1, 0.1])
    assert same.low == same.high == same.value
    zero = mean_interval([0.0, 0.0, 0.0])
    assert not zero.clear_of_zero


def test_ratio_inverts_when_the_arms_are_swapped():
    ratios = [0.8, 0.95, 1.1]
    forward, backward = ratio_interval(ratios), ratio_interval([1 / ratio for ratio in ratios])
    assert backward.value == pytest.approx(1 / forward.value)
    assert (backward.low, backward.high) == pytest.approx((1 / forward.high, 1 / forward.low))


def test_shares_stay_within_everything():
    wide = share_interval([-1.7, 0.9])
    assert (wide.low, wide.high) == (-1, 1)
    assert wide.value == pytest.approx(-0.05)


def test_bounds_open_the_interval_on_their_side():
    values = [0.5, 0.45, 0.5]
    assert censored_interval(values, above=2).high is None
    assert censored_interval(values, above=2).low == share_interval(values).low
    assert censored_interval(values, below=1).low is None
    assert censored_interval(values, below=1).high == share_interval(values).high


def gains(sizes: list[float], seeds: int, correlation: float) -> np.ndarray:
    """(PILOTS, sizes, seeds) normal differences with these spreads, correlated between sizes by seed."""
    random = np.random.default_rng(1)
    shared = random.normal(size=(PILOTS, 1, seeds))
    own = random.normal(size=(PILOTS, len(sizes), seeds))
    mixed = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    return mixed * np.array(sizes)[:, None]


def covers(values: np.ndarray) -> float:
    """How often the interval over the last axis holds the true mean of zero."""
    n = values.shape[-1]
    half = t_quantile(n - 1) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    return float(np.mean(np.abs(values.mean(axis=-1)) <= half))


@pytest.mark.parametrize("spreads", [[0.05, 0.05, 0.05], [0.15, 0.05, 0.02], [0.02, 0.02, 0.2]])
@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage_holds_with_unequal_and_correlated_spreads(spreads, correlation, seeds):
    values = gains(spreads, seeds, correlation)
    standard_error = np.sqrt(0.05 * 0.95 / PILOTS)
    assert covers(values.mean(axis=1)) == pytest.approx(0.95, abs=4 * standard_error)
    assert covers(values[:, 0]) == pytest.approx(0.95, abs=4 * standard_error)


def test_the_vectorised_interval_is_the_one_analysed():
    values = gains([0.1], 3, 0.0)[:200, 0]
    inside = [low <= 0 <= high for low, high in ((e.low, e.high) for e in map(mean_interval, values))]
    assert covers(values) == pytest.approx(np.mean(inside))


def test_pooling_over_sizes_would_claim_too_much():
    """The reason in `statistics`: at the size that spreads most, a pooled interval is far too short."""
    values = gains([0.15, 0.05, 0.05], 3, 0.0)
    pooled = np.sqrt(values.var(axis=-1, ddof=1).mean(axis=1))
    half = t_quantile(6) * pooled / np.sqrt(3)
    assert np.mean(np.abs(values[:, 0].mean(axis=-1)) <= half) < 0.90
