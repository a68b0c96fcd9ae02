"""The figures of experiments that train: learning curves, and numbers by arm, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvshift.paper.figure import paint
from kvshift.paper.learning import Curve, arm_name, interval, kind_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("C1", "C0", "C2", "C4")
Points = Sequence[tuple[float, float]]
"""Where, and what there is then, of one run."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the curves of one size or one task."""

    title: str
    curves: list[Curve]


@dataclass(frozen=True)
class Series:
    """Numbers along an axis, several at each place (one a seed)."""

    label: str
    values: dict[int, list[float]]
    dashed: bool = False


def draw_curves(panels: Sequence[Panel], score: str, ylabel: str, kind: str) -> bytes:
    """Accuracy against steps: a thin line a run, a thick one their mean, a band its 95% interval.

    Raises:
        UsageError: see `paint`.
    """

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(places, panels, strict=True):
            arms = sorted({(not each.shifted, each.layers) for each in panel.curves})
            # The last panel's legend is for all of them.
            alike = len({layers for _, layers in arms}) == 1 < len(panels)
            for colour, (vanilla, layers) in zip(_COLOURS, arms, strict=False):
                runs = [
                    list(zip(each.steps, each.accuracies(score), strict=True))
                    for each in panel.curves
                    if (each.shifted, each.layers) == (not vanilla, layers)
                ]
                name = kind_name(not vanilla) if alike else arm_name(layers, not vanilla)
                draw_arm(axes, runs, name, colour, highest=1)
            axes.set(title=panel.title, xlabel="step", ylim=(-0.03, 1.03))
            axes.grid(alpha=0.3)
        places[0].set_ylabel(ylabel)
        places[-1].legend(fontsize=7.5)

    return paint(kind, max(3.0 * len(panels), 4.6), 3.4, painter)


def draw_series(panels: Sequence[tuple[str, Sequence[Series]]], xlabel: str, ylabel: str, kind: str) -> bytes:
    """Means against a whole number; where there are several seeds, a dot each and a 95% interval.

    Raises:
        UsageError: see `paint`.
    """

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, all_series) in zip(places, panels, strict=True):
            for colour, series in zip(_COLOURS, all_series, strict=False):
                if series.dashed:
                    means = [sum(values) / len(values) for values in series.values.values()]
                    axes.plot(list(series.values), means, "--", color="#555555", label=series.label)
                else:
                    _series(axes, series, colour)
            axes.set(
                title=title, xlabel=xlabel, xticks=sorted({x for each in all_series for x in each.values})
            )
            axes.tick_params(axis="x", labelsize=7.5)  # there may be many
            axes.grid(alpha=0.3)
        places[0].set_ylabel(ylabel)
        places[-1].legend(fontsize=7.5)

    return paint(kind, max(3.4 * len(panels), 4.6), 3.4, painter)


def draw_arm(
    axes: Any, runs: Sequence[Points], label: str, colour: str, *, highest: float = math.inf
) -> None:
    """Adds a thin line a run, a thick one their mean and, where there are several, a band its 95% interval.

    Args:
        runs: at least one, at the same places; a diverged one ends early, and mean and band with it.
        highest: a value that nothing exceeds, whatever Student's t says; nothing is below 0 either.
    """
    for run in runs:
        axes.plot([x for x, _ in run], [y for _, y in run], color=colour, lw=0.5, alpha=0.6)
    shortest = [x for x, _ in min(runs, key=len)]
    found = [interval([run[i][1] for run in runs]) for i in range(len(shortest))]
    axes.plot(shortest, [each.mean for each in found], color=colour, lw=1.8, label=label)
    if len(runs) > 1:
        low, high = [max(each.low, 0) for each in found], [min(each.high, highest) for each in found]
        axes.fill_between(shortest, low, high, color=colour, alpha=0.15, lw=0)


def _series(axes: Any, series: Series, colour: str) -> None:
    found = [interval(values) for values in series.values.values()]
    means = [each.mean for each in found]
    # A share of answers has no place outside of 0 to 1, whatever Student's t says of a few seeds.
    low, high = (
        [each.mean - max(each.low, 0) for each in found],
        [min(each.high, 1) - each.mean for each in found],
    )
    if all(len(values) == 1 for values in series.values.values()):
        low = high = [0.0] * len(found)
    else:
        every = [(x, value) for x, values in series.values.items() for value in values]
        axes.plot(*zip(*every, strict=True), "o", color=colour, alpha=0.4, ms=4, mew=0)
    style = {"fmt": "o-", "ms": 3, "capsize": 2, "elinewidth": 0.8, "color": colour}
    axes.errorbar(list(series.values), means, (low, high), label=series.label, **style)
