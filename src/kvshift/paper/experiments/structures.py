"""Beyond the paper: which heads should start at which corner (PAPER.md §7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.language import Arms, arms_runs, default_multiple, in_file_name, measure
from kvshift.paper.learning import interval, llama
from kvshift.paper.loss_figures import draw_gains
from kvshift.paper.no_gain import MARGIN
from kvshift.shift import KVShiftConfig
from kvshift.shift.config import Init

INITS: dict[str, Init] = {
    "quarter induction, quarter mirror": "structured",
    "half induction, half mirror": "alternating",
    "half induction, half plain": "half_induction",
    "all induction": "induction",
}
QUARTERS, *OTHERS = INITS
MODELS = {"tiny": llama(16, 1, 4), "small": llama(64, 2, 4), "gpu": llama(384, 6, 8)}
"""With four heads or more a layer: of two none would be plain."""

MULTIPLE = 10.0  # of the first runs at scale gpu; elsewhere the default's rate


def _named(multiple: float) -> dict[str, KVShiftConfig | None]:
    suffix = "" if multiple == MULTIPLE else f", ×{multiple:g}"
    return {
        f"{name}{suffix}": KVShiftConfig(init=init, lr_multiplier=multiple) for name, init in INITS.items()
    }


NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, **_named(MULTIPLE), **_named(30.0)}


def _runs(scale: Scale, seeds: int) -> tuple[Run, ...]:
    model = MODELS[scale]
    arms = {"vanilla": None, **_named(MULTIPLE)}
    found = arms_runs(scale, _in_files(arms), seeds, model=model)
    default = default_multiple(found[0].settings["learning_rate"])
    if default != MULTIPLE:
        found += arms_runs(scale, _in_files(_named(default)), seeds, model=model)
    return found


def _in_files(arms: dict[str, KVShiftConfig | None]) -> dict[str, KVShiftConfig | None]:
    return {in_file_name(name): shift for name, shift in arms.items()}


def _gains(arms: Arms, multiple: float, over: str = "vanilla") -> dict[str, list[float]]:
    """Of every structure with the taps at that multiple of the model's rate, by its name without it."""
    return {
        name: arms.gains(arm, over)
        for name, arm in zip(INITS, _named(multiple), strict=True)
        if arm in arms.by_name
    }


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    multiple = default_multiple(arms.all[0].learning_rate)
    quarters = next(iter(_named(multiple)))
    gains = {name: interval(values) for name, values in _gains(arms, multiple).items()}
    leads = {name: interval(values) for name, values in _gains(arms, multiple, quarters).items()}
    del leads[QUARTERS]
    verdict: Verdict = "undecided"
    if better := [name for name, lead in leads.items() if lead.low > 0]:
        verdict = "not"
    elif gains[QUARTERS].low > 0 and all(
        math.isfinite(lead.mean) and lead.high < MARGIN for lead in leads.values()
    ):
        verdict = "reproduced"
    slower = "" if multiple == MULTIPLE else f" At ×{MULTIPLE:g}: {_listed(_gains(arms, MULTIPLE))}."
    return Judgement(
        verdict=verdict,
        ours="gain over the default start, nats a token: "
        + "; ".join(f"{name}: {lead}" for name, lead in leads.items()),
        finding=f"Gains over vanilla: {_listed(_gains(arms, multiple))}.{slower}"
        + (f" Better than the default start: {', '.join(better)}." if better else ""),
    )


def _listed(gains: dict[str, list[float]]) -> str:
    return "; ".join(f"{name}: {interval(values)}" for name, values in gains.items())


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains of every structure, a panel a rate of the taps."""
    arms = Arms(measurements, NAMED)
    multiples = sorted({MULTIPLE, default_multiple(arms.all[0].learning_rate)})
    panels = {f"Structured starts, ×{multiple:g}": _gains(arms, multiple) for multiple in multiples}
    return draw_gains(panels, "gain over vanilla, nats a token", kind)


EXPERIMENT = Experiment(
    name="structures",
    version=1,
    title="Which heads start at which corner",
    claim="This package's, not the paper's: of the starts that put heads at the corners of an induction "
    "head, none is better than a quarter of the heads there, a quarter at its mirror and the others plain "
    "(the default start).",
    paper="does not ask",
    rule="Reproduced if, with taps at their default rate and over paired seeds, the 95% interval of the "
    "default start's gain over vanilla lies above 0 and that of every other structure's gain over the "
    f"default start ends below +{MARGIN:g} nats a token; not if such an interval lies wholly above 0; else "
    "undecided.",
    runs={"tiny": _runs("tiny", 2), "small": _runs("small", 3), "gpu": _runs("gpu", 3)},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
