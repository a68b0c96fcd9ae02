"""Calls recorded in a CUDA graph: replayed, they take what the device takes, without the host's launches."""

from __future__ import annotations

import torch

from kvshift.bench.timing import Call

_WARM_UPS = 2


class Recorder:
    """Records graphs that share their memory: they are replayed in turns and nobody reads their results."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, call: Call) -> Call:
        """A call that replays what `call` launches.

        Raises:
            RuntimeError: something in it cannot be recorded, such as a wait for the device.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            call()
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay


class Flusher:
    """Overwrites the cache, and keeps the device busy while the host prepares what is timed next."""

    def __init__(self, cache_bytes: int, device: torch.device) -> None:
        self._buffer = torch.empty(4 * cache_bytes, dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        self._buffer.zero_()


def replay_seconds(replay: Call, flush: Call) -> float:
    """One replay, from its first kernel to its last: the device is busy when it is launched."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    flush()
    start.record()
    replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
