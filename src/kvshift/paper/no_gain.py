"""Claims that a variant is no better than KV shift as it is, or no other (paper §2): a rule for each kind."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Verdict
from kvshift.paper.language import PAPER, Arms, arms_runs, in_file_name, measure
from kvshift.paper.learning import Interval, interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig

MARGIN = 0.02  # nats a token
_GAIN = (
    "the 95% interval, over paired seeds, of its gain over KV shift (KV shift's validation loss minus its "
    "own)"
)
_ELSE = (
    "else undecided, as where KV shift itself is not ahead of vanilla by such an interval: there a variant "
    "has nothing to keep."
)
RULE = (
    f"Reproduced if for every variant {_GAIN} ends below +{MARGIN:g} nats a token; not if such an interval "
    f"lies wholly above 0; {_ELSE}"
)
ALIKE_RULE = (
    f"Reproduced if for every variant {_GAIN} lies within ±{MARGIN:g} nats a token; not if such an interval "
    f"lies wholly beyond it; {_ELSE}"
)


def no_gain(
    name: str,
    title: str,
    claim: str,
    paper: str,
    variants: dict[str, KVShiftConfig],
    *,
    alike: bool = False,
) -> Experiment:
    """An experiment that trains vanilla, KV shift and the variants, and judges the variants by a rule.

    Args:
        alike: the claim is that a variant's loss is neither better nor worse, by `ALIKE_RULE`; else that it
            is not better, by `RULE`.
    """
    named: dict[str, KVShiftConfig | None] = {"vanilla": None, "KV shift": PAPER, **variants}
    arms = {in_file_name(arm.replace("KV shift", "kv")): shift for arm, shift in named.items()}

    def judge(measurements: Sequence[Measurement]) -> Judgement:
        found = Arms(measurements, named)
        intervals = {variant: interval(found.gains(variant, "KV shift")) for variant in variants}
        said = "; ".join(f"{variant}: {each}" for variant, each in intervals.items())
        over_vanilla = interval(found.gains("KV shift"))
        verdict: Verdict = "undecided"
        if any(_contradicts(each, alike) for each in intervals.values()):
            verdict = "not"
        elif over_vanilla.low > 0 and all(_agrees(each, alike) for each in intervals.values()):
            verdict = "reproduced"
        return Judgement(
            verdict=verdict,
            ours=f"gain over KV shift, nats a token: {said}",
            finding=f"KV shift's gain over vanilla is {over_vanilla} nats a token at the same seeds.",
        )

    def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
        found = Arms(measurements, named)
        gains = {each: found.gains(each) for each in ("KV shift", *variants)}
        return draw_gains({title: gains}, "gain over vanilla, nats a token", kind)

    return Experiment(
        name=name,
        version=1,
        title=title,
        claim=claim,
        paper=paper,
        rule=ALIKE_RULE if alike else RULE,
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


def _agrees(gain: Interval, alike: bool) -> bool:
    return gain.high < MARGIN and (not alike or gain.low > -MARGIN)


def _contradicts(gain: Interval, alike: bool) -> bool:
    return gain.low > MARGIN or gain.high < -MARGIN if alike else gain.low > 0
