"""An inspection as a picture, PNG or SVG: the quadrants, the taps and the scores by layer and head."""

from __future__ import annotations

import importlib.util
import io
import math
from typing import TYPE_CHECKING, Any, Literal

from kvshift.errors import UsageError
from kvshift.inspection.quadrants import QUADRANTS
from kvshift.inspection.schema import HeadTaps, Induction, Inspection, LearnedTaps, QueryTaps
from kvshift.inspection.taps import head_lean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Format = Literal["png", "svg"]

COLOURS = {
    "current_current": "#d9d9d9",
    "previous_current": "#1b9e77",
    "current_previous": "#e6ab02",
    "previous_previous": "#7570b3",
}
LETTERS = {"current_current": "", "previous_current": "I", "current_previous": "M", "previous_previous": "P"}
NAMES = {
    "current_current": "current key\ncurrent value",
    "previous_current": "I: previous key\ncurrent value (induction)",
    "current_previous": "M: current key\nprevious value",
    "previous_previous": "P: previous key\nprevious value",
}
_CORNERS = {  # of the quadrant picture: to the right the previous key weighs more, upwards the previous value
    "current_current": (0.02, 0.02, "left", "bottom"),
    "previous_current": (0.98, 0.02, "right", "bottom"),
    "current_previous": (0.02, 0.98, "left", "top"),
    "previous_previous": (0.98, 0.98, "right", "top"),
}
_MOST_LETTERS = 600  # heads of which each still has room for its letter
_Grid = list[list[float]]


def check_drawable() -> None:
    """Raises UsageError, with the command to mend it, if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("A picture needs matplotlib, which is not installed: pip install 'kvshift[plots]'")


def draw(inspection: Inspection, kind: Format) -> bytes:
    """The picture's file.

    Raises:
        UsageError: matplotlib is not installed, or there is nothing to draw.
    """
    check_drawable()
    import matplotlib
    from matplotlib.figure import Figure

    panels = _panels(inspection)
    if not panels:
        raise UsageError(
            "--plot has nothing to draw: the model has no KV shift, and --no-induction was given."
        )
    rows = math.ceil(len(panels) / 2)
    layers = inspection.model.attention_layers
    style: Any = {
        "svg.hashsalt": "kvshift",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
    }
    with matplotlib.rc_context(style):
        figure = Figure(
            figsize=(11, 0.8 + rows * min(9.0, max(3.3, 0.16 * layers + 1.2))), layout="constrained"
        )
        figure.suptitle(f"{inspection.model.name}  ({inspection.model.architecture})", x=0.01, ha="left")
        axes = figure.subplots(rows, 2, squeeze=False).flatten()
        for place, (function, data) in zip(axes, panels, strict=False):
            function(place, data)
        for unused in axes[len(panels) :]:
            unused.set_axis_off()
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _panels(inspection: Inspection) -> list[tuple[Any, Any]]:
    """What to draw, each with its data, two a row."""
    panels: list[tuple[Any, Any]] = []
    if (taps := inspection.taps) is not None:
        if sum(taps.quadrants.values()):
            panels += [(_quadrants, taps), (_quadrant_map, taps)]
        for name in ("keys", "values"):
            if any(getattr(head, name) is not None for head in taps.heads):
                panels.append((_leans, (name, taps.heads)))
        if taps.query_heads:
            panels.append((_leans, ("queries", taps.query_heads)))
        if len(panels) % 2 and inspection.induction is not None:
            panels.append((_nothing, None))
    if inspection.induction is not None:
        panels.append((_matching, inspection.induction))
        if any(head.copying is not None for head in inspection.induction.heads):
            panels.append((_copying, inspection.induction))
    return panels


def _nothing(axes: Axes, data: None) -> None:
    axes.set_axis_off()


def _quadrants(axes: Axes, taps: LearnedTaps) -> None:
    """Every head at its keys' and its values' lean, coloured by layer."""
    placed = [
        (x, y, head.layer)
        for head in taps.heads
        if (x := head_lean(head.keys)) is not None and (y := head_lean(head.values)) is not None
    ]
    reach = max(1.3, 1.35 * max(abs(number) for x, y, _ in placed for number in (x, y)))
    for name, (x, y) in zip(QUADRANTS, ((-1, -1), (0, -1), (-1, 0), (0, 0)), strict=True):
        axes.axhspan(
            y * reach, (y + 1) * reach, (x + 1) / 2, (x + 2) / 2, color=COLOURS[name], alpha=0.22, lw=0
        )
    for name, (x, y, side, edge) in _CORNERS.items():
        total = sum(taps.quadrants.values())
        said = f"{NAMES[name]}\n{taps.quadrants[name]} of {total}"
        axes.text(x, y, said, transform=axes.transAxes, ha=side, va=edge, fontsize=7.5)
    drawn = axes.scatter(
        [x for x, _, _ in placed],
        [y for _, y, _ in placed],
        c=[layer for _, _, layer in placed],
        cmap="viridis",
        s=26,
        alpha=0.85,
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
    )
    axes.axhline(0, color="#888888", lw=0.7)
    axes.axvline(0, color="#888888", lw=0.7)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), title="Every KV head: which token it reads")
    axes.set_xlabel("keys: weight of an earlier token − current")
    axes.set_ylabel("values: earlier − current")
    _whole_numbers(axes.figure.colorbar(drawn, ax=axes, label="layer").ax.yaxis)


def _quadrant_map(axes: Axes, taps: LearnedTaps) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    numbers = {name: float(place) for place, name in enumerate(QUADRANTS)}
    layers, grid = _grid(
        [(head.layer, head.head, numbers.get(head.quadrant or "", math.nan)) for head in taps.heads]
    )
    colours = ListedColormap([COLOURS[name] for name in QUADRANTS])
    drawn = axes.imshow(
        grid, cmap=colours, norm=BoundaryNorm([-0.5, 0.5, 1.5, 2.5, 3.5], 4), aspect="auto", origin="lower"
    )
    if len(taps.heads) <= _MOST_LETTERS:
        for head in taps.heads:
            letter = LETTERS.get(head.quadrant or "", "")
            axes.text(
                head.head,
                layers.index(head.layer),
                letter,
                ha="center",
                va="center",
                fontsize=8,
                color="#222222",
            )
    _label(axes, layers, "Quadrants by layer and head", "KV head")
    bar = axes.figure.colorbar(drawn, ax=axes, ticks=range(4))
    bar.ax.set_yticklabels([NAMES[name] for name in QUADRANTS], fontsize=7)


def _leans(axes: Axes, data: tuple[str, list[HeadTaps] | list[QueryTaps]]) -> None:
    name, heads = data
    leans = [(head.layer, head.head, head_lean(getattr(head, name))) for head in heads]
    layers, grid = _grid([(layer, head, math.nan if lean is None else lean) for layer, head, lean in leans])
    reach = max((abs(lean) for _, _, lean in leans if lean is not None), default=1.0) or 1.0
    drawn = axes.imshow(grid, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto", origin="lower")
    _label(
        axes,
        layers,
        f"{name.capitalize()}: weight of an earlier token − current",
        "query head" if name == "queries" else "KV head",
    )
    axes.figure.colorbar(drawn, ax=axes, label="current  ←  →  earlier")


def _matching(axes: Axes, scores: Induction) -> None:
    layers, grid = _grid([(head.layer, head.head, head.prefix_matching) for head in scores.heads])
    drawn = axes.imshow(grid, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower")
    _label(axes, layers, "Prefix matching: attention to the answer", "query head")
    axes.figure.colorbar(
        drawn, ax=axes, label=f"chance {scores.prefix_matching_chance:.2f}, induction head 1"
    )


def _copying(axes: Axes, scores: Induction) -> None:
    cells = [
        (head.layer, head.head, math.nan if head.copying is None else head.copying) for head in scores.heads
    ]
    layers, grid = _grid(cells)
    drawn = axes.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
    _label(axes, layers, "Copying: does it raise the token it reads?", "query head")
    axes.figure.colorbar(drawn, ax=axes, label="never −1, chance 0, always 1")


def _grid(cells: list[tuple[int, int, float]]) -> tuple[list[int], _Grid]:
    """The layers there are, in order, and `grid[place of layer][head]`, NaN where there is no head."""
    layers = sorted({layer for layer, _, _ in cells})
    width = 1 + max(head for _, head, _ in cells)
    grid = [[math.nan] * width for _ in layers]
    for layer, head, value in cells:
        grid[layers.index(layer)][head] = value
    return layers, grid


def _label(axes: Axes, layers: list[int], title: str, heads: str) -> None:
    axes.set(title=title, xlabel=heads, ylabel="layer")
    if len(layers) <= 16:
        axes.set_yticks([place + 0.5 for place in range(len(layers) - 1)], minor=True)
        axes.set_xticks([place + 0.5 for place in range(int(axes.get_xlim()[1]))], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    step = max(1, math.ceil(len(layers) / 16))
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    _whole_numbers(axes.xaxis)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
