"""Figures 6 and 7: a ladder of sizes, and what scaling says of the gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from scipy import stats

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.language import PAPER, Arms, Trained, arms_runs, measure
from kvshift.paper.learning import Interval, interval, llama
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig

NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, "kv": PAPER}
KEPT = 0.5  # of the smallest size's gain, at the largest


def _runs(scale: Scale, seeds: int, models: Sequence[tuple[int, int, int]]) -> tuple[Run, ...]:
    return tuple(
        Run(f"hidden{hidden}-{run.name}", run.settings)
        for hidden, layers, heads in models
        for run in arms_runs(scale, NAMED, seeds, model=llama(hidden, layers, heads))
    )


def _gains(measurements: Sequence[Measurement]) -> dict[int, list[float]]:
    """Seed by seed, by parameters."""
    arms = Arms(measurements, NAMED)
    sizes = sorted({run.parameters for run in arms.all})
    return {size: arms.gains("kv", keep=partial(_is_of, size)) for size in sizes}


def _is_of(size: int, run: Trained) -> bool:
    return run.parameters == size


def _slope(runs: Sequence[Trained]) -> float:
    """Of the loss against the logarithm of the parameters, by least squares; NaN if a run diverged."""
    finite = [run for run in runs if math.isfinite(run.loss)]
    if len(finite) < len(runs):
        return math.nan
    line = stats.linregress([math.log(run.parameters) for run in finite], [run.loss for run in finite])
    return float(line.slope)


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    by_size = _gains(measurements)
    found: dict[int, Interval] = {size: interval(gains) for size, gains in by_size.items()}
    means = [each.mean for each in found.values()]
    if all(each.low > 0 for each in found.values()) and means[-1] >= KEPT * means[0]:
        verdict: Verdict = "reproduced"
    elif means[-1] <= 0:
        verdict = "not"
    else:
        verdict = "partly" if all(mean > 0 for mean in means) else "undecided"
    arms = Arms(measurements, NAMED).by_name
    slopes = {name: _slope(runs) for name, runs in arms.items()}
    larger = math.exp(means[-1] / -slopes["vanilla"]) if slopes["vanilla"] < 0 else math.nan
    says = f", so the gain at the largest size is worth {larger:.2f} times the parameters"
    return Judgement(
        verdict=verdict,
        ours="gain, nats a token: " + "; ".join(f"{size / 1e6:.3g}M: {each}" for size, each in found.items()),
        finding=f"A factor e in parameters is worth {-slopes['vanilla']:.3f} nats to vanilla and "
        f"{-slopes['kv']:.3f} to KV shift at the same tokens{says if math.isfinite(larger) else ''}.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains by size."""
    gains = {f"{size / 1e6:.3g}M": values for size, values in _gains(measurements).items()}
    return draw_gains({"Gain by parameters": gains}, "gain over vanilla, nats a token", kind)


EXPERIMENT = Experiment(
    name="fig6",
    version=1,
    title="A ladder of sizes (figures 6 and 7)",
    claim="KV shift is ahead at 1.5B, 6.7B and 13B parameters and on a scaling-law fit; "
    "the gap does not close.",
    paper="ahead at every size",
    rule="Reproduced if at every size the 95% interval of the gain, over paired seeds, lies above 0 and the "
    f"mean gain at the largest is at least {KEPT:g} of that at the smallest; partly if every mean gain is "
    "above 0; not if the largest size's mean gain is not above 0; else undecided. All sizes learn from the "
    "same tokens, as in the paper.",
    runs={
        "tiny": _runs("tiny", 2, ((8, 1, 2), (16, 1, 2))),
        "small": _runs("small", 3, ((32, 2, 2), (64, 2, 2), (128, 3, 4))),
        "gpu": _runs("gpu", 3, ((128, 3, 4), (256, 4, 4), (512, 6, 8))),
    },
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
