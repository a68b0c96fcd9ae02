"""The figures of Theorems 1 to 3: errors of the constructions and of the simulation, from stored numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvshift.paper.figure import paint
from kvshift.paper.theory.attention import MASKS
from kvshift.paper.theory.one_layer import OneLayerCheck
from kvshift.paper.theory.simulation import Convergence, Row
from kvshift.paper.theory.two_layer import ErrorCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST_LAYER = {"before": "first layer reads s < t", "causal": "first layer reads s ≤ t (causal)"}
_PLACES = {"causal": "s ≤ t (causal)", "not_first": "1 < s ≤ t", "before": "s < t", "between": "1 < s < t"}


def draw_error_curves(curves: Sequence[ErrorCurve], kind: str) -> bytes:
    """Theorem 1: the mean error against p, a panel for each mask of the first layer; dashed: the bound.

    Raises:
        UsageError: see `paint`.
    """
    masks = [mask for mask in _FIRST_LAYER if any(curve.first_mask == mask for curve in curves)]

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(masks), squeeze=False, sharey=True)[0]
        for axes, mask in zip(places, masks, strict=True):
            for number, curve in enumerate(curve for curve in curves if curve.first_mask == mask):
                colour = f"C{number}"
                axes.semilogy(
                    curve.steepness, curve.mean, "o-", ms=3, color=colour, label=f"σ = {curve.sigma:g}"
                )
                if curve.bound is not None:
                    bound = [curve.bound * math.exp(-p) for p in curve.steepness]
                    axes.semilogy(curve.steepness, bound, "--", lw=0.8, color=colour)
            axes.set(title=_FIRST_LAYER[mask], xlabel="p, the first layer's slope")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend(title="dashed: 2/σ · e^(−p)" if mask == "before" else None)
        places[0].set_ylabel("‖model − IH‖, mean over sequences")

    return paint(kind, 4.6 * len(masks), 3.8, painter)


def draw_masks(checks: Sequence[OneLayerCheck], kind: str) -> bytes:
    """Theorem 2: the largest error against 1/σ under each mask, a panel for each slope.

    Raises:
        UsageError: see `paint`.
    """
    slopes = sorted({check.slope for check in checks})

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(slopes), squeeze=False, sharey=True)[0]
        for axes, slope in zip(places, slopes, strict=True):
            found = sorted(
                (check for check in checks if check.slope == slope), key=lambda check: -check.sigma
            )
            sharpness = [1 / check.sigma for check in found]
            for mask in MASKS:
                # Where ALiBi is steep these two lie on each other: the first token hardly counts.
                line = {"ls": "--", "color": "black", "zorder": 3} if mask == "causal" else {}
                errors = [check.errors[mask] for check in found]
                axes.loglog(sharpness, errors, marker="o", ms=3, label=_PLACES[mask], **line)
            axes.set_xticks(sharpness, [f"{value:g}" for value in sharpness], minor=False)
            axes.set_xticks([], minor=True)
            axes.set(title=f"ALiBi slope m = {slope:g}", xlabel="1/σ")
            axes.grid(alpha=0.3)
        places[0].set_ylabel("‖model − IH‖, largest")
        places[0].legend(title="the softmax runs over", loc="center left")

    return paint(kind, 3.6 * len(slopes), 3.6, painter)


def draw_convergence(random: Sequence[Convergence], rows: Sequence[Row], kind: str) -> bytes:
    """Theorem 3: the distance to the formulas against d, a panel a kind of embeddings; dotted: slipped rows.

    Raises:
        UsageError: see `paint`.
    """

    def painter(figure: Figure) -> None:
        places = figure.subplots(1, len(random), squeeze=False, sharey=True)[0]
        for axes, found in zip(places, random, strict=True):
            for name, errors in found.logit_errors.items():
                axes.loglog(found.dims, errors, "o-", ms=3, label=f"logit of {name}")
            axes.loglog(found.dims, found.loss_errors, "s-", ms=3, color="black", label="loss")
            guide = [0.3 / math.sqrt(dim) for dim in found.dims]
            axes.loglog(found.dims, guide, "--", lw=1, color="#888888", label="0.3 / √d")
            for height, names in _slips(rows).items():
                axes.axhline(height, ls=":", lw=1, color="#888888")
                says = f"α2 for α1 in row {' or '.join(names)}"
                axes.text(found.dims[0], height, says, fontsize=7, va="bottom", color="#555555")
            axes.set_xticks(found.dims, [str(dim) for dim in found.dims], minor=False)
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.set(title=f"{found.embeddings} embeddings", xlabel="d")
            axes.grid(alpha=0.3)
        places[0].set_ylabel("root mean square distance to the formulas")
        places[-1].legend(fontsize=7.5)

    return paint(kind, 4.6 * len(random), 3.8, painter)


def _slips(rows: Sequence[Row]) -> dict[float, list[str]]:
    """The rows by how far a slip puts them off, those that it puts off alike together."""
    found: dict[float, list[str]] = {}
    for row in rows:
        if row.slipped is not None:
            near = next((height for height in found if math.isclose(height, row.slipped)), row.slipped)
            found.setdefault(near, []).append(row.name)
    return found
