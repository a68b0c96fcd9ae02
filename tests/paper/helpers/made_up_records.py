"""Records of experiments with tasks that no run made, for their rules."""

from __future__ import annotations

from collections.abc import Callable

from kvshift.paper.experiment import Measurement, Scale
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.experiments.fig9 import PUBLISHED, PUBLISHED_HOPS
from kvshift.paper.learning import Curve, curve

SIZE = 1000  # answers of each score
Shares = Callable[[Curve], dict[str, list[float]]]


def made_up(name: str, scale: Scale, shares: Shares) -> list[Measurement]:
    """A record of each run, with the accuracies that `shares` gives at its evaluations by score.

    A score `graded` goes to what the model wrote itself: of the test's problems, and of those as long as the
    longest it learned from.
    """
    made = []
    for run in EXPERIMENTS[name].runs[scale]:
        measured = {"status": "finished", "parameters": 1, "tap_parameters": 0, "points": [], "grades": {}}
        found = shares(curve(Measurement(run.settings, measured)))
        for kind, share in zip(("answers", "trained_answers"), found.get("graded", []), strict=False):
            measured["grades"][kind] = [round(share * SIZE), SIZE]
            measured["grades"][kind.replace("answers", "right")] = [round(share * SIZE / 2), SIZE]
        scores = {score: values for score, values in found.items() if score != "graded"}
        evaluations = len(next(iter(scores.values()))) if scores else 0
        measured["points"] = [
            {
                "step": run.settings["evaluate_every"] * (number + 1),
                "loss": 1.0,
                "scores": {score: [round(values[number] * SIZE), SIZE] for score, values in scores.items()},
            }
            for number in range(evaluations)
        ]
        made.append(Measurement(run.settings, measured))
    return made


def verdict(name: str, scale: Scale, shares: Shares) -> str:
    return EXPERIMENTS[name].judge(made_up(name, scale, shares)).verdict


def hops(
    errors: Callable[[int, int], float], gain=lambda depth, hops, seed: 0.05, spread: float = 0.0
) -> Shares:
    """`errors` of vanilla by layers and hops; `gain`: what KV shift has less; `spread`: of one seed to the
    next, in both arms."""

    def shares(run: Curve) -> dict[str, list[float]]:
        lower = gain if run.shifted else lambda *args: 0.0
        more = spread * (run.seed - 1)
        return {
            f"hops={k}": [1 - errors(run.layers, k) - more + lower(run.layers, k, run.seed)]
            for k in range(17)
        }

    return shares


def small_at_last(layers: int, hops: int, seed: int) -> float:
    return 0.3 if hops == 16 else 0.05


def at_least(least: float, less: float = 0.0) -> Callable[[int, int], float]:
    """The published errors less `less`, but at least `least`, so that there is room below them."""
    return lambda depth, hops: max(published(depth, hops) - less, least)


def published(layers: int, hops: int) -> float:
    """The paper's, and between its numbers that of the next larger one."""
    return next(
        error for k, error in zip(PUBLISHED_HOPS, PUBLISHED[layers], strict=True) if k >= max(hops, 1)
    )
