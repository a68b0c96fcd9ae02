"""What the benchmarks of whole pilots share: starting `kvshift pilot` in its own process, on its own core."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

SMALL = ["--device", "cpu", "--budget", "2h"]


def start(folder: Path, options: list[str], core: int | None) -> subprocess.Popen:
    """`kvshift pilot` with `options` in `folder`, pinned to one core; its output goes to `folder`.log."""

    def pin() -> None:
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    command = [sys.executable, "-m", "kvshift", "pilot", *SMALL, *options, "--out", str(folder)]
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=pin, start_new_session=True)


def spread(tasks: list[Any], jobs: int, do: Any, first_core: int) -> list[Any]:
    """`do(task, core)` for every task, `jobs` at a time, each on a core of its own; results in order."""
    cores: SimpleQueue = SimpleQueue()
    for job in range(jobs):
        cores.put(first_core + job if jobs > 1 else None)

    def one(task: Any) -> Any:
        core = cores.get()
        try:
            return do(task, core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, tasks))
