"""Chart geometry against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from kvshift.pilot.report.charts import Scale, band, mean_curve, padded, path, tick_decimals, ticks


def test_scales_and_paths() -> None:
    x = Scale(0, 200, 10, 90)
    y = Scale(0, 4, 200, 0)
    assert (x(0), x(50), x(200)) == (10, 30, 90)
    assert (y(0), y(1), y(4)) == (200, 150, 0)
    assert path(x, y, [(0, 0), (100, 2), (200, 4)]) == "M0 1000L500 500L1000 0"
    assert path(x, y, [(0, 0), (50, math.nan), (100, 2)]) == "M0 1000M500 500"
    assert band(x, y, [(0, 0, 1), (200, 1, 2)]) == "M0 750L1000 500L1000 750L0 1000Z"


def test_logarithmic_scale() -> None:
    scale = Scale(1e5, 1e7, 0, 100, logarithmic=True)
    assert scale(1e6) == pytest.approx(50)


def test_far_values_stay_within_reach_of_the_box() -> None:
    assert Scale(0, 1).box(1e30) == 6000
    assert Scale(0, 1).box(-1e30) == -5000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1.2, [0, 0.25, 0.5, 0.75, 1.0]),
        (-0.013, 0.02, [-0.01, 0, 0.01, 0.02]),
        (3.6, 5.4, [4, 4.5, 5]),
        (2, 2, [2]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    made = ticks(low, high, 5)
    assert all(low <= tick <= high for tick in made)
    assert made == expected


def test_tick_decimals_and_padding() -> None:
    assert tick_decimals([0, 1, 2]) == 0
    assert tick_decimals([0.25, 0.5]) == 2
    low, high = padded([5.0, 5.0])
    assert low < 5.0 < high


def test_mean_only_where_every_run_has_a_point() -> None:
    first, second = [(1, 4.0), (2, 3.0), (3, 2.0)], [(1, 6.0), (3, 3.0), (4, 1.0)]
    assert mean_curve([first, second]) == [(1, 5.0), (3, 2.5)]
    assert mean_curve([first, [(1, math.nan), (2, 1.0)]]) == [(2, 2.0)]
    assert mean_curve([]) == []
