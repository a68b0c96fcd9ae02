"""Theorem 2: one layer of KV shifting attention of width d is the induction-head map exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Settings
from kvshift.paper.place import Place
from kvshift.paper.theory.curves import draw_masks
from kvshift.paper.theory.one_layer import OneLayerCheck, check_one_layer

ROUNDING = 1e-12


def _runs(sequences: int, tokens: int) -> tuple[Run, ...]:
    return tuple(
        Run(
            f"slope{slope:g}-sigma{sigma:g}",
            {
                "sigma": sigma,
                "slope": slope,
                "dim": 64,
                "tokens": tokens,
                "sequences": sequences,
                "seed": 0,
            },
        )
        for slope in (0.0, 0.05, 0.5)
        for sigma in (1.0, 0.5, 0.2, 0.1, 0.05)
    )


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """The construction under every mask."""
    return dataclasses.asdict(check_one_layer(**settings))


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    checks = [OneLayerCheck(**measurement.measured) for measurement in measurements]
    exact = ["between" in check.exact_masks(ROUNDING) for check in checks]
    largest = max(check.errors["between"] for check in checks)
    causal = [check.errors["causal"] for check in checks]
    first, last = (max(getattr(check, name) for check in checks) for name in ("first_weight", "last_weight"))
    return Judgement(
        verdict="reproduced" if all(exact) else "partly" if any(exact) else "not",
        ours=f"largest error {largest:.1e} (float64)",
        finding=f"To rounding in {sum(exact)} of {len(exact)} settings with the softmax over 1 < s < L. The "
        "causal mask of language models adds the first token (its key is zero) and the last (it reads "
        f"itself): up to {first:.2g} and {last:.2g} of the attention, on average over sequences, and outputs "
        f"off by {min(causal):.1e} to {max(causal):.2g} (tokens of length 1).",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Error against 1/σ under every mask."""
    return draw_masks([OneLayerCheck(**measurement.measured) for measurement in measurements], kind)


EXPERIMENT = Experiment(
    name="theorem2",
    version=1,
    title="One KV shifting layer is the induction head",
    claim="One layer and one head of KV shifting attention of width d are the induction-head map exactly.",
    paper="exact",
    rule=f"Reproduced if no output of the construction is farther than {ROUNDING:g} from the map (tokens of "
    "length 1, float64) for any σ and slope, with the softmax over the places of the map's own sum, "
    "1 < s < L; partly if for some; not otherwise.",
    runs={"tiny": _runs(4, 12), "small": _runs(256, 32), "gpu": _runs(256, 32)},
    uses_gpu=False,
    measure=measure,
    judge=judge,
    draw=draw,
)
