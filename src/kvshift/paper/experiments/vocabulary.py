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
    ngram_runs,
    size_name,
)
from kvshift.paper.learning import Curve, curve, lost, measure
from kvshift.tasks.ngram import NGram

LARGE: dict[Scale, int] = {"tiny": 64, "small": 1024, "gpu": 1024}
"""Tokens so many that nearly every rule has a second token of its own: the last token alone decides."""


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
    for each in sorted(curves, key=lambda each: (_task(each).vocab_size, each.width)):
        found.setdefault(_task(each).vocab_size, {}).setdefault(size_name(each), []).append(each)
    return found


def _task(run: Curve) -> NGram:
    return NGram(**run.task_settings)


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
        vocabulary: _task(next(iter(by_size.values()))[0]).last_token_ceiling
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
        + ", ".join(f"{share:.1%} ({vocabulary:,} tokens)" for vocabulary, share in last_token.items())
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
    "vocabulary. Where second tokens are shared by several rules, the smallest model gains; where nearly "
    "every rule has its own, no size does.",
    paper="no gain and no loss at any size; gives no vocabulary",
    rule="Reproduced if, by the intervals of `fig3` at seeds that it does not have, the smallest size gains "
    f"more than {MARGIN:g} over the smaller vocabulary, and over the larger one no difference within "
    f"±{MARGIN:g} is shown at every size, both arms being above what the last token alone can tell; not if "
    "over the smaller one there is no such difference, or a loss, or over the larger one a difference at any "
    "size; else partly if the gain is shown, and no difference at some size; undecided else, or if a run "
    "diverged.",
    runs={scale: _runs(scale) for scale in SEEDS},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
