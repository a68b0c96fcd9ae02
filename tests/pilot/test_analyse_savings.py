"""Data, time and model saved against curves whose answers are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvshift.pilot.notes import note
from kvshift.pilot.pairs import Pairs
from kvshift.pilot.savings import between, crossing, data_saved, tokens_to_reach
from kvshift.pilot.statistics import mean_interval

TOKENS = 1_000_000


def power_law(scale, floor=1.0, exponent=0.25):
    return lambda tokens: floor + scale * tokens**-exponent


def arms(baseline, candidate, check=None):
    """curve_of: the same two curves at every size and seed."""

    def curve_of(run):
        if run.role == "check":
            return check
        return baseline if run.arm == "vanilla" else candidate

    return curve_of


def first_pair(pilot):
    return next(iter(Pairs.of(pilot.plan, pilot.records)))


@pytest.mark.parametrize("saved", [0.1, 0.3, 0.5, 0.8])
def test_data_saved_of_two_power_laws(make_pilot, saved):
    """floor + b'·t^-c reaches the baseline's end at t = T·(b'/b)^(1/c)."""
    candidate = power_law(40 * (1 - saved) ** 0.25)
    better = make_pilot(arms(power_law(40), candidate), sizes=("small",))
    worse = make_pilot(arms(candidate, power_law(40)), sizes=("small",))
    assert data_saved(first_pair(better)) == pytest.approx(saved, abs=0.002)
    assert data_saved(first_pair(worse)) == -data_saved(first_pair(better))


def test_identical_curves_save_nothing(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(40)), sizes=("small",))
    assert data_saved(first_pair(pilot)) == 0


def test_a_dip_that_does_not_last_does_not_count(make_pilot):
    """At 20% of the tokens the candidate is for once below the baseline's end; it stays there from 80%."""
    baseline, candidate = power_law(40), power_law(40 * 0.8**0.25)
    dipping = make_pilot(
        arms(baseline, lambda tokens: candidate(tokens) - 1.0 * (tokens == TOKENS // 5)), sizes=("small",)
    )
    assert data_saved(first_pair(dipping)) == pytest.approx(0.2, abs=0.002)


def test_a_curve_below_from_its_start_is_not_extrapolated(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(1)), sizes=("small",))
    first = pilot.records["small-kvshift-seed0"].evaluations[0].tokens
    assert tokens_to_reach(pilot.records["small-kvshift-seed0"], 5.0) == first
    assert data_saved(first_pair(pilot)) == 1 - first / TOKENS


def test_a_target_never_reached():
    assert crossing([3.0, 2.0, 1.0], 0.5) is None
    assert crossing([3.0, 2.0, 2.5], 2.2) is None


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
    target=st.floats(0.1, 10),
)
def test_crossing_stays_on_the_curve(losses, target):
    place = crossing(losses, target)
    if place is None:
        assert losses[-1] > target
        return
    i, share = place
    assert 0 <= share <= 1
    assert all(loss <= target for loss in losses[i + 1 :])
    tokens = [10.0 * (k + 1) for k in range(len(losses))]
    assert tokens[0] - 1e-9 <= between(tokens, place) <= tokens[-1] + 1e-9
    if share:
        assert losses[i] + share * (losses[i + 1] - losses[i]) == pytest.approx(target, abs=1e-6)


def test_time_saved_is_data_saved_at_the_candidates_speed(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(40 * 0.5**0.25)), sizes=("large",))
    for seed, ratio in enumerate([0.8, 0.9, 1.0]):
        pilot.change(f"large-kvshift-seed{seed}", tokens_per_second=10_000.0 * ratio)
    top = pilot.results(seconds=3600.0).by_size[-1]
    expected = [1 - (1 - 0.5) / ratio for ratio in (0.8, 0.9, 1.0)]
    assert top.time_saved.value == pytest.approx(sum(expected) / 3, abs=0.002)
    assert top.throughput_ratio.value == pytest.approx((0.8 * 0.9 * 1.0) ** (1 / 3))
    assert top.time_saved.low < top.time_saved.value < top.time_saved.high


def test_cost(make_pilot):
    pilot = make_pilot(
        arms(power_law(40), power_law(40 * 0.5**0.25)), sizes=("large",), price_per_hour=36.0, currency="EUR"
    )
    cost = pilot.results(seconds=1800.0).cost
    run = TOKENS / 10_000 + 5  # seconds of a hand-made run; 36 an hour is a hundredth a second
    assert cost.currency == "EUR"
    assert cost.pilot == pytest.approx(18.0)
    assert cost.baseline_run == pytest.approx(run / 100)
    assert cost.saved_per_run.value == pytest.approx(run / 100 * 0.5, rel=0.01)
    assert cost.saved_per_thousand.value == pytest.approx(500, rel=0.01)
    assert make_pilot(arms(power_law(40), power_law(30))).results().cost is None


# Check runs: planned at half the tokens.


def test_check_interpolates_between_planned_lengths(make_pilot):
    """Full length ends at 2.0, the half one at 2.4; the baseline's 2.2 lies half way in log tokens."""
    pilot = make_pilot(
        arms(lambda t: 2.2 + 1 - t / TOKENS, lambda t: 2.0 + 1 - t / TOKENS, lambda t: 2.4),
        check=("medium", 0.5),
    )
    check = pilot.results().check
    assert (check.size, check.share) == ("medium", 0.5)
    assert check.gain.value == pytest.approx(-0.2)
    assert check.data_saved.value == pytest.approx(1 - math.sqrt(0.5))
    assert check.data_saved.low is not None
    assert check.data_saved.high is not None
    assert check.curve_data_saved.value == pytest.approx(0.2, abs=0.01)
    assert check.agrees


def test_check_already_better_at_the_short_length_is_a_lower_bound(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(20), lambda t: 1.5), check=("large", 0.5))
    check = pilot.results().check
    assert check.gain.value > 0
    assert check.data_saved.value == check.data_saved.low == 0.5
    assert check.data_saved.high is None
    assert check.agrees


def test_check_that_never_reaches_is_an_upper_bound(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(50), power_law(55)), check=("large", 0.5))
    check = pilot.results().check
    assert (check.data_saved.value, check.data_saved.low, check.data_saved.high) == (0.0, None, 0.0)
    assert check.agrees


def test_check_contradicts_a_claim_that_planned_runs_do_not_bear_out(make_pilot):
    """The curves say that half is saved, the run planned for half the tokens ends far above."""
    pilot = make_pilot(
        arms(power_law(40), power_law(40 * 0.5**0.25), power_law(400)), sizes=("large",), check=("large", 0.5)
    )
    results = pilot.results()
    assert not results.check.agrees
    assert note("curves_flatter") in results.warnings


def test_savings_at_the_size_with_planned_runs_rest_on_them(make_pilot):
    """The candidate's law equals the baseline's end after (40 / 30) ** -4 = 0.32 of the tokens."""
    baseline, candidate = power_law(40), power_law(30)
    results = make_pilot(arms(baseline, candidate, candidate), check=("large", 0.5)).results()
    small, large = results.by_size[0], results.by_size[-1]
    assert (small.data_saved_planned, large.data_saved_planned) == (False, True)
    assert small.data_saved == small.curve_data_saved
    assert large.data_saved == results.check.data_saved
    assert large.data_saved.value == pytest.approx(0.5)
    assert large.data_saved.high is None
    assert large.time_saved.high is None


def test_savings_of_a_worse_candidate_come_from_the_curves(make_pilot):
    results = make_pilot(arms(power_law(40), power_law(50), power_law(55)), check=("large", 0.5)).results()
    large = results.by_size[-1]
    assert large.data_saved_planned
    assert large.data_saved.value == pytest.approx(large.curve_data_saved.value)
    assert large.data_saved.value < 0


def test_savings_without_every_planned_run_come_from_the_curves(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(30), power_law(35)), check=("large", 0.5))
    del pilot.records["large-kvshift-seed1-check"]
    large = pilot.results().by_size[-1]
    assert not large.data_saved_planned
    assert large.data_saved == large.curve_data_saved


def test_check_without_finished_runs_is_none(make_pilot):
    pilot = make_pilot(arms(power_law(40), power_law(30), power_law(35)), check=("large", 0.5))
    for seed in range(3):
        del pilot.records[f"large-kvshift-seed{seed}-check"]
    assert pilot.results().check is None


# Model saved: losses of 4.0, 3.8, 3.6 for the baseline at small, medium, large.


def test_model_saved_half_way_between_two_sizes(make_pilot_from_gains):
    """The candidate's 3.7 at small and 3.5 at medium straddle 3.6."""
    results = make_pilot_from_gains({"small": [0.3] * 3, "medium": [0.3] * 3, "large": [0.3] * 3}).results()
    saved = results.model_saved
    small, medium, large = results.sizes
    taps = [size.layers * size.kv_heads * 4 for size in results.sizes]
    match = math.sqrt((small.parameters + taps[0]) * (medium.parameters + taps[1]))
    assert saved.bound == "inside"
    assert saved.reference_parameters == large.parameters
    assert saved.matching_parameters == pytest.approx(match)
    assert saved.parameters.value == pytest.approx(1 - match / large.parameters)
    cache = [size.layers * size.kv_heads * size.head_dim for size in results.sizes]
    assert saved.kv_cache == pytest.approx(1 - math.sqrt(cache[0] * cache[1]) / cache[2])
    flops = [2 * size.parameters + 4 * 256 * size.hidden * size.layers for size in results.sizes]
    assert saved.inference_compute == pytest.approx(1 - math.sqrt(flops[0] * flops[1]) / flops[2])


def test_model_saved_outside_the_ladder(make_pilot_from_gains):
    smaller = make_pilot_from_gains({"small": [0.9] * 3, "medium": [0.9] * 3, "large": [0.9] * 3}).results()
    assert smaller.model_saved.bound == "at_least"
    assert smaller.model_saved.parameters.high is None
    small, _, large = smaller.sizes
    assert smaller.model_saved.parameters.value == pytest.approx(
        1 - small.parameters / large.parameters, abs=0.001
    )
    worse = make_pilot_from_gains({"small": [0.1] * 3, "medium": [0.1] * 3, "large": [-0.1] * 3}).results()
    assert worse.model_saved.bound == "none"
    assert worse.model_saved.parameters is None
    assert worse.model_saved.matching_parameters is None


def test_a_seed_outside_the_ladder_opens_the_interval(make_pilot_from_gains):
    gains = {"small": [0.3, 0.3, 0.5], "medium": [0.3] * 3, "large": [0.3] * 3}
    saved = make_pilot_from_gains(gains).results().model_saved
    assert saved.bound == "inside"
    assert saved.parameters.high is None
    assert saved.parameters.low is not None


def test_model_saved_needs_two_sizes(make_pilot_from_gains):
    assert make_pilot_from_gains({"large": [0.3] * 3}).results().model_saved is None


# Projection.


def test_projection_recovers_a_line_and_ends_at_tenfold(make_pilot_from_gains):
    results = make_pilot_from_gains({name: [0.0] * 3 for name in ("small", "medium", "large")}).results()
    decades = [math.log10(size.parameters) for size in results.sizes]
    gains = {size.name: [0.9 - 0.1 * x] * 3 for size, x in zip(results.sizes, decades, strict=True)}
    line = make_pilot_from_gains(gains).results().projection
    assert line.slope_per_tenfold.value == pytest.approx(-0.1)
    assert line.measured_up_to == results.sizes[-1].parameters
    sizes = [point["parameters"] for point in line.points]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(results.sizes[0].parameters)
    assert sizes[-1] <= 10 * results.sizes[-1].parameters
    assert sizes[-1] == pytest.approx(10 * results.sizes[-1].parameters)
    for point in line.points:
        assert point["value"] == pytest.approx(0.9 - 0.1 * math.log10(point["parameters"]))
        assert point["low"] <= point["value"] <= point["high"]


def test_projection_band_is_that_of_least_squares(make_pilot_from_gains):
    """Against the covariance of numpy's polynomial fit, a different road to the same band."""
    gains = {"small": [0.31, 0.29, 0.33], "medium": [0.2, 0.24, 0.21], "large": [0.1, 0.14, 0.11]}
    results = make_pilot_from_gains(gains).results()
    line = results.projection
    x = np.repeat([math.log10(size.parameters) for size in results.sizes], 3)
    fit, covariance = np.polyfit(x, np.concatenate(list(gains.values())), 1, cov=True)
    for point in line.points:
        at = np.array([math.log10(point["parameters"]), 1.0])
        half = stats.t.ppf(0.975, 7) * math.sqrt(at @ covariance @ at)
        assert point["value"] == pytest.approx(fit @ at)
        assert point["high"] - point["value"] == pytest.approx(half, rel=1e-6)
    widths = [point["high"] - point["low"] for point in line.points]
    assert widths[-1] == max(widths)
    assert line.slope_per_tenfold.clear_of_zero
    assert line.slope_per_tenfold.n == 9


def test_no_line_through_two_sizes(make_pilot_from_gains):
    assert make_pilot_from_gains({"small": [0.2] * 3, "large": [0.1] * 3}).results().projection is None


def test_a_size_that_lost_its_pairs_is_no_third_size(make_pilot_from_gains):
    pilot = make_pilot_from_gains({"small": [0.3] * 3, "medium": [0.2] * 3, "large": [0.1] * 3})
    for seed in range(3):
        pilot.change(f"medium-vanilla-seed{seed}", status="failed")
    assert pilot.results().projection is None


def test_aa_data_saved_centres_on_zero(make_pilot):
    """Curves that differ by chance alone: as many pairs save as lose, by as much."""
    random = np.random.default_rng(0)
    levels = {}

    def curve_of(run):
        return power_law(levels.setdefault(run.name, 40 * (1 + 0.01 * random.normal())))

    pilot = make_pilot(curve_of, sizes=("small",), seeds=tuple(range(200)))
    estimate = mean_interval(data_saved(pair) for pair in Pairs.of(pilot.plan, pilot.records))
    assert estimate.low < 0 < estimate.high
    assert estimate.high - estimate.low < 0.05
