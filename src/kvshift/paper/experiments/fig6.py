"""Figures 6 and 7: a ladder of sizes, and what scaling says of the gap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scipy import stats

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.figure import paint
from kvshift.paper.language import PAPER, Arms, Trained, arms_runs, measure
from kvshift.paper.learning import Interval, interval, llama
from kvshift.paper.loss_figures import gains_on
from kvshift.shift import KVShiftConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def _line(runs: Sequence[Trained]) -> tuple[float, float]:
    """Slope and intercept of the loss against the logarithm of the parameters, by least squares.

    NaN if a run diverged.
    """
    if not all(math.isfinite(run.loss) for run in runs):
        return math.nan, math.nan
    line = stats.linregress([math.log(run.parameters) for run in runs], [run.loss for run in runs])
    return float(line.slope), float(line.intercept)


def _falls(runs: Sequence[Trained]) -> bool:
    """Whether a larger size has a lower mean loss each time; False if a run diverged."""
    sizes = sorted({run.parameters for run in runs})
    means = [interval([run.loss for run in runs if run.parameters == size]).mean for size in sizes]
    return all(map(math.isfinite, means)) and all(more > less for more, less in itertools.pairwise(means))


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
    slopes = {name: _line(runs)[0] for name, runs in arms.items()}
    if _falls(arms["vanilla"]):
        larger = math.exp(means[-1] / -slopes["vanilla"])
        says = f", so the gain at the largest size is worth {larger:.2f} times the parameters"
    else:
        says = ". Vanilla's mean loss does not fall from size to size, so its line says little"
    return Judgement(
        verdict=verdict,
        ours="gain, nats a token: " + "; ".join(f"{_millions(size)}: {each}" for size, each in found.items()),
        finding=f"A factor e in parameters is worth {-slopes['vanilla']:.3f} nats to vanilla and "
        f"{-slopes['kv']:.3f} to KV shift at the same tokens{says}.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Losses by parameters with the line through each arm's (figure 7), and gains by size (figure 6)."""
    by_size = _gains(measurements)
    gains = {_millions(size): values for size, values in by_size.items()}
    arms = Arms(measurements, NAMED).by_name

    def painter(figure: Figure) -> None:
        losses, gained = figure.subplots(1, 2)
        for name, colour in (("vanilla", "C1"), ("kv", "C0")):
            _losses(losses, arms[name], "KV shift" if name == "kv" else name, colour)
        losses.set(xscale="log", xlabel="parameters", ylabel="validation loss, nats a token")
        losses.set_xticks(list(by_size), list(gains))
        losses.minorticks_off()  # their labels, powers of ten, would overlap
        losses.set_title("Loss and its fit by parameters")
        losses.grid(alpha=0.3)
        losses.legend(fontsize=7.5)
        gains_on(gained, gains)
        gained.set(title="Gain by parameters", xlabel="gain over vanilla, nats a token")

    return paint(kind, 8.4, 3.4, painter)


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.3g}M"


def _losses(axes: Any, runs: Sequence[Trained], label: str, colour: str) -> None:
    slope, intercept = _line(runs)
    ends = [min(run.parameters for run in runs), max(run.parameters for run in runs)]
    axes.plot(
        [run.parameters for run in runs], [run.loss for run in runs], "o", color=colour, alpha=0.5, ms=4
    )
    axes.plot(ends, [intercept + slope * math.log(end) for end in ends], color=colour, label=label)


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
