"""How every figure of this room becomes a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvshift.errors import UsageError
from kvshift.inspection.picture import check_drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: Any = {
    "svg.hashsalt": "kvshift",  # the same figure twice is the same file
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def paint(kind: str, width: float, height: float, painter: Callable[[Figure], None]) -> bytes:
    """The file of what `painter` puts on an empty figure.

    Args:
        kind: `png` or `svg`.
        width, height: inches.

    Raises:
        UsageError: another kind, or matplotlib is not installed.
    """
    if kind not in ("png", "svg"):
        raise UsageError(f"A figure as {kind!r}: expected png or svg.")
    check_drawable()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        painter(figure)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()
