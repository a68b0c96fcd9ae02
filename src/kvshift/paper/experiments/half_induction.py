"""Beyond the paper: whether the start that `structures` found ahead stays ahead at seeds of its own."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale
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
}
"""Of a layer's heads; the other half starts plain in both."""

FIRST_SEED = 3  # after those of `structures`, which were looked at before this was asked


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


def _leads(measurements: Sequence[Measurement]) -> list[float]:
    arms = Arms(measurements, NAMED)
    quarters, half = _arms(arms.all[0].learning_rate)
    return arms.gains(half, quarters)


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    leads = _leads(measurements)
    lead = interval(leads)
    return Judgement(
        verdict=lead.verdict,
        ours=f"gain over the start with a quarter, nats a token: {lead}",
        finding=f"Ahead at {sum(each > 0 for each in leads)} of {len(leads)} seeds.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """The gain over the other start, every seed."""
    panels = {"Half of the heads at induction": {"half induction": _leads(measurements)}}
    return draw_gains(panels, "gain over the default's start, nats a token", kind)


EXPERIMENT = Experiment(
    name="half_induction",
    version=1,
    title="Half of the heads at induction",
    claim="This package's, not the paper's: where half of a layer's heads start as induction heads and half "
    "plain, a model ends better than where a quarter start as induction heads, a quarter at their mirror and "
    "half plain.",
    paper="does not ask",
    rule="Reproduced if, with taps at the default's rate, the 95% interval over paired seeds, of which "
    "`structures` has none, of the gain over the start with a quarter lies above 0; not if it lies below; "
    "else undecided.",
    runs={"tiny": _runs("tiny", 2), "small": _runs("small", 8), "gpu": _runs("gpu", 8)},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
