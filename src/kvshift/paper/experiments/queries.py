"""Beyond the paper: queries shifted too, with the taps as the default has them (paper figure 10)."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale
from kvshift.paper.language import MODEL_RATES, Arms, arms_runs, default_multiple, measure
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig


def _arms(model_rate: float) -> dict[str, KVShiftConfig | None]:
    """The taps' rate is written as its multiple, as in `starts`, which so has some of these runs."""
    multiple = default_multiple(model_rate)
    return {
        "vanilla": None,
        f"KV ×{multiple:g}": KVShiftConfig(lr_multiplier=multiple),
        f"QKV ×{multiple:g}": KVShiftConfig(lr_multiplier=multiple, shift_queries=True),
    }


NAMED = {name: shift for rate in MODEL_RATES.values() for name, shift in _arms(rate).items()}


def _runs(scale: Scale, seeds: int) -> tuple[Run, ...]:
    arms = {name.split(" ")[0]: shift for name, shift in _arms(MODEL_RATES[scale]).items()}
    return arms_runs(scale, arms, seeds)


def _names(arms: Arms) -> tuple[str, str]:
    """What the two shifted arms are called at the model's rate."""
    _, kv, qkv = _arms(arms.all[0].learning_rate)
    return kv, qkv


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    kv, qkv = _names(arms)
    lead = interval(arms.gains(qkv, kv))
    return Judgement(
        verdict=lead.verdict,
        ours=f"gain of QKV over KV shift, nats a token: {lead}",
        finding=f"Gains over vanilla: KV shift {interval(arms.gains(kv))}; "
        f"queries too {interval(arms.gains(qkv))}.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains over vanilla, every seed."""
    arms = Arms(measurements, NAMED)
    kv, qkv = _names(arms)
    gains = {"KV shift": arms.gains(kv), "QKV": arms.gains(qkv)}
    return draw_gains({"Queries too, by default": gains}, "gain over vanilla, nats a token", kind)


EXPERIMENT = Experiment(
    name="queries",
    version=1,
    title="Queries shifted too, by default",
    claim="This package's, not the paper's: with the default's start and its taps' rate, shifting the "
    "queries too gains on top of shifting keys and values.",
    paper="a similar loss at 19B parameters, with taps from U(0, 1) at the model's rate",
    rule="Reproduced if the 95% interval over paired seeds of the gain of QKV over KV shift, both with the "
    "default's start and rate of the taps, lies above 0; not if it lies below; else undecided.",
    runs={"tiny": _runs("tiny", 2), "small": _runs("small", 3), "gpu": _runs("gpu", 3)},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
