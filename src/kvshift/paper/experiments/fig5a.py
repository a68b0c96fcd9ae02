"""Figure 5a: ahead at every seed."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Scale, Verdict
from kvshift.paper.language import PAPER, Arms, arms_runs, data_saved, measure
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_losses
from kvshift.shift import KVShiftConfig

NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, "kv": PAPER}
SEEDS: dict[Scale, int] = {"tiny": 2, "small": 5, "gpu": 5}


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    gains = arms.gains("kv")
    found, ahead = interval(gains), sum(gain > 0 for gain in gains)
    if found.low > 0:
        verdict: Verdict = "reproduced" if ahead == len(gains) else "partly"
    else:
        verdict = "not" if found.mean <= 0 else "partly" if ahead == len(gains) else "undecided"
    return Judgement(
        verdict=verdict,
        ours=f"gain {found} nats a token, ahead at {ahead} of {len(gains)} seeds",
        finding="KV shift needs "
        f"{interval(data_saved(arms, 'kv')).percent()} less data for vanilla's "
        "final loss (0 where it does not get there).",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Loss against tokens."""
    found = Arms(measurements, NAMED).by_name
    labels = {"vanilla": "vanilla", "kv": "KV shift"}
    return draw_losses({"Every seed": {labels[name]: runs for name, runs in found.items()}}, kind)


EXPERIMENT = Experiment(
    name="fig5a",
    version=1,
    title="Five seeds of a language model",
    claim="With five seeds at 1.5B parameters KV shift is always ahead.",
    paper="ahead at 5 of 5 seeds",
    rule="Reproduced if KV shift's final validation loss is lower at every seed and the 95% interval of the "
    "mean gain lies above 0; partly if only one of both holds; not if the mean gain is not above 0; else "
    "undecided.",
    runs={scale: arms_runs(scale, NAMED, seeds) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
