"""Durations as people write them: `90s`, `8m`, `2h`, `1h30m`, `1.5h`."""

from __future__ import annotations

import math
import re

from kvshift.errors import UsageError

_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
LONGEST_SECONDS = 90 * 86400.0


def parse_duration(text: str) -> float:
    """Seconds.

    Raises:
        UsageError: not a duration, zero, or longer than 90 days.
    """
    compact = text.strip().lower().replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UsageError(f"{text!r} is not a duration; write one like 90s, 8m, 2h, 1h30m or 1.5h.")
    seconds = math.fsum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UsageError(f"{text!r} is not a sensible duration; give more than 0s and at most 90d.")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration for people that `parse_duration` reads back: `45s`, `8m`, `9m30s`, `1h05m`, `2d03h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes}m{rest:02d}s" if rest else f"{minutes}m"
    if whole < 86400:
        hours, rest = divmod(round(whole / 60), 60)
        return f"{hours}h{rest:02d}m" if rest else f"{hours}h"
    days, rest = divmod(round(whole / 3600), 24)
    return f"{days}d{rest:02d}h" if rest else f"{days}d"
