"""Theorem 1: two plain layers of width 2d come within O(e^(−p)) of the induction-head map."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Settings
from kvshift.paper.place import Place
from kvshift.paper.theory.curves import draw_error_curves
from kvshift.paper.theory.two_layer import ErrorCurve, measure_errors

TOLERANCE = 0.03  # of the rate


def _runs(sequences: int, tokens: int) -> tuple[Run, ...]:
    return tuple(
        Run(
            f"{first_mask}-sigma{sigma:g}",
            {
                "steepness": [float(p) for p in range(1, 21)],
                "sigma": sigma,
                "slope": 0.05,
                "dim": 32,
                "tokens": tokens,
                "sequences": sequences,
                "seed": 0,
                "first_mask": first_mask,
            },
        )
        for first_mask in ("before", "causal")
        for sigma in (1.0, 0.2, 0.1)
    )


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """One error curve."""
    return dataclasses.asdict(measure_errors(**settings))


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    curves = [ErrorCurve(**measurement.measured) for measurement in measurements]
    plain = [curve for curve in curves if curve.first_mask == "before"]
    causal = [curve for curve in curves if curve.first_mask == "causal"]
    rates = all(abs(curve.rate + 1) <= TOLERANCE for curve in plain)
    bounds = all(curve.within_bound() for curve in plain)
    constants = ", ".join(
        f"{curve.constant:.3g} of at most {curve.bound:g} (σ = {curve.sigma:g})" for curve in plain
    )
    floor = min(min(curve.mean) for curve in causal)
    return Judgement(
        verdict="reproduced" if rates and bounds else "partly" if rates else "not",
        ours="error ∝ e^(rate·p), rate " + ", ".join(f"{curve.rate:.4f}" for curve in plain),
        finding=f"The constant is {constants}. Where the first layer's mask is causal, so that a token reads "
        f"itself, the rate is {', '.join(f'{curve.rate:.4f}' for curve in causal)}, but with key weights of "
        f"size e^p, and float64 gets no nearer than {floor:.0e}.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Error against p."""
    return draw_error_curves([ErrorCurve(**measurement.measured) for measurement in measurements], kind)


EXPERIMENT = Experiment(
    name="theorem1",
    version=1,
    title="Two plain layers approximate the induction head",
    claim="A two-layer ALiBi model of width 2d comes within O(e^(−p)) of the induction-head map.",
    paper="O(e^(−p))",
    rule="Reproduced if the mean error of the construction falls as e^(rate·p) with a rate within "
    f"{TOLERANCE} of −1 for every σ, and no sequence's error exceeds the derived bound 2/σ · e^(−p); partly "
    "if only the rates hold; not otherwise. The first layer reads s < t.",
    runs={"tiny": _runs(8, 12), "small": _runs(256, 32), "gpu": _runs(256, 32)},
    uses_gpu=False,
    measure=measure,
    judge=judge,
    draw=draw,
)
