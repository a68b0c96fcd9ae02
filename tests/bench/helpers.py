"""Small cases, and a GPU that only pretends."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from kvshift.bench.configurations import Configuration
from kvshift.bench.operators import Effort, Machine

MICRO = Configuration("micro", 32, 2, 2, 2, 64, 64, 16, 2, decoded=True)
EFFORT = Effort(rounds=2, sample_seconds=1e-4)
CPU = torch.device("cpu")


def machine(*, on_gpu: bool = False, dtype: torch.dtype = torch.float32) -> Machine:
    return Machine(CPU, dtype, cache_bytes=1 << 10, bytes_per_second=1e9, on_gpu=on_gpu)


class PretendedGraphs:
    """What `graphs.py` calls of torch.cuda; a graph holds the calls made while it was recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        self.recording = False
        self.clock = 0.0
        happened, this = self.happened, self

        class Stream:
            def wait_stream(self, other: object) -> None:
                happened.append("wait for a stream")

        class Graph:
            def replay(self) -> None:
                happened.append("replay")
                this.clock += 5.0

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                happened.append("event")
                self.at = this.clock

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Event) -> float:  # milliseconds
                return other.at - self.at

        @contextmanager
        def graph(made: Graph, pool: object, capture_error_mode: str):
            assert pool == "pool"
            this.recording = True
            happened.append("begin")
            try:
                yield
            finally:
                this.recording = False
                happened.append("end")

        @contextmanager
        def stream(given: Stream):
            happened.append("on a side stream")
            yield

        for name, value in {
            "Stream": Stream,
            "current_stream": Stream,
            "stream": stream,
            "CUDAGraph": Graph,
            "graph": graph,
            "graph_pool_handle": lambda: "pool",
            "synchronize": lambda: happened.append("synchronize"),
            "Event": Event,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
