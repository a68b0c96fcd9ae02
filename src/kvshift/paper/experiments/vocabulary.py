"""Beyond the paper: whether the null result of 3-gram rules hangs on how many rules share a second token."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.curves import Panel, draw_curves
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.experiments.fig3 import (
    MARGIN,
    SCORE,
    SEEDS,
    SIZES,
    difference,
    last_token_share,
    ngram_runs,
    size_name,
)
from kvshift.paper.learning import Curve, curve, lost, measure
from kvshift.tasks.ngram import NGram

LARGE: dict[Scale, int] = {"tiny": 64, "small": 1024, "gpu": 1024}
"""Tokens so many that most rules have a second token of their own: the last token alone tells nine answers of
ten (at scale tiny of 64)."""


def _runs(scale: Scale) -> tuple[Run, ...]:
    """The smallest size over the vocabulary of `fig3`, every size over the large one."""
    first_seed = max(SEEDS.values())  # those of `fig3` were looked at before this was asked
    seeds = range(first_seed, first_seed + SEEDS[scale])
    smallest = dict([min(SIZES[scale].items())])
    return (
        *ngram_runs("shared-", scale, seeds, smallest),
        *ngram_runs("own-", scale, seeds, SIZES[scale], vocab_size=LARGE[scale]),
    )


def _by_task(measurements: Sequence[Measurement]) -> dict[int, dict[str, list[Curve]]]:
    """By vocabulary, the smaller first, and size."""
    found: dict[int, dict[str, list[Curve]]] = {}
    curves = [curve(each) for each in measurements]
    for each in sorted(curves, key=lambda each: (_vocabulary(each), each.width)):
        found.setdefault(_vocabulary(each), {}).setdefault(size_name(each), []).append(each)
    return found


def _vocabulary(run: Curve) -> int:
    found: int = run.task_settings.get("vocab_size", NGram.vocab_size)
    return found


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    by_task = _by_task(measurements)
    if nothing := lost([curve(each) for each in measurements]):
        return nothing
    found = {
        vocabulary: {size: difference(curves) for size, curves in by_size.items()}
        for vocabulary, by_size in by_task.items()
    }
    shared, own = found.values()
    (of_shared,) = shared.values()
    same = [each.none for each in own.values()]
    verdict: Verdict = "undecided"
    if of_shared.none or of_shared.loss or any(each.gain or each.loss for each in own.values()):
        verdict = "not"
    elif of_shared.gain and any(same):
        verdict = "reproduced" if all(same) else "partly"
    last_token = {
        vocabulary: [last_token_share(each) for curves in by_size.values() for each in curves]
        for vocabulary, by_size in by_task.items()
    }
    return Judgement(
        verdict=verdict,
        ours="gain in accuracy: "
        + "; ".join(
            f"{vocabulary:,} tokens, {size}: {each}"
            for vocabulary, differences in found.items()
            for size, each in differences.items()
        ),
        finding="The last token alone tells "
        + ", ".join(
            f"{min(shares):.1%} to {max(shares):.1%} ({vocabulary:,} tokens)"
            for vocabulary, shares in last_token.items()
        )
        + f" of the answers. Over the fewer tokens a gain of more than {MARGIN:g} is "
        f"{'' if of_shared.gain else 'not '}shown; over the more, no difference within ±{MARGIN:g} at "
        f"{sum(same)} of {len(same)} sizes.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Accuracy on the rules against steps, a panel a vocabulary and size."""
    panels = [
        Panel(f"{vocabulary:,} tokens: {size}", curves)
        for vocabulary, by_size in _by_task(measurements).items()
        for size, curves in by_size.items()
    ]
    return draw_curves(panels, SCORE, "accuracy, third tokens of rules", kind)


EXPERIMENT = Experiment(
    name="vocabulary",
    version=1,
    title="3-gram rules over fewer and more tokens",
    claim="This package's, not the paper's: whether KV shift gains nothing on 3-gram rules depends on the "
    "vocabulary. Where several rules share each second token, the smallest model gains; where most "
    "rules have their own, no size does.",
    paper="no gain and no loss at any size; gives no vocabulary",
    rule="Reproduced if, by the intervals of `fig3` at seeds that it does not have, the smallest size gains "
    f"more than {MARGIN:g} over the smaller vocabulary, at the end or averaged over the run, and every size "
    f"is shown to have no difference beyond ±{MARGIN:g} over the larger one, both arms being above what the "
    "last token alone can tell; not if over the smaller one there is shown to be none either, or a loss "
    "beyond it, or if over the larger one some size is shown to have one; else partly if the gain is shown, "
    "and no difference at some size; undecided else, or if a run diverged.",
    runs={scale: _runs(scale) for scale in SEEDS},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
