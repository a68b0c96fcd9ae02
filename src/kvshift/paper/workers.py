"""Runs beside each other, each in a process with its share of the cores and one of the GPUs."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import torch

from kvshift.errors import RunsFailedError
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.measure import measured
from kvshift.paper.place import Texts
from kvshift.paper.progress import Task
from kvshift.paper.records import ResultsFolder, RunRecord
from kvshift.processes import (
    end_with_parent,
    gpu_names,
    interrupts_blocked,
    seeing_gpu,
    start_silent_tracker,
)
from kvshift.training.cores import usable_cores


def measured_beside(
    tasks: Sequence[Task], folder: ResultsFolder, texts: Texts, jobs: int
) -> Generator[tuple[Task, RunRecord]]:
    """Each task with its record as soon as it is done, `jobs` at a time.

    Raises:
        RunsFailedError: a process ended without a word.
        What a run raises: the others end, and go on another time from what they keep.
    """
    start_silent_tracker()
    for task in tasks:  # each would prepare it for itself
        if "text" in task.run.settings:
            texts.prepared(task.run.settings["text"], task.run.settings["tokens"])
    others = set(multiprocessing.active_children())
    pool = _pool(jobs, gpu_names(torch.cuda.device_count()))
    futures: dict[Future[RunRecord], Task] = {}
    try:
        for task in tasks:
            names = task.experiment.name, task.run.name
            futures[pool.submit(_measure, *names, folder, texts.for_another_process())] = task
        for done in as_completed(futures):
            yield futures[done], done.result()
    except BrokenProcessPool:
        raise RunsFailedError(
            "A process of a run ended without a word, as it does when memory is short. Take fewer than "
            f"--jobs {jobs}; what is done is kept."
        ) from None
    finally:
        ours = set(multiprocessing.active_children()) - others
        for process in ours:
            process.terminate()
        for process in ours:
            process.join()
        pool.shutdown()


class _Process(SpawnProcess):
    gpu: str | None = None

    def start(self) -> None:
        with seeing_gpu(self.gpu), interrupts_blocked():
            super().start()


class _Context(SpawnContext):
    def __init__(self, gpus: list[str]) -> None:
        self._gpus = itertools.cycle(gpus or [None])

    def Process(self, *args: Any, **given: Any) -> _Process:  # type: ignore[override]
        process = _Process(*args, **given)
        process.gpu = next(self._gpus)
        return process


def _pool(jobs: int, gpus: list[str]) -> ProcessPoolExecutor:
    context = _Context(gpus)
    numbers = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_settle, initargs=(numbers, jobs))


def _settle(numbers: Any, jobs: int) -> None:
    """Takes this process's share of the cores."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; who made this one ends it
    number = numbers.get()
    cores = usable_cores()
    share = cores[number * len(cores) // jobs : (number + 1) * len(cores) // jobs]
    if hasattr(os, "sched_setaffinity"):  # not on every system
        os.sched_setaffinity(0, share or [cores[number % len(cores)]])
    torch.set_num_threads(max(1, len(share)))


def _measure(experiment: str, run: str, folder: ResultsFolder, texts: Texts) -> RunRecord:
    found = EXPERIMENTS[experiment]
    named = next(each for each in found.runs[folder.scale] if each.name == run)
    return measured(found, named, folder, texts)
