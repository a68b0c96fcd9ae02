"""Figure 3: 3-gram rules, which KV shift neither helps nor hinders: a null result, tested as equivalence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvshift.paper.curves import Panel, draw_curves
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.learning import (
    Curve,
    average,
    curve,
    final,
    gains,
    interval,
    layers_name,
    llama,
    lost,
    make_run,
    measure,
)
from kvshift.tasks.ngram import NGram

SCORE = "rules"
MARGIN = 0.05
CONFIDENCE = 0.9  # both ends of it are tested, each at 5%


def _runs(scale: Scale, seeds: int, sizes: dict[tuple[int, int], float], **fields: Any) -> tuple[Run, ...]:
    """`sizes`: hidden size and layers, with their learning rate."""
    return tuple(
        make_run(
            f"width{width}",
            scale,
            shifted=shifted,
            seed=seed,
            task="ngram",
            model=llama(width, layers, max(width // 64, 1)),
            learning_rate=rate,
            **fields,
        )
        for seed in range(seeds)
        for (width, layers), rate in sizes.items()
        for shifted in (True, False)
    )


def _by_size(measurements: Sequence[Measurement]) -> dict[str, list[Curve]]:
    curves = sorted((curve(each) for each in measurements), key=lambda each: each.width)
    found: dict[str, list[Curve]] = {}
    for each in curves:
        found.setdefault(f"hidden {each.width}, {layers_name(each.layers)}", []).append(each)
    return found


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    said, learned_by, same, differs = [], {}, [], []
    by_size = _by_size(measurements)
    if nothing := lost([each for curves in by_size.values() for each in curves]):
        return nothing
    for size, curves in by_size.items():
        learned_by[size] = max(each.final(SCORE) for each in curves)
        # An arm that stays below knows which token follows one other, not which follows two.
        ceiling = NGram(**curves[0].task_settings).last_token_ceiling
        learned = min(_mean_final(curves, arm) for arm in (True, False)) > ceiling
        found = [interval(gains(curves, value(SCORE)), CONFIDENCE) for value in (final, average)]
        said.append(f"{size}: {found[0]} at the end, {found[1]} over the run")
        same.append(learned and all(each.low > -MARGIN and each.high < MARGIN for each in found))
        differs.append(any(each.low > MARGIN or each.high < -MARGIN for each in found))
    if any(differs):
        verdict: Verdict = "not"
    elif all(same):
        verdict = "reproduced"
    else:
        verdict = "partly" if any(same) else "undecided"
    return Judgement(
        verdict=verdict,
        ours="gain in accuracy: " + "; ".join(said),
        finding=f"The best run of each size knows {', '.join(f'{best:.1%}' for best in learned_by.values())} "
        f"of the answers ({'; '.join(learned_by)}). No difference within ±{MARGIN:g} is shown at "
        f"{sum(same)} of {len(same)} sizes, a larger one at {sum(differs)}.",
    )


def _mean_final(curves: Sequence[Curve], shifted: bool) -> float:
    ends = [each.final(SCORE) for each in curves if each.shifted is shifted]
    return sum(ends) / len(ends)


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Accuracy on the rules against steps, a panel a size."""
    panels = [Panel(size, curves) for size, curves in _by_size(measurements).items()]
    return draw_curves(panels, SCORE, "accuracy, third tokens of rules", kind)


EXPERIMENT = Experiment(
    name="fig3",
    version=1,
    title="3-gram rules: no difference",
    claim="On 3-gram rules KV shift neither gains nor loses, at 50M, 0.4M and 0.8K parameters.",
    paper="no gain and no loss",
    rule=f"Reproduced if at every size the 90% interval, over paired seeds, of KV shift's accuracy minus "
    f"vanilla's lies within ±{MARGIN:g}, both at the end and averaged over the run, and both arms end above "
    "what the last token alone can tell; not if at some size such an interval lies wholly beyond "
    f"±{MARGIN:g}; else partly if some size shows no difference, and undecided if none does, or a run "
    "diverged.",
    runs={
        "tiny": _runs(
            "tiny",
            2,
            {(8, 1): 1e-2},
            task_settings={"vocab_size": 16, "rules": 20, "length": 32},
            steps=4,
            batch_size=8,
            evaluate_every=2,
            evaluation_rows=16,
        ),
        "small": _runs(
            "small",
            3,
            {(8, 1): 1e-2, (64, 2): 3e-3},
            task_settings={"length": 128},
            steps=1000,
            batch_size=32,
            warmup_steps=50,
            evaluate_every=50,
            evaluation_rows=256,
        ),
        "gpu": _runs(
            "gpu",
            3,
            {(8, 1): 1e-2, (128, 2): 1e-3, (1024, 4): 2e-4},
            steps=1000,
            batch_size=64,
            warmup_steps=100,
            evaluate_every=50,
            evaluation_batches=4,
            evaluation_rows=64,
        ),
    },
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
