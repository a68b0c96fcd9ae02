"""The memory of this process and everything it started."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

_SAMPLE_SECONDS = 2.0


def tree_memory_bytes() -> int:
    """Memory in use by the process tree; pages that forks share count once where the system can tell."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            if psutil.LINUX:
                total += process.memory_full_info().pss
            else:
                total += process.memory_info().rss
        except psutil.Error:  # gone, or not ours to ask
            continue
    return total


class MemoryMeter:
    """Keeps the highest `tree_memory_bytes` while it is entered, from a thread."""

    def __init__(self, peak: int = 0) -> None:
        self.peak = peak
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryMeter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, tree_memory_bytes())
            self._stop.wait(_SAMPLE_SECONDS)
