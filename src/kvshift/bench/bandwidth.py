"""The ceiling of everything that only moves bytes: a large copy, measured."""

from __future__ import annotations

import torch

from kvshift.bench.schema import Bandwidth, Spread
from kvshift.bench.timing import enough_repeats, rotating, stopwatch, take_turns

_SAMPLE_SECONDS = 0.02


def measure_bandwidth(device: torch.device, *, buffer_bytes: int, rounds: int = 20) -> Bandwidth:
    """Copies random numbers from one buffer into another of the same size, much larger than any cache."""
    source = torch.randint(-(2**31), 2**31 - 1, (buffer_bytes // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    time = stopwatch(device)

    def copy() -> None:
        target.copy_(source)

    for _ in range(3):
        once = time(copy)
    repeats = enough_repeats(once, _SAMPLE_SECONDS)
    run = rotating([copy], repeats)
    taken = take_turns({"copy": lambda: time(run) / repeats}, rounds=rounds)["copy"]
    moved = 2 * source.numel() * source.element_size()
    rates = Spread.of([moved / seconds for seconds in taken.samples])
    return Bandwidth(bytes_per_second=rates, buffer_bytes=buffer_bytes)
