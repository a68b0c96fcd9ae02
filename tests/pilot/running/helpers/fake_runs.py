"""Stands in for training inside the pilot's child processes: what a run does is read from a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvshift.errors import DataError, OutputError
from kvshift.training.recipe import Recipe
from kvshift.training.record import EvaluationPoint, RecordWriter, write_status


def train(recipe: dict[str, Any], folder: str, *, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    place = Path(folder)
    pilot = place.parent.parent
    behaviour = pilot / "behaviour.json"
    how = (json.loads(behaviour.read_text()) if behaviour.exists() else {}).get(place.name, "finish")
    with open(pilot / "started.txt", "a") as log:
        log.write(place.name + "\n")
    (place / "recipe.json").write_text(Recipe.model_validate(recipe).model_dump_json())
    report({"step": 1, "steps": 2, "tokens": 10, "loss": 5.0, "seconds": 0.1})
    os.write(1, b"a library prints this\n")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    if how == "raise":
        raise ValueError("something odd")
    if how == "data":
        raise DataError("the text is gone")
    if how == "full":
        raise OutputError("the disk is full")
    if how == "oserror":
        raise OSError(28, "No space left on device")
    if how == "hang":
        (pilot / "hanging.txt").write_text(str(os.getpid()))
        time.sleep(120)
    if how == "gpu":
        (pilot / f"gpu-{place.name}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        time.sleep(0.5)
    writer = RecordWriter(place, keep_bytes=0)
    writer.point(EvaluationPoint(step=2, tokens=20, nats_per_token=4.0, bits_per_byte=1.5, seconds=0.2))
    writer.close()
    status = "diverged" if how == "diverge" else "finished"
    write_status(place, status, "the loss became nan" if how == "diverge" else None)
    return {"status": status, "error": None, "loss": 4.0}


def pid(*, report: Callable[[dict[str, Any]], None]) -> int:
    del report
    return os.getpid()


def gpu(*, report: Callable[[dict[str, Any]], None]) -> list[Any]:
    """Whether CUDA is lost here, and the GPUs that are to be seen here."""
    del report
    import torch

    return [torch.cuda._is_in_bad_fork(), os.environ.get("SEEN", os.environ.get("CUDA_VISIBLE_DEVICES"))]


def sleep(seconds: float, *, report: Callable[[dict[str, Any]], None]) -> None:
    report({"pid": os.getpid()})
    time.sleep(seconds)


semaphore: Any


def leak(*, report: Callable[[dict[str, Any]], None]) -> str:
    """A semaphore that nothing takes away, as the compiler's processes leave one."""
    del report
    global semaphore
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    return str(semaphore._semlock.name)
