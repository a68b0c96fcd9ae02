"""Beyond the paper: whether the taps want a rate of their own, or a multiple of the model's (PAPER.md §7)."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale
from kvshift.paper.language import (
    Arms,
    arms_runs,
    default_multiple,
    in_file_name,
    measure,
    multiple_of,
)
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import TAP_LEARNING_RATE, KVShiftConfig

TAP_RATES = (0.003, 0.01, 0.03, 0.1)
MULTIPLE = 10.0  # what makes `TAP_LEARNING_RATE` of 3e-3, the rate of the small models it was found with
MODEL_RATES: dict[Scale, tuple[float, float]] = {
    "tiny": (1e-3, 3e-3),
    "small": (1e-3, 3e-3),
    "gpu": (3e-4, 1e-3),
}


def _shift(multiple: float) -> KVShiftConfig:
    return KVShiftConfig(init="structured", lr_multiplier=multiple)


def _arms(model_rate: float) -> dict[str, KVShiftConfig | None]:
    multiples = {multiple_of(tap_rate, model_rate) for tap_rate in TAP_RATES}
    return {"vanilla": None, **{f"×{each:g}": _shift(each) for each in sorted(multiples | {MULTIPLE})}}


NAMED: dict[str, KVShiftConfig | None] = {
    name: shift
    for model_rate in sorted({rate for rates in MODEL_RATES.values() for rate in rates})
    for name, shift in _arms(model_rate).items()
}


def _runs(scale: Scale, seeds: int) -> tuple[Run, ...]:
    return tuple(
        Run(f"rate{model_rate:g}-{in_file_name(run.name)}", run.settings)
        for model_rate in MODEL_RATES[scale]
        for run in arms_runs(scale, _arms(model_rate), seeds, learning_rate=model_rate)
    )


def _rates(arms: Arms) -> list[float]:
    return sorted({run.learning_rate for run in arms.all})


def _gains(arms: Arms, model_rate: float, multiple: float, over: str = "vanilla") -> list[float]:
    return arms.gains(f"×{multiple:g}", over, keep=lambda run: run.learning_rate == model_rate)


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    slower, _ = _rates(arms)
    kept = default_multiple(slower)
    lead = interval(_gains(arms, slower, kept, f"×{MULTIPLE:g}"))
    return Judgement(
        verdict=lead.verdict,
        ours=f"with the model at {slower:g}, taps at {TAP_LEARNING_RATE:g} (×{kept:g}) over ×{MULTIPLE:g}: "
        f"{lead} nats a token",
        finding="Gains over vanilla by the taps' rate. "
        + " ".join(
            f"Model at {model_rate:g}: "
            + "; ".join(
                f"{rate:g}: {interval(_gains(arms, model_rate, multiple_of(rate, model_rate)))}"
                for rate in TAP_RATES
            )
            + "."
            for model_rate in _rates(arms)
        ),
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains by the taps' rate, a panel for each rate of the model."""
    arms = Arms(measurements, NAMED)
    panels = {
        f"Model at {model_rate:g}": {
            f"taps at {rate:g} (×{multiple_of(rate, model_rate):.3g})": _gains(
                arms, model_rate, multiple_of(rate, model_rate)
            )
            for rate in TAP_RATES
        }
        for model_rate in _rates(arms)
    }
    return draw_gains(panels, "gain over vanilla, nats a token", kind)


EXPERIMENT = Experiment(
    name="tap_rate",
    version=1,
    title="A rate of the taps' own",
    claim="This package's, not the paper's: what counts is how fast the taps move, not how much faster than "
    "the model. A model that learns more slowly, as larger ones do, wants its taps at the same rate as "
    "before, not at the same multiple of its own.",
    paper="does not ask",
    rule=f"Reproduced if, at the slower of the model's rates, the 95% interval over paired seeds of the gain "
    f"of taps at {TAP_LEARNING_RATE:g} over taps at ×{MULTIPLE:g} lies above 0; not if it lies below; else "
    "undecided.",
    runs={"tiny": _runs("tiny", 2), "small": _runs("small", 3), "gpu": _runs("gpu", 3)},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
