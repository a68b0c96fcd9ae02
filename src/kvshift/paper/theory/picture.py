"""Figure 2 from a stored landscape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvshift.paper.figure import paint
from kvshift.paper.theory.landscape import CORNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kvshift.paper.theory.landscape import Landscape, Panel

_STAR: Any = {"markersize": 15, "color": "#d62728", "markeredgecolor": "white"}


def draw_landscape(landscape: Landscape, kind: str) -> bytes:
    """The paper's layout: a panel an O(T), loss as colour, its flow as arrows, the induction head starred.

    Args:
        kind: `png` or `svg`.

    Raises:
        UsageError: another kind, or matplotlib is not installed.
    """
    count = len(landscape.panels)

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, count, squeeze=False, sharey=True)[0]
        for axes, panel in zip(places, landscape.panels, strict=True):
            _panel(axes, panel, landscape.grid)
        places[0].set_ylabel("β1 (current value), β2 = 1 − β1")
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False)

    return paint(kind, 4.1 * count, 3.9, painter)


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
