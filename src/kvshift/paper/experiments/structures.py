"""Beyond the paper: which heads should start at which corner (PAPER.md §7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.language import Arms, arms_runs, in_file_name, measure
from kvshift.paper.learning import interval, llama
from kvshift.paper.loss_figures import draw_gains
from kvshift.paper.no_gain import MARGIN
from kvshift.shift import KVShiftConfig

BASE = KVShiftConfig(lr_multiplier=10.0)
OTHERS: dict[str, KVShiftConfig] = {
    "half induction, half mirror": dataclasses.replace(BASE, init="alternating"),
    "half induction, half plain": dataclasses.replace(BASE, init="half_induction"),
    "all induction": dataclasses.replace(BASE, init="induction"),
}
QUARTERS = "quarter induction, quarter mirror"
NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, QUARTERS: BASE, **OTHERS}


def _runs(scale: Scale, seeds: int, **changes: Any) -> tuple[Run, ...]:
    arms = {in_file_name(name): shift for name, shift in NAMED.items()}
    return arms_runs(scale, arms, seeds, **changes)


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    gains = {name: interval(arms.gains(name)) for name in NAMED if name != "vanilla"}
    leads = {name: interval(arms.gains(name, QUARTERS)) for name in OTHERS}
    verdict: Verdict = "undecided"
    if better := [name for name, lead in leads.items() if lead.low > 0]:
        verdict = "not"
    elif gains[QUARTERS].low > 0 and all(
        math.isfinite(lead.mean) and lead.high < MARGIN for lead in leads.values()
    ):
        verdict = "reproduced"
    return Judgement(
        verdict=verdict,
        ours="gain over the default start, nats a token: "
        + "; ".join(f"{name}: {lead}" for name, lead in leads.items()),
        finding="Gains over vanilla: "
        + "; ".join(f"{name}: {gain}" for name, gain in gains.items())
        + "."
        + (f" Better than the default start: {', '.join(better)}." if better else ""),
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains of every structure."""
    arms = Arms(measurements, NAMED)
    gains = {name: arms.gains(name) for name in NAMED if name != "vanilla"}
    return draw_gains({"Structured starts, ×10": gains}, "gain over vanilla, nats a token", kind)


EXPERIMENT = Experiment(
    name="structures",
    version=1,
    title="Which heads start at which corner",
    claim="This package's, not the paper's: of the starts that put heads at the corners of an induction "
    "head, none is better than a quarter of the heads there, a quarter at its mirror and the others plain "
    "(the default start).",
    paper="does not ask",
    rule="Reproduced if, over paired seeds, the 95% interval of the default start's gain over vanilla lies "
    "above 0 and that of every other structure's gain over the default start ends below "
    f"+{MARGIN:g} nats a token; not if such an interval lies wholly above 0; else undecided.",
    runs={
        "tiny": _runs("tiny", 2, model=llama(16, 1, 4)),
        "small": _runs("small", 3, model=llama(64, 2, 4)),  # of two heads none would be plain
        "gpu": _runs("gpu", 3, model=llama(384, 6, 8)),
    },
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
