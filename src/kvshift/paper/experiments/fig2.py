"""Figure 2: the landscape of Theorem 3's loss over (α1, β1), and where its gradient flow leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Settings
from kvshift.paper.place import Place
from kvshift.paper.theory.landscape import ORDERS, Landscape, compute
from kvshift.paper.theory.logits import SLIPS
from kvshift.paper.theory.picture import draw_landscape

SHARE = 0.99  # of the descents


def _runs(points: int, starts: int) -> tuple[Run, ...]:
    pairs = [[one, other] for place, one in enumerate(SLIPS) for other in SLIPS[place + 1 :]]
    return tuple(
        Run(
            "derived" if not slipped else "slipped-" + "-and-".join(slipped),
            {"orders": list(ORDERS), "points": points, "starts": starts, "slipped": slipped},
        )
        for slipped in ([], *pairs)
    )


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """Three panels."""
    return compute(**settings).model_dump()


def _landscapes(measurements: Sequence[Measurement]) -> tuple[Landscape, list[Landscape]]:
    """The derived one, and those with the slip of the printed table."""
    every = [Landscape.model_validate(measurement.measured) for measurement in measurements]
    return next(each for each in every if not each.slipped), [each for each in every if each.slipped]


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    derived, slipped = _landscapes(measurements)
    led = [panel.corner_is_lowest and panel.share_to_corner >= SHARE for panel in derived.panels]
    shares = ", ".join(f"{panel.share_to_corner:.0%}" for panel in derived.panels)
    depths = ", ".join(f"{panel.highest_loss - panel.corner_loss:.3g}" for panel in derived.panels)
    elsewhere = [
        f"{' and '.join(each.slipped)}: {panel.share_to_corner:.0%} at O(T) = {panel.order:g}"
        for each in slipped
        for panel in each.panels
        if panel.share_to_corner < SHARE
    ]
    return Judgement(
        verdict="reproduced" if all(led) else "partly" if any(led) else "not",
        ours=f"descents that end there: {shares}",
        finding=f"The loss at the corner is {depths} nats below the highest. {_free(derived)} With α2 for α1 "
        "in two rows, as the printed table has it, fewer descents end there: "
        + ("; ".join(elsewhere) or "in no panel")
        + ".",
    )


def _free(landscape: Landscape) -> str:
    """Where taps that may leave [0, 1] would go from the corner."""
    outwards = all(
        max(alpha1, beta2) < 0 < min(alpha2, beta1)
        for alpha1, alpha2, beta1, beta2 in (panel.free_flow for panel in landscape.panels)
    )
    if outwards:
        return "It is no resting place: free taps would go on past it, α1 and β2 below 0, α2 and β1 above 1."
    return "Free taps would not all go on past it."


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """The paper's three panels."""
    return draw_landscape(_landscapes(measurements)[0], kind)


EXPERIMENT = Experiment(
    name="fig2",
    version=1,
    title="The landscape over (α1, β1)",
    claim="For O(T) = 0, 10 and 100, over (α1, β1) with α2 = 1 − α1 and β2 = 1 − β1, the gradient flow leads "
    "to the induction head, the corner (0, 1).",
    paper="flow to (0, 1)",
    rule="Reproduced if in every panel the corner (0, 1) is the lowest point of the grid and at least "
    f"{SHARE:.0%} of the descents from a grid of starts end there; partly if in some panels; not otherwise.",
    runs={"tiny": _runs(9, 5), "small": _runs(33, 15), "gpu": _runs(33, 15)},
    uses_gpu=False,
    measure=measure,
    judge=judge,
    draw=draw,
)
