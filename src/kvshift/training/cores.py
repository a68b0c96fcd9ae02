"""Which CPU cores this process may use: containers, `taskset` and runs beside each other get a share."""

from __future__ import annotations

import os


def usable_cores() -> list[int]:
    """Their numbers, in order; every core's where the system knows no shares (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
