"""Beyond the paper: how the taps start, and how fast they may move, matter most (PAPER.md §7).

A screened design: every setting at a small size, then those that matter with more seeds at a larger one.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Settings, Verdict
from kvshift.paper.language import (
    PAPER,
    SIZES,
    Arms,
    Trained,
    arms_runs,
    data_saved,
    default_multiple,
    in_file_name,
    measure,
)
from kvshift.paper.learning import interval, llama
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import TAP_LEARNING_RATE, KVShiftConfig

STARTS = ("paper", "structured", "identity")
MULTIPLIERS = (1.0, 3.0, 10.0, 30.0)


def default_at(model_rate: float) -> str:
    """What the default is called here: its taps' rate is another multiple of each model's."""
    return _name(KVShiftConfig(lr_multiplier=default_multiple(model_rate)))


def _name(shift: KVShiftConfig) -> str:
    return f"{shift.init} ×{shift.lr_multiplier:g}{', per channel' if shift.per_channel else ''}"


SCREENED: dict[str, KVShiftConfig | None] = {
    _name(shift): shift
    for per_channel, init, multiplier in itertools.product((False, True), STARTS, MULTIPLIERS)
    for shift in [KVShiftConfig(init=init, lr_multiplier=multiplier, per_channel=per_channel)]  # type: ignore[arg-type]
}
AS_IN_THE_PAPER = _name(PAPER)
CONFIRMED = (
    AS_IN_THE_PAPER,
    "paper ×10",
    "structured ×1",
    "structured ×10",
    "structured ×30",
    "paper ×30",
    # Of those for each channel, the best three of the screening on Python's source.
    "structured ×10, per channel",
    "structured ×30, per channel",
    "identity ×30, per channel",
)
NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, **SCREENED}
_WIDTHS: dict[Scale, tuple[Settings, Settings]] = {
    "tiny": (llama(8, 1, 2), llama(16, 1, 2)),
    "small": (llama(32, 2, 2), llama(64, 2, 2)),
    "gpu": (llama(192, 4, 3), SIZES["gpu"]["model"]),
}


def _runs(scale: Scale, screening_seeds: int, seeds: int) -> tuple[Run, ...]:
    narrow, wide = _WIDTHS[scale]
    confirmed = {name: NAMED[name] for name in ("vanilla", *CONFIRMED)}
    stages = (("screen", NAMED, screening_seeds, narrow), ("confirm", confirmed, seeds, wide))
    return tuple(
        Run(f"{stage}-{in_file_name(run.name)}", run.settings)
        for stage, arms, count, model in stages
        for run in arms_runs(scale, arms, count, model=model)
    )


def _stages(arms: Arms) -> tuple[Callable[[Trained], bool], Callable[[Trained], bool]]:
    """Which runs are of the screening, and which of the confirmation: those of the larger size."""
    widest = max(run.settings["model"]["hidden_size"] for run in arms.all)
    return (
        lambda run: run.settings["model"]["hidden_size"] < widest,
        lambda run: run.settings["model"]["hidden_size"] == widest,
    )


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    screened, confirmed = _stages(arms)
    default = default_at(arms.all[0].learning_rate)
    gains = {name: arms.gains(name, keep=confirmed) for name in CONFIRMED}
    lead = arms.gains(default, AS_IN_THE_PAPER, keep=confirmed)
    led = interval(lead)
    better = [
        name
        for name in CONFIRMED
        if name != default and interval(arms.gains(name, default, keep=confirmed)).low > 0
    ]
    steady = _spread(gains[default]) <= _spread(gains[AS_IN_THE_PAPER])
    if led.low > 0:
        verdict: Verdict = "reproduced" if steady and not better else "partly"
    else:
        verdict = "not" if led.high < 0 else "undecided"
    said = {name: interval(values) for name, values in gains.items()}
    best = max(SCREENED, key=lambda name: _mean(arms.gains(name, keep=screened)))
    return Judgement(
        verdict=verdict,
        ours=f"{default} over {AS_IN_THE_PAPER}: {led} nats a token",
        finding="Gains over vanilla with more seeds: "
        + "; ".join(f"{name}: {each}" for name, each in said.items())
        + f". Data saved: {_saved(arms, default, confirmed)} by {default}, "
        f"{_saved(arms, AS_IN_THE_PAPER, confirmed)} by {AS_IN_THE_PAPER}. Best in the screening: {best}, "
        f"{_mean(arms.gains(best, keep=screened)):.3f}."
        + (f" Better than the default: {', '.join(better)}." if better else ""),
    )


def _saved(arms: Arms, name: str, keep: Callable[[Trained], bool]) -> str:
    return interval(data_saved(arms, name, keep=keep)).percent()


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.inf


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if all(map(math.isfinite, values)) else -math.inf


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains of every setting at the small size, and of some at the larger one."""
    arms = Arms(measurements, NAMED)
    screened, confirmed = _stages(arms)
    panels = {
        "Every setting, small": {name: arms.gains(name, keep=screened) for name in SCREENED},
        "Some, larger": {name: arms.gains(name, keep=confirmed) for name in CONFIRMED},
    }
    return draw_gains(panels, "gain over vanilla, nats a token", kind)


EXPERIMENT = Experiment(
    name="starts",
    version=1,
    title="How the taps start, and how fast they may move",
    claim="This package's, not the paper's: taps that start structured and learn at a rate of their own, "
    f"{TAP_LEARNING_RATE:g} (the default), beat the paper's own setting, and are steadier over seeds.",
    paper="does not ask",
    rule="Reproduced if at the larger size, over paired seeds, the 95% interval of the default's gain over "
    "the paper's setting lies above 0, the default's gains over vanilla spread no wider than the paper's, "
    "and no other confirmed setting's gain over the default has an interval above 0; partly if only the "
    "first holds; not if that interval lies below 0; else undecided.",
    runs={"tiny": _runs("tiny", 1, 2), "small": _runs("small", 1, 3), "gpu": _runs("gpu", 1, 3)},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
