"""What runs inside the processes of `worker.py`; importing this is what their server does beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

from kvshift.errors import OutputError
from kvshift.pilot.ladder import user_ladder
from kvshift.training.cores import usable_cores
from kvshift.training.recipe import Recipe
from kvshift.training.run import Progress, run
from kvshift.training.speed import measure_speed

Report = Callable[[dict[str, Any]], None]
_REPORT_SECONDS = 0.2
_LOCK_SECONDS = 60.0  # for a run of a killed pilot to notice that it is alone


def train(recipe: dict[str, Any], folder: str, *, report: Report) -> dict[str, Any]:
    """One run, reported as it goes; see `kvshift.training.run`."""
    last = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or progress.step == progress.steps:
            last = now
            report(progress._asdict())

    try:
        with FileLock(Path(folder) / ".lock", timeout=_LOCK_SECONDS):
            record = run(Recipe.model_validate(recipe), Path(folder), on_progress=on_progress)
    except Timeout:
        raise OutputError(f"Another process is still training in {folder}; wait for it or end it.") from None
    return {"status": record.status, "error": record.error, "loss": record.final_loss}


def measure(recipe: dict[str, Any], seconds: float, *, report: Report) -> dict[str, Any]:
    """How fast this machine trains a recipe; see `kvshift.training.speed`."""
    del report
    return measure_speed(Recipe.model_validate(recipe), seconds=seconds)._asdict()


def derive(path: str, vocab_size: int, sequence_length: int, *, report: Report) -> list[dict[str, Any]]:
    """A ladder below the user's architecture; see `ladder.user_ladder`."""
    del report
    return [size.model_dump(mode="json") for size in user_ladder(Path(path), vocab_size, sequence_length)]


def probe(device: str, *, report: Report) -> dict[str, Any]:
    """This machine, as `plan.DeviceInfo` describes it; `device` is auto, cpu or cuda."""
    del report
    if device != "cpu" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return {
            "kind": "cuda",
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
        }
    threads = len(usable_cores())
    return {
        "kind": "cpu",
        "name": f"CPU, {threads} thread{'s' if threads != 1 else ''}",
        "count": 1,
        "memory_bytes": psutil.virtual_memory().available,
    }
