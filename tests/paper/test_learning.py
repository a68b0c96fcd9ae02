from __future__ import annotations

import math

import pytest

from kvshift.paper.curves import Panel, Series, draw_curves, draw_series
from kvshift.paper.experiment import Measurement
from kvshift.paper.learning import average, curve, final, gains, interval, llama, lost, make_run

TINY = {
    "task": "induction",
    "model": llama(16, 2, 2),
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "evaluate_every": 2,
    "evaluation_rows": 4,
}


def measured(right, *, shifted=True, seed=0, status="finished") -> Measurement:
    """Of ten answers, `right` at each evaluation."""
    run = make_run("a", "small", shifted=shifted, seed=seed, **TINY)
    points = [
        {"step": 2 * number, "loss": 1.0, "scores": {"first": [count, 10]}}
        for number, count in enumerate(right, start=1)
    ]
    return Measurement(
        run.settings,
        {
            "status": status,
            "parameters": 100,
            "tap_parameters": 8,
            "points": points,
            "grades": {"answers": [3, 4]},
        },
    )


def test_a_curve_reads_what_was_measured() -> None:
    found = curve(measured([1, 9, 10, 4]))
    assert (found.arm, found.layers, found.width, found.parameters) == ("KV shift, 2 layers", 2, 16, 92)
    assert found.accuracies("first") == [0.1, 0.9, 1.0, 0.4]
    assert found.final("first") == 0.4
    assert found.average("first") == pytest.approx(0.6)
    assert found.graded("answers") == 0.75
    assert found.reached("first", 0.9) == 4
    assert found.reached("first", 0.95) == 6
    assert curve(measured([1, 2])).reached("first", 0.9) is None


def test_a_diverged_run_decides_nothing() -> None:
    found = curve(measured([9], status="diverged"))
    nothing = curve(measured([], status="diverged"))
    for value in (
        found.final("first"),
        found.average("first"),
        found.graded("answers"),
        nothing.final("first"),
    ):
        assert math.isnan(value)
    assert lost([curve(measured([9]))]) is None
    judged = lost([curve(measured([9])), nothing])
    assert judged is not None
    assert judged.verdict == "undecided"
    assert judged.finding.startswith("Diverged: KV shift, 2 layers, seed 0.")


def test_gains_pair_the_seeds_that_both_arms_have() -> None:
    curves = [
        curve(measured([2, 9], seed=1)),
        curve(measured([2, 8], seed=0)),
        curve(measured([1, 1], seed=0, shifted=False)),
        curve(measured([3, 3], seed=1, shifted=False)),
        curve(measured([9, 9], seed=2)),
    ]
    assert gains(curves, final("first")) == pytest.approx([0.7, 0.6])
    assert gains(curves, average("first")) == pytest.approx([0.4, 0.25])


def test_intervals() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    # t for two degrees of freedom is 4.302653 at 95% and 2.919986 at 90%.
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - interval([1.0, 2.0, 3.0], 0.9).low == pytest.approx(2.919986 / math.sqrt(3), rel=1e-6)
    assert interval([0.5]).low == -math.inf
    assert str(interval([0.5])) == "0.500 (one seed)"
    assert (interval([0.5, 0.5]).low, interval([0.5, 0.5]).high) == (0.5, 0.5)


def test_the_arms_of_a_run_differ_in_the_shift_alone() -> None:
    shifted, vanilla = (make_run("a", "gpu", shifted=arm, seed=3, **TINY) for arm in (True, False))
    different = {name for name in shifted.settings if shifted.settings[name] != vanilla.settings[name]}
    assert different == {"shift"}
    assert (shifted.name, vanilla.name) == ("a-kv-seed3", "a-vanilla-seed3")
    assert shifted.settings["shift"]["init"] == "paper"
    assert shifted.settings["shift"]["lr_multiplier"] == 1
    assert shifted.settings["device"] == "cuda"
    assert make_run("a", "small", shifted=True, seed=3, **TINY).settings["device"] == "cpu"


def test_figures_are_drawn_whatever_the_runs_did() -> None:
    pytest.importorskip("matplotlib")
    short = curve(measured([9], status="diverged"))
    nothing = curve(measured([], seed=1, status="diverged"))
    whole = curve(measured([1, 9], seed=2))
    panel = Panel("one", [short, whole])
    assert draw_curves([panel], "first", "accuracy", "svg") != draw_curves(
        [Panel("one", [whole])], "first", "accuracy", "svg"
    )
    assert draw_curves([Panel("one", [nothing, whole])], "first", "accuracy", "png").startswith(b"\x89PNG")
    series = [Series("one seed", {1: [0.5]}), Series("published", {1: [0.1], 2: [0.2]}, dashed=True)]
    assert draw_series([("a", series)], "x", "y", "png").startswith(b"\x89PNG")
