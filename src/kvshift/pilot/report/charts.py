"""Chart geometry. Positions are percentages of the drawing, so a chart fills any width, on paper too,
while its text and strokes keep their size. Lines are paths in a 1000 × 1000 box that is stretched.

Why our own drawings and not a plot library: they need no script to be seen (mail previews, printers,
locked-down browsers), follow light and dark through the page's own colours, obey a policy that forbids
every request and every inline style, and keep the file at a few hundred kilobytes instead of five
megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BOX = 1000


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to percent of the drawing."""

    low: float
    high: float
    start: float = 0.0  # percent at `low`
    end: float = 100.0  # percent at `high`
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 3)

    def box(self, value: float) -> float:
        """The value in the 1000-unit box of stretched paths, kept within reach of the box."""
        percent = (self(value) - min(self.start, self.end)) / abs(self.end - self.start)
        return round(max(-5 * BOX, min(6 * BOX, percent * BOX)), 1)


def padded(values: Sequence[float], share: float = 0.08, least: float = 1e-6) -> tuple[float, float]:
    """The values' range, widened on both sides so that nothing sits on the edge."""
    low, high = min(values), max(values)
    room = max((high - low) * share, least)
    return low - room, high + room


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_decimals(values: Sequence[float], most: int = 4) -> int:
    """Decimals that tell these ticks apart."""
    for decimals in range(most):
        if all(abs(round(value, decimals) - value) < 1e-9 for value in values):
            return decimals
    return most


def path(x: Scale, y: Scale, points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through the points, in the stretched box. Points that are not finite break the line."""
    parts: list[str] = []
    pen = "M"
    for a, b in points:
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        parts.append(f"{pen}{x.box(a):g} {y.box(b):g}")
        pen = "L"
    return "".join(parts)


def band(x: Scale, y: Scale, points: Sequence[tuple[float, float, float]]) -> str:
    """The area between (x, low) and (x, high)."""
    there = [(a, high) for a, _, high in points]
    back = [(a, low) for a, low, _ in reversed(points)]
    return path(x, y, there + back) + "Z"


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean over runs at the token counts that every run has, in order."""
    if not curves:
        return []
    tables = [{tokens: loss for tokens, loss in curve if math.isfinite(loss)} for curve in curves]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(tokens, sum(table[tokens] for table in tables) / len(tables)) for tokens in shared]
