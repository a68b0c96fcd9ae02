"""Table 3: what the models know, here by the tokens that they predict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kvshift.paper.copying import Count
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Scale, Verdict
from kvshift.paper.language import PAPER, Arms, Trained, arms_runs, measure
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_gains
from kvshift.shift import KVShiftConfig

NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, "kv": PAPER}
KINDS: dict[Count, str] = {"all": "every token", "copied": "tokens to copy", "other": "other tokens"}
SEEDS: dict[Scale, int] = {"tiny": 2, "small": 5, "gpu": 5}


def _gains(measurements: Sequence[Measurement]) -> dict[Count, list[float]]:
    """Seed by seed, in percentage points."""
    arms = Arms(measurements, NAMED)
    return {
        kind: arms.gains(
            "kv",
            value=partial(_percent, kind),
        )
        for kind in KINDS
    }


def _percent(kind: Count, run: Trained) -> float:
    return 100 * run.share(kind)


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    gains = _gains(measurements)
    found = {kind: interval(values) for kind, values in gains.items()}
    verdict: Verdict = "undecided"
    if found["all"].low > 0:
        verdict = "reproduced"
    elif found["all"].high < 0:
        verdict = "not"
    shares = {
        name: sum(run.share("all") for run in runs) / len(runs)
        for name, each in Arms(measurements, NAMED).by_name.items()
        if (runs := [run for run in each if run.measured["predicted"] is not None])
    }
    return Judgement(
        verdict=verdict,
        ours="gain in accuracy, percentage points: "
        + "; ".join(f"{KINDS[kind]}: {each.rounded(2)}" for kind, each in found.items()),
        finding=f"Vanilla predicts {shares['vanilla']:.1%} of the validation tokens, KV shift "
        f"{shares['kv']:.1%}. A token can be copied if the one before it occurred before and the same "
        "token followed.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Gains by kind of token."""
    gains = {KINDS[each]: values for each, values in _gains(measurements).items()}
    return draw_gains({"Tokens predicted": gains}, "gain over vanilla, percentage points", kind)


EXPERIMENT = Experiment(
    name="table3",
    version=1,
    title="What the models predict",
    claim="Models with KV shift do better on benchmarks: on average 38.57 against 36.45 at 2.9B parameters.",
    paper="+2.12 points on average (2.9B, 500B tokens), +0.77 (19B, 200B)",
    rule="Reproduced if the 95% interval, over paired seeds, of KV shift's gain in accuracy on "
    "all validation tokens lies above 0; not if it lies below 0; else undecided. Models of these sizes "
    "answer the paper's benchmarks by chance, so the tokens they predict stand in for them.",
    runs={scale: arms_runs(scale, NAMED, seeds) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
