"""Figure 3: 3-gram rules, which KV shift neither helps nor hinders: a null result, tested as equivalence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvshift.paper.curves import Panel, draw_curves
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.learning import (
    Curve,
    Interval,
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
CONFIDENCE = 0.9  # each end of such an interval is tested at 5%


_SETTINGS: dict[Scale, dict[str, Any]] = {
    "tiny": {
        "task_settings": {"vocab_size": 16, "rules": 20, "length": 32},
        "steps": 4,
        "batch_size": 8,
        "evaluate_every": 2,
        "evaluation_rows": 16,
    },
    "small": {
        "task_settings": {"length": 128},
        "steps": 1000,
        "batch_size": 32,
        "warmup_steps": 50,
        "evaluate_every": 50,
        "evaluation_rows": 256,
    },
    "gpu": {
        "steps": 1000,
        "batch_size": 64,
        "warmup_steps": 100,
        "evaluate_every": 50,
        "evaluation_batches": 4,
        "evaluation_rows": 64,
    },
}
SIZES: dict[Scale, dict[tuple[int, int], float]] = {
    "tiny": {(8, 1): 1e-2},
    "small": {(8, 1): 1e-2, (64, 2): 3e-3},
    "gpu": {(8, 1): 1e-2, (128, 2): 1e-3, (1024, 4): 2e-4},
}
"""Hidden size and layers, with their learning rate."""

SEEDS: dict[Scale, int] = {"tiny": 2, "small": 3, "gpu": 3}


def ngram_runs(
    name: str, scale: Scale, seeds: Sequence[int], sizes: dict[tuple[int, int], float], **task_settings: Any
) -> tuple[Run, ...]:
    """Both arms of each size; `name` goes before the size's, `task_settings` over the scale's."""
    fields = dict(_SETTINGS[scale])
    settings = fields.pop("task_settings", {}) | task_settings
    return tuple(
        make_run(
            f"{name}width{width}",
            scale,
            shifted=shifted,
            seed=seed,
            task="ngram",
            task_settings=settings,
            model=llama(width, layers, max(width // 64, 1)),
            learning_rate=rate,
            **fields,
        )
        for seed in seeds
        for (width, layers), rate in sizes.items()
        for shifted in (True, False)
    )


def _by_size(measurements: Sequence[Measurement]) -> dict[str, list[Curve]]:
    curves = sorted((curve(each) for each in measurements), key=lambda each: each.width)
    found: dict[str, list[Curve]] = {}
    for each in curves:
        found.setdefault(size_name(each), []).append(each)
    return found


def size_name(run: Curve) -> str:
    """For people."""
    return f"hidden {run.width}, {layers_name(run.layers)}"


@dataclass(frozen=True)
class Difference:
    """Between the arms of one size and task."""

    at_end: Interval
    over_run: Interval
    learned: bool  # both arms know more than which token follows one other: which follows two

    @property
    def none(self) -> bool:
        """It is shown that there is none within `MARGIN`."""
        found = (self.at_end, self.over_run)
        return self.learned and all(each.low > -MARGIN and each.high < MARGIN for each in found)

    @property
    def gain(self) -> bool:
        """It is shown that there is one beyond `MARGIN`, for KV shift."""
        return any(each.low > MARGIN for each in (self.at_end, self.over_run))

    @property
    def loss(self) -> bool:
        """It is shown that there is one beyond `MARGIN`, against KV shift."""
        return any(each.high < -MARGIN for each in (self.at_end, self.over_run))

    def __str__(self) -> str:
        return f"{self.at_end} at the end, {self.over_run} over the run"


def difference(curves: Sequence[Curve]) -> Difference:
    """KV shift's accuracy minus vanilla's, each with its interval over seeds."""
    learned = all(_mean_above_last_token(curves, shifted) > 0 for shifted in (True, False))
    at_end, over_run = (interval(gains(curves, value(SCORE)), CONFIDENCE) for value in (final, average))
    return Difference(at_end, over_run, learned)


def _mean_above_last_token(curves: Sequence[Curve], shifted: bool) -> float:
    above = [each.final(SCORE) - last_token_share(each) for each in curves if each.shifted is shifted]
    return sum(above) / len(above)


def last_token_share(run: Curve) -> float:
    """Of the answers, those that the last token alone can tell, by the run's own rules."""
    return NGram(seed=run.seed, **run.task_settings).last_token_ceiling


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    by_size = _by_size(measurements)
    if nothing := lost([each for curves in by_size.values() for each in curves]):
        return nothing
    found = {size: difference(curves) for size, curves in by_size.items()}
    same = [each.none for each in found.values()]
    larger = [each.gain or each.loss for each in found.values()]
    if any(larger):
        verdict: Verdict = "not"
    elif all(same):
        verdict = "reproduced"
    else:
        verdict = "partly" if any(same) else "undecided"
    best = [max(each.final(SCORE) for each in curves) for curves in by_size.values()]
    return Judgement(
        verdict=verdict,
        ours="gain in accuracy: " + "; ".join(f"{size}: {each}" for size, each in found.items()),
        finding=f"The best run of each size knows {', '.join(f'{share:.1%}' for share in best)} "
        f"of the answers ({'; '.join(by_size)}). No difference within ±{MARGIN:g} is shown at "
        f"{sum(same)} of {len(same)} sizes, a larger one at {sum(larger)}.",
    )


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
    runs={scale: ngram_runs("", scale, range(seeds), SIZES[scale]) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
