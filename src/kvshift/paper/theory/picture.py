"""The theory's figures, drawn from stored numbers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from kvshift.errors import UsageError
from kvshift.inspection.picture import check_drawable
from kvshift.paper.theory.landscape import CORNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kvshift.paper.theory.landscape import Landscape, Panel

_STYLE: Any = {
    "svg.hashsalt": "kvshift",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
_STAR: Any = {"markersize": 15, "color": "#d62728", "markeredgecolor": "white"}


def draw_landscape(landscape: Landscape, kind: str) -> bytes:
    """Figure 2's layout: a panel an O(T), the loss as colour, its flow as arrows, the induction head starred.

    Args:
        kind: `png` or `svg`.

    Raises:
        UsageError: another kind, or matplotlib is not installed.
    """
    if kind not in ("png", "svg"):
        raise UsageError(f"A figure as {kind!r}: expected png or svg.")
    check_drawable()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        count = len(landscape.panels)
        figure = Figure(figsize=(4.1 * count, 3.9), layout="constrained")
        places = figure.subplots(1, count, squeeze=False, sharey=True)[0]
        for axes, panel in zip(places, landscape.panels, strict=True):
            _panel(axes, panel, landscape.grid)
        places[0].set_ylabel("β1 (current value), β2 = 1 − β1")
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _panel(axes: Axes, panel: Panel, grid: list[float]) -> None:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    drawn = axes.contourf(grid, grid, panel.loss, levels=40, cmap="viridis")
    side = np.array(grid)
    axes.streamplot(
        side,
        side,
        np.array(panel.flow_alpha1),
        np.array(panel.flow_beta1),
        color="white",
        density=0.8,
        linewidth=0.8,
        arrowsize=0.9,
    )
    axes.plot(*CORNER, "*", **_STAR, clip_on=False, zorder=5, label="induction head: α = (0, 1), β = (1, 0)")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
        title=f"O(T) = {panel.order:g}",
        xlabel="α1 (current key), α2 = 1 − α1",
    )
    bar = axes.figure.colorbar(drawn, ax=axes, label="loss, nats", shrink=0.8, ticks=MaxNLocator(6))
    bar.ax.ticklabel_format(useOffset=False)
