"""The learned scalars as a picture: every head in the four quadrants of the paper's Table 4."""

from __future__ import annotations

from typing import Any

from kvshift.inspection.quadrants import PAPER_TABLE_4 as PAPER
from kvshift.inspection.quadrants import lean
from kvshift.pilot.report.charts import Scale
from kvshift.pilot.report.context import Context
from kvshift.pilot.report.figures import dots
from kvshift.pilot.results import TapHead

MOST_DOTS = 3000
LEFT, WIDTH, TOP, BOTTOM = 2.0, 96.0, 8.0, 328.0  # percent and pixels
# Quadrant → its corner: to the right the previous key weighs more, upwards the previous value.
CORNERS = {
    "current_previous": ("start", "top"),
    "previous_previous": ("end", "top"),
    "current_current": ("start", "bottom"),
    "previous_current": ("end", "bottom"),
}


def picture(context: Context) -> dict[str, Any] | None:
    """Positions, shares and the paper's own counts; None where keys and values are not both there."""
    counts = {name: context.results.quadrants.get(name, 0) for name in PAPER}
    heads = [
        head for head in context.results.taps if lean(head.keys) is not None and lean(head.values) is not None
    ]
    if not heads or not sum(counts.values()):
        return None
    shown = heads[:: max(1, -(-len(heads) // MOST_DOTS))]
    places = [(lean(head.keys) or 0.0, lean(head.values) or 0.0) for head in shown]
    reach = max(1.15, 1.08 * _quantile([abs(value) for place in places for value in place], 0.98))
    x = Scale(-reach, reach, LEFT, LEFT + WIDTH)
    y = Scale(-reach, reach, BOTTOM, TOP)
    inside = [(max(-reach, min(reach, a)), max(-reach, min(reach, b))) for a, b in places]
    total, numbers, text = sum(counts.values()), context.numbers, context.text
    shares = {name: numbers.percent(count / total) for name, count in counts.items()}
    sentences = ", ".join(f"{text(f'scalars.{name}_long')}: {share}" for name, share in shares.items())
    return {
        "label": text("scalars.label", count=numbers.plain(total), shares=sentences),
        "groups": [
            dots([place for place, head in zip(inside, shown, strict=True) if head.size == size.name], x, y)
            for size in context.results.sizes
        ],
        "sizes": [size.name for size in context.results.sizes],
        "middle": (x(0), y(0)),
        "corners": [
            {
                "name": text(f"scalars.{name}"),
                "share": shares[name],
                "side": side,
                "edge": edge,
                "induction": name == "previous_current",
            }
            for name, (side, edge) in CORNERS.items()
        ],
        "hover": [
            {"x": x(a), "y": y(b), "lines": _lines(context, head)}
            for (a, b), head in zip(inside, shown, strict=True)
        ],
        "sampled": None
        if len(shown) == len(heads)
        else text("scalars.sampled", shown=numbers.plain(len(shown)), count=numbers.plain(len(heads))),
        "compare": [
            {
                "name": text(f"scalars.{name}_long"),
                "here": round(100 * counts[name] / total, 2),
                "here_text": shares[name],
                "paper": round(100 * PAPER[name] / sum(PAPER.values()), 2),
                "paper_text": numbers.percent(PAPER[name] / sum(PAPER.values())),
                "induction": name == "previous_current",
            }
            for name in PAPER
        ],
        "start": _start(context),
        "table": {
            "caption": text("scalars.title"),
            "head": [text(f"scalars.column_{name}") for name in ("quadrant", "here", "share", "paper")],
            "rows": [
                [text(f"scalars.{name}_long"), numbers.plain(counts[name]), shares[name], str(PAPER[name])]
                for name in PAPER
            ],
        },
    }


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _lines(context: Context, head: TapHead) -> list[str]:
    text, numbers = context.text, context.numbers
    name = text("scalars.head", size=head.size, seed=head.seed, layer=head.layer, head=head.head)
    shifts = []
    for label, taps in (("keys", head.keys), ("values", head.values)):
        shown = " / ".join(numbers.plain(tap, 2) for tap in taps or [])
        shifts.append(f"{text(f'scalars.{label}')}: {shown}")
    return [name, *shifts]


def _start(context: Context) -> str | None:
    """A caution where the heads already started in some of the quadrants."""
    shift = context.results.arms[1].shift or {}
    start = shift.get("init")
    return context.text("scalars.start_note", start=start) if start == "structured" else None
