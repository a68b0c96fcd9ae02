"""The figures of experiments with language models: loss against tokens, and gains by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvshift.paper.curves import Points, draw_arm
from kvshift.paper.figure import paint
from kvshift.paper.language import Trained
from kvshift.paper.learning import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("C1", "C0", "C2", "C3", "C4", "C5", "C6", "C7")
Gains = Mapping[str, Sequence[float]]
"""Of each arm, a number a seed."""


def draw_losses(panels: Mapping[str, Mapping[str, Sequence[Trained]]], kind: str) -> bytes:
    """Validation loss against training tokens.

    Args:
        panels: by title, the runs of each arm.

    Raises:
        UsageError: see `paint`.
    """
    curves = {
        title: {name: [run.curve for run in runs] for name, runs in arms.items()}
        for title, arms in panels.items()
    }
    return draw_over_tokens(curves, "validation loss, nats a token", kind)


def draw_over_tokens(
    panels: Mapping[str, Mapping[str, Sequence[Points]]], ylabel: str, kind: str, *, highest: float = math.inf
) -> bytes:
    """Something against training tokens: a thin line a run, a thick one their mean, a band its 95% interval.

    Args:
        panels: by title, the curves of each arm; one that is empty leaves its arm without mean and band.
        highest: a value that nothing exceeds; nothing is below 0 either.

    Raises:
        UsageError: see `paint`.
    """

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, arms) in zip(places, panels.items(), strict=True):
            for colour, (name, runs) in zip(_COLOURS, arms.items(), strict=False):
                in_millions = [[(tokens / 1e6, value) for tokens, value in curve] for curve in runs]
                draw_arm(axes, in_millions, name, colour, highest=highest)
            axes.set(title=title, xlabel="training tokens, millions")
            axes.grid(alpha=0.3)
        places[0].set_ylabel(ylabel)
        places[-1].legend(fontsize=7.5)

    return paint(kind, max(3.6 * len(panels), 4.8), 3.5, painter)


def draw_gains(panels: Mapping[str, Gains], xlabel: str, kind: str, confidence: float = 0.95) -> bytes:
    """Gains by arm: a dot a seed, the mean, and its interval where there are several and all are finite.

    Args:
        panels: by title.
        confidence: of the intervals.

    Raises:
        UsageError: see `paint`.
    """
    rows = max(len(gains) for gains in panels.values())

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
        for axes, (title, gains) in zip(places, panels.items(), strict=True):
            gains_on(axes, gains, confidence)
            axes.set(title=title, xlabel=xlabel)

    return paint(kind, 4.4 * len(panels), 1.2 + 0.27 * rows, painter)


def gains_on(axes: Any, gains: Gains, confidence: float = 0.95) -> None:
    """One panel of `draw_gains`."""
    for row, every in enumerate(gains.values()):
        values = [value for value in every if math.isfinite(value)]  # there is no place for the others
        if not values:
            continue
        found = interval(values, confidence)
        axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.4, ms=4, mew=0)
        axes.plot([found.mean], [row], "|", color="C0", ms=11, mew=2)
        if math.isfinite(found.low) and len(values) == len(every):
            axes.plot([found.low, found.high], [row, row], color="C0", lw=1.6)
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.axvline(0, color="#555555", lw=0.8)
    axes.locator_params(axis="x", nbins=6)  # more numbers than that run into each other
    axes.grid(alpha=0.3, axis="x")
