"""Figure 2: Theorem 3's loss over (α1, β1) in [0, 1]², with α2 = 1 − α1 and β2 = 1 − β1, and where it flows.

The induction head is the corner α1 = 0, β1 = 1: the previous token's key, the current token's value.
Computing and drawing are apart: a `Landscape` is stored as JSON and drawn from it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from kvshift.errors import OutputError, UsageError
from kvshift.files import write_atomically
from kvshift.paper.theory.attention import INDUCTION
from kvshift.paper.theory.logits import Counts, loss

LANDSCAPE_VERSION = 1
CORNER = (0.0, 1.0)  # α1, β1 of the induction head
ORDERS = (0.0, 10.0, 100.0)  # the paper's O(T)
_STEP = 0.005  # of a descent, in taps
_LENGTH = 3.0  # of a descent at most; the diagonal is 1.42
_NEAR = 0.03  # ends of descents no farther apart are one


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class End(Model):
    """Where descents arrive."""

    alpha1: float
    beta1: float
    share: float = Field(description="Of the descents, 0 to 1")


class Panel(Model):
    """One O(T). Grids are `[β1][α1]`."""

    order: float = Field(description="O(T)")
    loss: list[list[float]] = Field(description="nats")
    flow_alpha1: list[list[float]] = Field(description="−∂loss/∂α1, with α2 = 1 − α1")
    flow_beta1: list[list[float]] = Field(description="−∂loss/∂β1, with β2 = 1 − β1")
    ends: list[End] = Field(description="Of descents from a grid of starts, the most frequent first")
    free_flow: list[float] = Field(
        description="At the induction head, −∂loss/∂ of α1, α2, β1, β2, each free to leave [0, 1]"
    )

    @property
    def corner_loss(self) -> float:
        """At the induction head."""
        return self.loss[-1][0]

    @property
    def highest_loss(self) -> float:
        return max(map(max, self.loss))

    @property
    def share_to_corner(self) -> float:
        """Of the descents, how many arrive at the induction head."""
        near = [end for end in self.ends if max(abs(end.alpha1), abs(end.beta1 - 1)) <= _NEAR]
        return sum(end.share for end in near)

    @property
    def corner_is_lowest(self) -> bool:
        """Whether no other point of the grid has as low a loss."""
        values = [value for row in self.loss for value in row]
        return min(values) == self.corner_loss and values.count(self.corner_loss) == 1


class Landscape(Model):
    """The three panels, or others."""

    version: int = LANDSCAPE_VERSION
    grid: list[float] = Field(description="α1 of the columns and β1 of the rows, from 0 to 1")
    starts: int = Field(description="Descents begin at the centres of starts × starts cells")
    slipped: list[str] = Field([], description="Rows with e^α2 for e^α1, see logits.SLIPS; none as derived")
    panels: list[Panel]

    def draw(self, path: Path) -> None:
        """Writes the figure; png or svg by the path's ending. Computes nothing.

        Raises:
            UsageError: another ending, or matplotlib is not installed.
            OutputError: it cannot be written.
        """
        from kvshift.paper.theory.picture import draw_landscape

        write_atomically(path, draw_landscape(self, path.suffix.removeprefix(".")))

    def save(self, path: Path) -> None:
        """Writes the record.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomically(path, (self.model_dump_json() + "\n").encode())

    @staticmethod
    def load(path: Path) -> Landscape:
        """Reads a record back.

        Raises:
            OutputError: it is missing, damaged or of another version.
        """
        try:
            landscape = Landscape.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise OutputError(f"{path} cannot be read as a landscape: {reason}. Compute it again.") from None
        if landscape.version != LANDSCAPE_VERSION:
            raise OutputError(
                f"{path} is of version {landscape.version}; this kvshift reads {LANDSCAPE_VERSION}. "
                "Compute it again."
            )
        return landscape


def compute(
    orders: Sequence[float] = ORDERS, *, points: int = 33, starts: int = 15, slipped: Sequence[str] = ()
) -> Landscape:
    """Computes the panels, in float64.

    Args:
        orders: O(T) of each panel.
        points: of the grid along each side.
        starts: descents begin at the centres of starts × starts cells.
        slipped: rows with the slip of the paper's printed table, see `logits.logits`.

    Raises:
        UsageError: a grid of fewer than two points, no starts, no panel, an O(T) below 0, or no such row.
    """
    if points < 2 or starts < 1 or not orders:
        raise UsageError(
            f"{len(orders)} panels of {points} points and {starts} starts a side: expected one panel, two "
            "points and one start, or more."
        )
    grid = torch.linspace(0, 1, points, dtype=torch.float64)
    centres = (torch.arange(starts, dtype=torch.float64) + 0.5) / starts
    panels = []
    for order in orders:
        counts = Counts.paper(order)
        values, flow = downhill(_mesh(grid), counts, slipped)
        panels.append(
            Panel(
                order=order,
                loss=values.tolist(),
                flow_alpha1=flow[..., 0].tolist(),
                flow_beta1=flow[..., 1].tolist(),
                ends=_gather(descend(_mesh(centres).flatten(0, 1), counts, slipped)),
                free_flow=_free_flow(counts, slipped),
            )
        )
    return Landscape(grid=grid.tolist(), starts=starts, slipped=list(slipped), panels=panels)


def downhill(places: Tensor, counts: Counts, slipped: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """The loss, `(...)`, and its negative gradient, `(..., 2)`, at places (α1, β1), `(..., 2)`."""
    places = places.detach().requires_grad_()
    alpha1, beta1 = places.unbind(-1)
    values = loss(torch.stack((alpha1, 1 - alpha1, beta1, 1 - beta1), dim=-1), counts, slipped)
    (slope,) = torch.autograd.grad(values.sum(), places)
    return values.detach(), -slope


def descend(places: Tensor, counts: Counts, slipped: Sequence[str] = ()) -> Tensor:
    """Where the gradient flow within [0, 1]² takes each start; `(starts, 2)` of (α1, β1), in and out.

    Follows the flow's path at constant speed, which changes when a point is reached but not which; at an edge
    the part that points outwards is left out. A point between the edges is found to within one step.
    """
    for _ in range(round(_LENGTH / _STEP)):
        flow = downhill(places, counts, slipped)[1]
        outwards = ((places <= 0) & (flow < 0)) | ((places >= 1) & (flow > 0))
        flow = flow.masked_fill(outwards, 0)
        if not flow.any():
            break  # every one has arrived at a corner
        speed = flow.norm(dim=-1, keepdim=True).clamp_min(1e-300)  # 0 / 1e-300: where nothing flows, it stays
        places = (places + _STEP * flow / speed).clamp(0, 1)
    return places


def _free_flow(counts: Counts, slipped: Sequence[str]) -> list[float]:
    taps = torch.tensor(sum(INDUCTION, ()), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(taps, counts, slipped), taps)
    return (-slope).tolist()


def _mesh(side: Tensor) -> Tensor:
    """`(n, n, 2)` of (α1, β1): α1 grows along columns, β1 along rows."""
    beta1, alpha1 = torch.meshgrid(side, side, indexing="ij")
    return torch.stack((alpha1, beta1), dim=-1)


def _gather(ends: Tensor) -> list[End]:
    """Ends near each other as one, at the first one's place."""
    found: list[tuple[Tensor, int]] = []
    for end in ends:
        for place, (other, count) in enumerate(found):
            if float((end - other).abs().max()) <= _NEAR:
                found[place] = (other, count + 1)
                break
        else:
            found.append((end, 1))
    found.sort(key=lambda pair: -pair[1])
    return [End(alpha1=float(end[0]), beta1=float(end[1]), share=count / len(ends)) for end, count in found]
