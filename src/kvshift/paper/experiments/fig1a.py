"""Figure 1, left: toy induction by depth. One KV shifting layer against 1, 2 and 4 vanilla ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvshift.paper.curves import Panel, draw_curves
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale
from kvshift.paper.learning import Curve, arm_name, curve, llama, lost, make_run, measure

SCORE = "first"
LEVEL = 0.99
CHANCE = 0.2  # an accuracy below it: no induction, whatever else helps to guess
ARMS = ((True, 1), (False, 1), (False, 2), (False, 4))  # shifted, layers


def _runs(scale: Scale, seeds: dict[int, int], hidden: int, heads: int, **fields: Any) -> tuple[Run, ...]:
    """`seeds`: how many of each number of layers."""
    return tuple(
        make_run(
            f"layers{layers}",
            scale,
            shifted=shifted,
            seed=seed,
            task="induction",
            model=llama(hidden, layers, heads),
            **fields,
        )
        for seed in range(max(seeds.values()))
        for shifted, layers in ARMS
        if seed < seeds[layers]
    )


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    curves = [curve(each) for each in measurements]
    if nothing := lost(curves):
        return nothing
    budget = max(each.steps[-1] for each in curves)
    shifted = _arm(curves, True, 1)
    deeper = [*_arm(curves, False, 2), *_arm(curves, False, 4)]
    sooner = [_sooner(ours, other) for ours in shifted for other in deeper if ours.seed == other.seed]
    two = [
        _sooner(ours, other)
        for ours in shifted
        for other in deeper
        if ours.seed == other.seed and other.layers == 2
    ]
    learned = all(each.reached(SCORE, LEVEL) is not None for each in shifted)
    shallow = max(each.final(SCORE) for each in _arm(curves, False, 1))
    whole = learned and all(sooner) and shallow < CHANCE
    steps = {
        arm_name(layers, is_shifted): _steps(_arm(curves, is_shifted, layers)) for is_shifted, layers in ARMS
    }
    ends = ", ".join(
        f"{arm_name(layers, is_shifted)} {sum(found) / len(found):.1%}"
        for is_shifted, layers in ARMS
        if (found := [each.final(SCORE) for each in _arm(curves, is_shifted, layers)])
    )
    return Judgement(
        verdict="reproduced" if whole else "partly" if two and all(two) else "not",
        ours=f"{LEVEL:.0%} at step: " + "; ".join(f"{arm} {said}" for arm, said in steps.items()),
        finding=f"Accuracy at the first determined position after {budget:,} steps, mean over seeds: {ends}.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Accuracy at the first determined position against steps."""
    panel = Panel("toy induction by depth", [curve(each) for each in measurements])
    return draw_curves([panel], SCORE, "accuracy, first determined position", kind)


def _arm(curves: Sequence[Curve], shifted: bool, layers: int) -> list[Curve]:
    return [each for each in curves if each.shifted == shifted and each.layers == layers]


def _sooner(ours: Curve, other: Curve) -> bool:
    mine, theirs = ours.reached(SCORE, LEVEL), other.reached(SCORE, LEVEL)
    return mine is not None and (theirs is None or mine < theirs)


def _steps(curves: Sequence[Curve]) -> str:
    reached = [each.reached(SCORE, LEVEL) for each in curves]
    return ", ".join("never" if step is None else f"{step:,}" for step in reached)


EXPERIMENT = Experiment(
    name="fig1a",
    version=1,
    title="Toy induction by depth",
    claim="One layer of KV shifting attention learns induction, far sooner than 2 or 4 vanilla layers; one "
    "vanilla layer does not learn it.",
    paper="one KV shift layer to about 100%",
    rule=f"Reproduced if every 1-layer KV shift run reaches {LEVEL:.0%} at the first determined position "
    "within the budget, sooner than the 2-layer and the 4-layer vanilla run of its seed (which need not "
    f"reach it), and every 1-layer vanilla run ends below {CHANCE:.0%}; partly if each KV shift run reaches "
    "it sooner than the 2-layer vanilla run of its seed; not otherwise.",
    runs={
        "tiny": _runs(
            "tiny",
            {1: 1, 2: 1, 4: 1},
            8,
            1,
            task_settings={"vocab_size": 32, "candidates": 16, "length": 32},
            steps=4,
            batch_size=8,
            learning_rate=1e-2,
            evaluate_every=2,
            evaluation_rows=16,
        ),
        "small": _runs(
            "small",
            {1: 3, 2: 3, 4: 3},
            64,
            4,
            task_settings={"vocab_size": 256, "candidates": 64, "length": 128},
            steps=800,
            batch_size=32,
            learning_rate=3e-3,
            warmup_steps=40,
            evaluate_every=20,
            evaluation_rows=256,
        ),
        # Four layers take about half of the time and decide little: one seed.
        "gpu": _runs(
            "gpu",
            {1: 3, 2: 3, 4: 1},
            1024,
            16,
            steps=2000,
            batch_size=256,
            learning_rate=2e-4,
            warmup_steps=1000,
            evaluate_every=50,
            evaluation_batches=4,
            evaluation_rows=256,
        ),
    },
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
