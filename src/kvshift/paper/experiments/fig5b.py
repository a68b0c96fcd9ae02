"""Figures 5b and 5c: learning rates, up to those at which vanilla diverges."""

from __future__ import annotations

from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale, Verdict
from kvshift.paper.language import ABOVE_LOWEST, PAPER, Arms, Trained, arms_runs, measure
from kvshift.paper.loss_figures import draw_losses
from kvshift.shift import KVShiftConfig

NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, "kv": PAPER}
LABELS = {"vanilla": "vanilla", "kv": "KV shift"}


def _runs(scale: Scale, seeds: int, rates: Sequence[float]) -> tuple[Run, ...]:
    """The learning rate stays where it is after the warm-up, as in the paper."""
    return tuple(
        Run(f"rate{rate:g}-{run.name}", run.settings)
        for rate in rates
        for run in arms_runs(scale, NAMED, seeds, learning_rate=rate, final_learning_rate=1.0)
    )


def _by_rate(measurements: Sequence[Measurement]) -> dict[float, dict[str, list[Trained]]]:
    found = Arms(measurements, NAMED)
    rates = sorted({run.learning_rate for run in found.all})
    return {
        rate: {
            name: [run for run in runs if run.learning_rate == rate] for name, runs in found.by_name.items()
        }
        for rate in rates
    }


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    said, diverged = [], {"vanilla": 0, "kv": 0}
    behind = parted = False
    for rate, arms in _by_rate(measurements).items():
        lost = {name: sum(run.diverged for run in runs) for name, runs in arms.items()}
        for name, count in lost.items():
            diverged[name] += count
        behind |= lost["kv"] > lost["vanilla"]
        parted |= lost["vanilla"] == len(arms["vanilla"]) > 1 and lost["kv"] == 0
        said.append(f"{rate:g}: {lost['vanilla']} and {lost['kv']} of {len(arms['kv'])}")
    if diverged["vanilla"] == diverged["kv"] == 0:
        verdict: Verdict = "undecided"
    elif behind or diverged["kv"] >= diverged["vanilla"]:
        verdict = "not"
    else:
        verdict = "reproduced" if parted else "partly"
    return Judgement(
        verdict=verdict,
        ours="diverged by learning rate, vanilla and KV shift: " + "; ".join(said),
        finding=f"Of all runs {diverged['vanilla']} of vanilla and {diverged['kv']} with KV shift diverged.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Loss against tokens, a panel a rate."""
    panels = {
        f"learning rate {rate:g}": {LABELS[name]: runs for name, runs in arms.items()}
        for rate, arms in _by_rate(measurements).items()
    }
    return draw_losses(panels, kind)


EXPERIMENT = Experiment(
    name="fig5b",
    version=1,
    title="Learning rates",
    claim="At a learning rate of 1e-2 vanilla diverges and KV shift does not, at 1.5B parameters.",
    paper="vanilla diverges at 5 of 5 seeds, KV shift at none",
    rule="Reproduced if at some rate vanilla diverges at every seed, of several, and KV shift at none, and "
    "at no rate KV shift diverges more often; partly if KV shift diverges less often, and at no rate more "
    "often; not if it diverges as often, or more often at some rate, than vanilla does; undecided if nothing "
    "diverges. A run diverges if its loss stops being a number or ends more than "
    f"{ABOVE_LOWEST:g} nats above its lowest.",
    runs={
        "tiny": _runs("tiny", 1, (3e-3, 1e-1)),
        "small": _runs("small", 3, (3e-3, 1e-2, 3e-2, 1e-1)),
        "gpu": _runs("gpu", 3, (1e-3, 1e-2, 3e-2)),
    },
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
