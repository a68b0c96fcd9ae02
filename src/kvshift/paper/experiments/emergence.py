"""Beyond the paper: when induction appears, by the taps' start and learning rate (PAPER.md §7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvshift.paper.experiment import Experiment, Judgement, Measurement
from kvshift.paper.experiments.starts import AS_IN_THE_PAPER
from kvshift.paper.experiments.travel import NAMED as TRAVELLED
from kvshift.paper.experiments.travel import SEEDS
from kvshift.paper.language import Arms, Trained, arms_runs, first_at, measure_copying
from kvshift.paper.learning import interval
from kvshift.paper.loss_figures import draw_over_tokens

OURS = "structured ×10"
NAMED = {name: shift for name, shift in TRAVELLED.items() if "×30" not in name}


def saved(run: Trained, vanilla: Trained) -> float:
    """The share of the run that a model needs less until it copies as well as vanilla does at its end.

    It does from where on it stays at that level: curves are noisy, and a first crossing may be luck. 0 where
    it ends below; NaN where one of them diverged.
    """
    if not (math.isfinite(run.loss) and math.isfinite(vanilla.loss)):
        return math.nan
    level, whole = vanilla.copying[-1][1], vanilla.copying[-1][0]
    below = [place for place, (_, share) in enumerate(run.copying) if share < level]
    last = below[-1] if below else -1
    if last == len(run.copying) - 1:
        return 0.0
    needed = first_at([(tokens, -share) for tokens, share in run.copying[max(last, 0) :]], -level)
    assert needed is not None  # everything behind the last one below
    return 1 - needed / whole


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    arms = Arms(measurements, NAMED)
    vanilla = {run.seed: run for run in arms.by_name["vanilla"]}
    shares = {
        name: {run.seed: saved(run, vanilla[run.seed]) for run in runs}
        for name, runs in arms.by_name.items()
        if name != "vanilla"
    }
    ours, papers = shares[OURS], shares[AS_IN_THE_PAPER]
    sooner = interval([ours[seed] - papers[seed] for seed in sorted(ours)])
    ends = {
        name: interval([100 * run.copying[-1][1] for run in runs if run.copying])
        for name, runs in arms.by_name.items()
        if any(run.copying for run in runs)
    }
    return Judgement(
        verdict=sooner.verdict,
        ours=f"{OURS} copies as well as vanilla at its end after {_rest(list(ours.values()))} of the run, "
        f"{AS_IN_THE_PAPER} after {_rest(list(papers.values()))}",
        finding="Of the run less, over seeds: "
        + "; ".join(f"{name}: {interval(list(found.values())).percent()}" for name, found in shares.items())
        + ". Of the tokens to copy predicted at the end, percent: "
        + "; ".join(f"{name}: {each.rounded(1)}" for name, each in ends.items())
        + ".",
    )


def _rest(shares: list[float]) -> str:
    mean = sum(shares) / len(shares)
    return f"{1 - mean:.0%}" if math.isfinite(mean) else "an unknown part"


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """The share of the tokens to copy that is predicted right, over the run."""
    arms = Arms(measurements, NAMED).by_name
    curves = {name: [run.copying for run in runs] for name, runs in arms.items()}
    return draw_over_tokens(
        {"When induction appears": curves}, "tokens to copy, predicted right", kind, highest=1
    )


EXPERIMENT = Experiment(
    name="emergence",
    version=1,
    title="When induction appears",
    claim=f"This package's, not the paper's: with taps at {OURS}, a model copies "
    "from its context sooner in training than with the paper's own setting.",
    paper="does not ask",
    rule=f"Reproduced if the 95% interval, over paired seeds, of what {OURS} saves beyond the paper's "
    "setting lies above 0, where a setting saves the share of the run that it needs less until it predicts, "
    "and from then on keeps predicting, as many of the tokens that its context would let it copy as vanilla "
    "does at the end; not if it lies "
    "below; else undecided.",
    runs={scale: arms_runs(scale, NAMED, seeds) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure_copying,
    judge=judge,
    draw=draw,
)
