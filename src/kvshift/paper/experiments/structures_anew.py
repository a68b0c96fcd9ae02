"""Beyond the paper: whether a start that `structures` found ahead is ahead at seeds of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.experiments.structures import MODELS
from kvshift.paper.language import (
    MODEL_RATES,
    Arms,
    arms_runs,
    default_multiple,
    in_file_name,
    measure,
)
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig
from kvshift.shift.config import Init

INITS: dict[str, Init] = {
    "a quarter induction, a quarter mirror": "structured",
    "half induction": "half_induction",
    "half induction, half mirror": "alternating",
    "all induction": "induction",
}
"""Of a layer's heads; the others start plain."""

FIRST_SEED = 3  # after those of `structures`, which were looked at before this was asked
CONFIDENCE = 1 - 0.05 / (len(INITS) - 1)  # of each interval; all hold in 95 of 100 at least


def _arms(model_rate: float) -> dict[str, KVShiftConfig | None]:
    multiple = default_multiple(model_rate)
    return {
        f"{name} ×{multiple:g}": KVShiftConfig(init=init, lr_multiplier=multiple)
        for name, init in INITS.items()
    }


NAMED = {name: shift for rate in MODEL_RATES.values() for name, shift in _arms(rate).items()}


def _runs(scale: Scale, seeds: int) -> tuple[Run, ...]:
    arms = {in_file_name(name): shift for name, shift in _arms(MODEL_RATES[scale]).items()}
    return arms_runs(scale, arms, seeds, first_seed=FIRST_SEED, model=MODELS[scale])


def _leads(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """Over the default's start, seed by seed, of every other."""
    arms = Arms(measurements, NAMED)
    default, *others = _arms(arms.all[0].learning_rate)
    return {name: arms.gains(arm, default) for name, arm in zip(list(INITS)[1:], others, strict=True)}


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    leads = _leads(measurements)
    found = {name: interval(values, CONFIDENCE) for name, values in leads.items()}
    verdicts = {lead.verdict for lead in found.values()}
    verdict: Verdict = "undecided"
    whole = all(math.isfinite(lead.mean) for lead in found.values())  # no run diverged
    if whole and "reproduced" in verdicts:
        verdict = "reproduced"
    elif verdicts == {"not"}:
        verdict = "not"
    return Judgement(
        verdict=verdict,
        ours="gain over the start with a quarter, nats a token: "
        + "; ".join(f"{name}: {lead}" for name, lead in found.items()),
        finding="Ahead: "
        + "; ".join(
            f"{name} at {sum(each > 0 for each in values)} of {len(values)} seeds"
            for name, values in leads.items()
        )
        + ".",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """The gain of every other start over the default's, every seed."""
    panels = {f"At new seeds, {CONFIDENCE:.1%} intervals": _leads(measurements)}
    return draw_gains(panels, "gain over the default's start, nats a token", kind, CONFIDENCE)


EXPERIMENT = Experiment(
    name="structures_anew",
    version=1,
    title="Starts that were ahead, at new seeds",
    claim="This package's, not the paper's: one of the starts with more induction heads ends better than a "
    "quarter of a layer's heads as induction heads, a quarter at their mirror and half plain (the default).",
    paper="does not ask",
    rule="Reproduced if, with taps at the default's rate and over paired seeds, of which `structures` has "
    f"none, the interval of another start's gain over the default's lies above 0, each at {CONFIDENCE:.1%}, "
    "so that the three hold at 95% together; not if all three lie below; undecided if a run "
    "diverged, and else.",
    runs={"tiny": _runs("tiny", 2), "small": _runs("small", 8), "gpu": _runs("gpu", 8)},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
