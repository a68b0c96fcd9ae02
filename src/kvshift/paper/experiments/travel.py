"""Beyond the paper: how far the taps travel, and what that does to copying (PAPER.md §7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvshift.inspection.quadrants import lean
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Scale, Verdict
from kvshift.paper.figure import paint
from kvshift.paper.language import PAPER, Arms, Trained, arms_runs, measure, taps_of
from kvshift.paper.learning import interval
from kvshift.shift import KVShiftConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED: dict[str, KVShiftConfig | None] = {
    "vanilla": None,
    "paper ×1": PAPER,
    "paper ×10": dataclasses.replace(PAPER, lr_multiplier=10.0),
    "paper ×30": dataclasses.replace(PAPER, lr_multiplier=30.0),
    "structured ×1": KVShiftConfig(init="structured", lr_multiplier=1.0),
    "structured ×10": KVShiftConfig(init="structured", lr_multiplier=10.0),
    "structured ×30": KVShiftConfig(init="structured", lr_multiplier=30.0),
}
FURTHER = 3.0  # times as far
SEEDS: dict[Scale, int] = {"tiny": 2, "small": 3, "gpu": 3}


def distance(run: Trained) -> float:
    """How far a tap is from its start at the end, on average over all heads; NaN if the run diverged."""
    if not math.isfinite(run.loss):
        return math.nan
    moved = [
        abs(after - before)
        for head, head_before in zip(taps_of(run, -1), taps_of(run, 0), strict=True)
        for taps, taps_before in zip(head, head_before, strict=True)
        for after, before in zip(taps, taps_before, strict=True)
    ]
    return sum(moved) / len(moved)


def _copying(run: Trained) -> float:
    return 100 * run.share("copied")


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    slow, fast = (
        {run.seed: distance(run) for run in arms.by_name[name]} for name in ("paper ×1", "paper ×10")
    )
    ratio = interval([fast[seed] / slow[seed] for seed in slow])
    if ratio.low > FURTHER:
        verdict: Verdict = "reproduced"
    else:
        verdict = "not" if ratio.high < FURTHER else "undecided"
    copying = {name: interval(arms.gains(name, value=_copying)) for name in NAMED if name != "vanilla"}
    moved = {name: interval([distance(run) for run in arms.by_name[name]]) for name in copying}
    return Judgement(
        verdict=verdict,
        ours=f"at ×10 the taps end {ratio.rounded(1)} times as far from their start as at ×1",
        finding="Distance from the start: "
        + "; ".join(f"{name}: {each}" for name, each in moved.items())
        + ". Gain in accuracy on tokens to copy, percentage points: "
        + "; ".join(f"{name}: {each.rounded(2)}" for name, each in copying.items())
        + ".",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """How far each head leans to the token before, over the run; all but the first seed's are thin."""
    shown = {name: runs for name, runs in Arms(measurements, NAMED).by_name.items() if name != "vanilla"}

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, (name, runs) in zip(places, shown.items(), strict=True):
            for number, run in enumerate(runs):
                _leans(axes, run, first=number == 0)
            axes.set(title=name, xlabel="training tokens, millions")
            axes.locator_params(axis="x", nbins=4)
            axes.axhline(0, color="#555555", lw=0.8)
            axes.grid(alpha=0.3)
        places[0].set_ylabel("previous token’s tap − current’s")
        places[-1].legend(fontsize=7.5)

    return paint(kind, 2.7 * len(shown), 3.2, painter)


def _leans(axes: Any, run: Trained, first: bool) -> None:
    style: dict[str, float] = {"lw": 1.2} if first else {"lw": 0.6, "alpha": 0.4}
    tokens = [point["tokens"] / 1e6 for point in run.measured["taps"]]
    by_time = [taps_of(run, when) for when in range(len(tokens))]
    for head in range(len(by_time[0])):
        for which, (label, colour) in enumerate((("keys", "C0"), ("values", "C1"))):
            leans = [lean(heads[head][which]) for heads in by_time]
            axes.plot(tokens, leans, color=colour, label=label if first and head == 0 else None, **style)


EXPERIMENT = Experiment(
    name="travel",
    version=1,
    title="How far the taps travel",
    claim="This package's, not the paper's: at the model's own learning rate the taps hardly leave their "
    "start in a short run, so the draw decides; ten times the rate lets them move.",
    paper="does not ask",
    rule=f"Reproduced if the 95% interval, over seeds, of how much further the paper's taps end from their "
    f"start at ten times the rate lies above {FURTHER:g} times; not if it lies below; else undecided.",
    runs={scale: arms_runs(scale, NAMED, seeds) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
