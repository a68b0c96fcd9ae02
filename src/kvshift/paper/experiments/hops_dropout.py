"""Beyond the paper: multi-hop induction with GPT-2's own dropout. Are vanilla's errors the published ones?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Scale, Verdict
from kvshift.paper.experiments.fig9 import (
    CHANCE,
    LEARNED,
    NOISE,
    by_layers,
    course,
    draw,
    error,
    has_learned,
    hops_runs,
    leads,
    most_hops,
    not_published,
    unlike_published,
)
from kvshift.paper.learning import lost, measure

DROPOUT = 0.1
"""GPT-2's, unless one asks for another."""
LAYERS: dict[Scale, tuple[int, ...]] = {"tiny": (1,), "small": (2,), "gpu": (4,)}
"""At scale gpu one of the two depths of `fig9`, at both of which vanilla was better than published."""


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    ((_, curves),) = by_layers(measurements).items()
    if nothing := lost(curves):
        return nothing
    lead, unlike, most = leads(curves), unlike_published(curves), most_hops(curves)
    lower = [hops for hops, gain in lead.items() if gain.mean > 0]
    clearly = [hops for hops, gain in lead.items() if gain.low > 0]
    verdict: Verdict = "not"
    if not has_learned(curves):
        verdict = "undecided"
    elif len(lower) == len(lead) and not unlike:
        verdict = "reproduced" if len(clearly) == len(lead) else "partly"
    said = []
    for hops in (most // 2, most):
        before, after = (error(curves, shifted, hops).mean for shifted in (False, True))
        said.append(f"{hops} hops: {before:.3f} → {after:.3f}")
    return Judgement(
        verdict=verdict,
        ours=f"error with a dropout of {DROPOUT:g}, vanilla → KV shift: " + "; ".join(said),
        finding=f"KV shift errs less, on average over seeds, at {len(lower)} of {len(lead)} numbers of hops "
        f"from half of the most on; the interval of the difference leaves out 0 at {len(clearly)} "
        f"({most} hops: {lead[most]}).{not_published(unlike)} Vanilla's error at the most hops, over the "
        f"run: {course(curves, most)}.",
    )


EXPERIMENT = Experiment(
    name="hops_dropout",
    version=1,
    title="Multi-hop induction with GPT-2's dropout",
    claim="This package's, not the paper's: the published errors at hops of vanilla models of four layers "
    f"are those of GPT-2 with its own dropout of {DROPOUT:g}, and with it, too, KV shift errs less.",
    paper="names GPT-2 and no dropout; vanilla's error at 8 hops with 4 layers: .216",
    rule="Reproduced if vanilla's published errors, where task, size and steps are the paper's (scale gpu), "
    f"lie nowhere more than {NOISE:g} outside the 95% interval of its own, and KV shift's error is below "
    "vanilla's at every number of hops from half of the most on, with an interval over paired seeds that "
    "leaves out 0; partly if only the means are below; undecided if at half of the most hops no arm's error "
    f"is below {LEARNED:g} (chance: {CHANCE:g}), or a run diverged; not otherwise.",
    runs={scale: hops_runs(scale, layers, DROPOUT) for scale, layers in LAYERS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=partial(draw, also=f", a dropout of {DROPOUT:g}"),
)
