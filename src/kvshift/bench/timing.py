"""One timer: device events on a GPU, the clock on a CPU; contenders take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from kvshift.bench.schema import Spread

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]
"""Runs a call once and tells how many seconds it took on the device."""


def stopwatch(device: torch.device) -> Stopwatch:
    """The timer for a device."""
    return _by_events if device.type == "cuda" else _by_the_clock


def _by_the_clock(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _by_events(call: Call) -> float:
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def take_turns(
    samples: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    seconds: float = float("inf"),
    least_rounds: int = 3,
) -> dict[str, Spread]:
    """Measures contenders A B C, A B C, …, so that whatever drifts hits all of them alike.

    Args:
        samples: each returns one measurement.
        rounds: how often each takes its turn.
        seconds: begin no further round after this long, once there are `least_rounds`.

    Returns:
        A spread for each; the n-th samples of all were taken in the same round.
    """
    found: dict[str, list[float]] = {name: [] for name in samples}
    began = time.monotonic()
    enabled = gc.isenabled()
    gc.disable()  # a collection in the middle of one contender's turn would be charged to it
    try:
        for done in range(rounds):
            if done >= least_rounds and time.monotonic() - began > seconds:
                break
            for name, sample in samples.items():
                found[name].append(sample())
            gc.collect(0)  # what this round left behind, which is quick
    finally:
        if enabled:
            gc.enable()
    return {name: Spread.of(taken) for name, taken in found.items()}


def rotating(calls: Sequence[Call], repeats: int) -> Call:
    """All `calls`, one after the other, `repeats` times: each on buffers of its own, so none finds its
    inputs in the cache.

    Results are kept until all calls are done, so that they do not share memory either.
    """

    def run() -> None:
        for _ in range(repeats):
            kept = [call() for call in calls]
            kept.clear()

    return run


def enough_repeats(once: float, wanted: float, most: int = 10_000) -> int:
    """How often something that takes `once` seconds is repeated to fill `wanted` seconds."""
    return max(1, min(most, round(wanted / max(once, 1e-7))))
