"""The four quadrants of the paper's Table 4: which token's key and which token's value a head reads.

    current_current    the unshifted reading
    previous_current   find by an earlier token's key, read the current value: the induction quadrant
    current_previous   its mirror
    previous_previous  both one step back

"Current" means strictly more weight on the current token than on any before it, α1 > α2; with a longer window
"previous" stands for whichever earlier token weighs most (PAPER.md §4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

QUADRANTS = ("current_current", "previous_current", "current_previous", "previous_previous")
INDUCTION = "previous_current"
PAPER_TABLE_4 = {
    "current_current": 50,
    "previous_current": 17,
    "current_previous": 9,
    "previous_previous": 52,
}
"""Heads in each quadrant in the paper: 2.9B parameters, 500B tokens, 128 KV heads."""


def lean(taps: Sequence[float] | None) -> float | None:
    """The largest weight on an earlier token minus that on the current one: with two taps, α2 - α1.

    None where there is nothing to compare: no taps, one of them, or one that is not finite.
    """
    if taps is None or len(taps) < 2 or not all(map(math.isfinite, taps)):
        return None
    return max(taps[1:]) - taps[0]


def quadrant(keys: Sequence[float] | None, values: Sequence[float] | None) -> str | None:
    """A head's quadrant, named key then value; None for a shift of keys or values alone."""
    key_lean, value_lean = lean(keys), lean(values)
    if key_lean is None or value_lean is None:
        return None
    return f"{'current' if key_lean < 0 else 'previous'}_{'current' if value_lean < 0 else 'previous'}"


def count(quadrants: Iterable[str | None]) -> dict[str, int]:
    """Heads in each quadrant; heads without one are not counted."""
    counts = dict.fromkeys(QUADRANTS, 0)
    for name in quadrants:
        if name is not None:
            counts[name] += 1
    return counts
