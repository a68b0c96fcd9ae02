"""Time and memory of a run."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_KEPT_BLOCKS = 1000  # the median of the last thousand is steady, and a checkpoint stays small


class Clock:
    """Training time, with whatever happens inside `paused()` left out.

    A GPU works behind the program's back, so it is waited for, but only where a time is read.

    Args:
        device: where the model trains.
        seconds: training time of the run before this process.
        blocks: `(seconds, steps)` measured before this process.
    """

    def __init__(
        self, device: torch.device, seconds: float = 0.0, blocks: list[tuple[float, int]] | None = None
    ) -> None:
        self.device = device
        self.seconds = seconds
        self.blocks: deque[tuple[float, int]] = deque(blocks or [], maxlen=_KEPT_BLOCKS)
        self._since = 0.0
        self._block_start = seconds
        self._last_step = 0

    def start(self, step: int) -> None:
        """Begins to count; `step` steps are done."""
        self._last_step = step
        self._since = self._now()

    def mark(self, step: int) -> float:
        """Reads the clock after step `step`; returns the training time so far in seconds."""
        now = self._now()
        self.seconds += now - self._since
        self._since = now
        if step > self._last_step:
            self.blocks.append((self.seconds - self._block_start, step - self._last_step))
            self._block_start = self.seconds
            self._last_step = step
        return self.seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training."""
        self.seconds += self._now() - self._since
        try:
            yield
        finally:
            self._since = self._now()

    def step_seconds(self) -> float | None:
        """The median step's time; None before the first step."""
        times = [seconds / steps for seconds, steps in self.blocks for _ in range(steps)]
        return statistics.median(times) if times else None

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class PeakMemory:
    """The most memory a run held at once, in bytes.

    On a GPU what PyTorch allocated there. On a CPU the growth of the process since this object was made:
    runs are forked from a server, whose own memory is not theirs. The kernel's high-water mark is used where
    the process may reset it, else what `sample` saw.
    """

    def __init__(self, device: torch.device, peak: int = 0) -> None:
        self.device = device
        self._peak = peak
        if device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
            return
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._marked = self._reset_mark()

    def sample(self, idle: int = 0) -> int:
        """Looks now; returns the peak so far.

        Args:
            idle: bytes that a replayed CUDA graph uses beside what is allocated, which PyTorch does not see.
        """
        if self.device.type == "cuda":
            allocated = torch.cuda.memory_allocated(self.device)
            now = max(torch.cuda.max_memory_allocated(self.device), allocated + idle)
        else:
            now = (self._mark() if self._marked else self._process.memory_info().rss) - self._before
        self._peak = max(self._peak, now)
        return self._peak

    def _reset_mark(self) -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            return self._mark() < 1.05 * self._before
        except (OSError, ValueError):
            return False

    @staticmethod
    def _mark() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise ValueError("no VmHWM")
