"""Figure 8b: shifting only the keys, or only the values, is worse than shifting both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Scale, Verdict
from kvshift.paper.language import PAPER, Arms, arms_runs, measure
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig

HALVES: dict[str, KVShiftConfig | None] = {
    "keys": dataclasses.replace(PAPER, shift_values=False),
    "values": dataclasses.replace(PAPER, shift_keys=False),
}
NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, "kv": PAPER, **HALVES}
SEEDS: dict[Scale, int] = {"tiny": 2, "small": 5, "gpu": 5}


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    found = {half: interval(arms.gains(half, "kv")) for half in HALVES}
    worse = [half for half, each in found.items() if each.high < 0]
    if any(each.low > 0 for each in found.values()):
        verdict: Verdict = "not"
    elif len(worse) == len(HALVES):
        verdict = "reproduced"
    else:
        verdict = "partly" if worse else "undecided"
    over = {name: interval(arms.gains(name)) for name in ("kv", *HALVES)}
    return Judgement(
        verdict=verdict,
        ours="gain over both, nats a token: "
        + "; ".join(f"{half} only: {each}" for half, each in found.items()),
        finding="Gains over vanilla: " + "; ".join(f"{name}: {each}" for name, each in over.items()) + ".",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains over vanilla."""
    arms = Arms(measurements, NAMED)
    gains = {label: arms.gains(name) for name, label in _LABELS.items()}
    return draw_gains({"What is shifted": gains}, "gain over vanilla, nats a token", kind)


_LABELS = {"kv": "keys and values", "keys": "keys only", "values": "values only"}

EXPERIMENT = Experiment(
    name="fig8b",
    version=1,
    title="Keys only, values only",
    claim="Shifting only the keys or only the values is worse than shifting both.",
    paper="both halves worse at 1.5B parameters, 10B tokens",
    rule="Reproduced if for keys only and for values only the 95% interval, over paired seeds, of the gain "
    "over shifting both lies wholly below 0; partly if one does; not if one lies wholly above 0; else "
    "undecided.",
    runs={scale: arms_runs(scale, NAMED, seeds) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
