"""A bench's results as one picture."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvshift.bench.arms import BASELINE
from kvshift.bench.contenders import OURS
from kvshift.bench.schema import BenchResult, DecodingRow, OperatorRow, Spread, StepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "#1b9e77"
_PEERS = ("#999999", "#333333", "#d95f02", "#7570b3", "#e7298a", "#e6ab02", "#66a61e", "#1f78b4", "#a6761d")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(result: BenchResult) -> bytes | None:
    """A PNG; None if nothing was timed."""
    import matplotlib
    from matplotlib.figure import Figure

    panels: list[tuple[int, Callable[[Axes], None]]] = []
    for direction in ("forward", "forward+backward"):
        rows = [row for row in result.operators if row.direction == direction and row.share is not None]
        if rows:
            panels.append((2 + len(_lines_of(rows)), lambda axes, rows=rows: _shares(axes, rows)))  # type: ignore[misc]
    of_steps = [row for row in result.steps if row.over_vanilla is not None]
    of_decoding = [row for row in result.decoding if row.over_vanilla is not None]
    if of_steps:
        panels.append((len(of_steps), lambda axes: _steps(axes, of_steps)))
    if of_decoding:
        panels.append((len(of_decoding), lambda axes: _decoding(axes, of_decoding)))
    if not panels:
        return None
    lines = [max(lines for lines, _ in panels[start : start + 2]) for start in range(0, len(panels), 2)]
    heights = [max(2.2, 1.0 + 0.3 * count) for count in lines]
    style: Any = {"font.size": 8, "axes.titlesize": 10, "axes.titlelocation": "left"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(15, 0.5 + sum(heights)), layout="constrained")
        figure.suptitle(_title(result), x=0.01, ha="left")
        grid = figure.subplots(
            math.ceil(len(panels) / 2), 2, squeeze=False, gridspec_kw={"height_ratios": heights}
        ).flatten()
        for axes, (_, function) in zip(grid, panels, strict=False):
            function(axes)
        for unused in grid[len(panels) :]:
            unused.set_axis_off()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _title(result: BenchResult) -> str:
    machine = result.machine
    parts = [machine.device, f"PyTorch {machine.packages.get('torch', '?')}"]
    parts.append(f"commit {machine.commit or 'unknown'}")
    return ", ".join([*parts, machine.started[:10]])


def _shares(axes: Axes, rows: list[OperatorRow]) -> None:
    """What each contender reached of the copy bandwidth, a line for each operator and shape."""
    lines = _lines_of(rows)
    others = [name for name in dict.fromkeys(row.contender for row in rows) if name != OURS]
    for number, name in enumerate([*others, OURS]):  # ours on top
        points = [(row.share or 0.0, lines.index(_line(row))) for row in rows if row.contender == name]
        axes.scatter(
            [share for share, _ in points],
            [line for _, line in points],
            s=70 if name == OURS else 28,
            color=_OURS if name == OURS else _PEERS[number % len(_PEERS)],
            marker="D" if name == OURS else "o",
            label=name,
            zorder=3,
        )
    for row in rows:
        if row.contender == OURS and row.time is not None:
            said = f"{row.time.median * 1e6:,.1f} µs"
            place = (row.share or 0.0, lines.index(_line(row)))
            axes.annotate(said, place, (0, 7), textcoords="offset points", ha="center", fontsize=6.5)
    axes.axvline(1, color="#444444", lw=0.8, ls="--")
    axes.set_xlim(0, 1.08 * max(1.0, *(row.share or 0.0 for row in rows)))
    axes.grid(axis="y", color="#eeeeee")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=3, frameon=False)
    _label(axes, lines, f"{rows[0].direction}: share of copy bandwidth (more is better)")


def _line(row: OperatorRow) -> str:
    return f"{row.operator} {list(row.shape)}{' packed' if row.packed else ''}"


def _lines_of(rows: list[OperatorRow]) -> list[str]:
    return list(dict.fromkeys(map(_line, rows)))


def _steps(axes: Axes, rows: list[StepRow]) -> None:
    labels = [
        f"{row.configuration} ({row.layers} of {row.of_layers} layers), {row.mode}: {row.arm}" for row in rows
    ]
    _ratios(axes, labels, [row.arm for row in rows], [row.over_vanilla for row in rows])
    _label(axes, labels, f"Training step: time ÷ {BASELINE} (less is better)")


def _decoding(axes: Axes, rows: list[DecodingRow]) -> None:
    labels = [f"{row.configuration}, {row.way}, batch {row.batch}: {row.arm}" for row in rows]
    _ratios(axes, labels, [row.arm for row in rows], [row.over_vanilla for row in rows])
    _label(axes, labels, f"Decoding: tokens/s ÷ {BASELINE} (more is better)")


def _ratios(axes: Axes, labels: list[str], arms: list[str], ratios: list[Spread | None]) -> None:
    """Median and quartiles around 1."""
    others = [arm for arm in dict.fromkeys(arms) if arm != OURS]
    colours = {OURS: _OURS} | dict(zip(others, _PEERS, strict=False))
    for place, (arm, ratio) in enumerate(zip(arms, ratios, strict=True)):
        if ratio is None:
            continue
        axes.plot([ratio.low, ratio.high], [place, place], color=colours[arm], lw=4, alpha=0.4)
        axes.plot([ratio.median], [place], marker="o", color=colours[arm])
        axes.annotate(
            f"{ratio.median:.3f}",
            (ratio.median, place),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.axvline(1, color="#444444", lw=0.8, ls="--")
    axes.margins(x=0.1)


def _label(axes: Axes, labels: list[str], title: str) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=6.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first on top
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
