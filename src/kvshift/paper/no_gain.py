"""Claims that a variant is no better than KV shift as it is (paper §2): one rule for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Verdict
from kvshift.paper.language import PAPER, Arms, arms_runs, measure
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig

MARGIN = 0.02  # nats a token
RULE = (
    "Reproduced if for every variant the 95% interval, over paired seeds, of its gain over KV shift (KV "
    f"shift's validation loss minus its own) ends below +{MARGIN:g} nats a token; not if such an interval "
    "lies wholly above 0; else undecided."
)


def no_gain(
    name: str, title: str, claim: str, paper: str, variants: dict[str, KVShiftConfig], version: int = 1
) -> Experiment:
    """An experiment that trains vanilla, KV shift and the variants, and judges the variants by `RULE`."""
    named: dict[str, KVShiftConfig | None] = {"vanilla": None, "KV shift": PAPER, **variants}
    arms = {_file_name(arm): shift for arm, shift in named.items()}

    def judge(measurements: Sequence[Measurement]) -> Judgement:
        found = Arms(measurements, named)
        intervals = {variant: interval(found.gains(variant, "KV shift")) for variant in variants}
        said = "; ".join(f"{variant}: {each}" for variant, each in intervals.items())
        if any(each.low > 0 for each in intervals.values()):
            verdict: Verdict = "not"
        elif all(each.high < MARGIN for each in intervals.values()):
            verdict = "reproduced"
        else:
            verdict = "undecided"
        return Judgement(
            verdict=verdict,
            ours=f"gain over KV shift, nats a token: {said}",
            finding=f"KV shift's gain over vanilla is {interval(found.gains('KV shift'))} nats a token at "
            "the same seeds.",
        )

    def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
        found = Arms(measurements, named)
        gains = {each: found.gains(each) for each in ("KV shift", *variants)}
        return draw_gains({title: gains}, "gain over vanilla, nats a token", kind)

    return Experiment(
        name=name,
        version=version,
        title=title,
        claim=claim,
        paper=paper,
        rule=RULE,
        runs={
            "tiny": arms_runs("tiny", arms, 2),
            "small": arms_runs("small", arms, 5),
            "gpu": arms_runs("gpu", arms, 5),
        },
        uses_gpu=True,
        measure=measure,
        judge=judge,
        draw=draw,
    )


def _file_name(arm: str) -> str:
    return arm.replace("KV shift", "kv").replace(" ", "-")
