"""Runs beside each other, each in a process with its share of the cores and one of the GPUs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch

from kvshift.errors import RunsFailedError
from kvshift.paper.experiment import Experiment, Run
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.measure import measured
from kvshift.paper.place import Texts
from kvshift.paper.records import ResultsFolder, RunRecord
from kvshift.training.cores import usable_cores


class Task(NamedTuple):
    """One run."""

    experiment: Experiment
    run: Run


def measured_beside(
    tasks: Sequence[Task], folder: ResultsFolder, texts: Texts, jobs: int
) -> Iterator[tuple[Task, RunRecord]]:
    """Each task with its record as soon as it is done, `jobs` at a time.

    Raises:
        RunsFailedError: a process ended without a word.
        What a run raises: the others end, and go on another time from what they keep.
    """
    for task in tasks:  # each would prepare it for itself
        if "text" in task.run.settings:
            texts.prepared(task.run.settings["text"])
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.Queue()
    for number in range(jobs):
        numbers.put(number)
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_settle, initargs=(numbers, jobs, _gpus()))
    futures: dict[Future[RunRecord], Task] = {}
    try:
        for task in tasks:
            names = task.experiment.name, task.run.name
            futures[pool.submit(_measure, *names, folder, texts.sources)] = task
        for done in as_completed(futures):
            yield futures[done], done.result()
    except BrokenProcessPool:
        raise RunsFailedError(
            "A process of a run ended without a word, as it does when memory is short. Take fewer than "
            f"--jobs {jobs}; what is done is kept."
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown()


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _settle(numbers: Any, jobs: int, gpus: list[str]) -> None:
    """Takes this process's share of the machine."""
    number = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    cores = usable_cores()
    share = cores[number * len(cores) // jobs : (number + 1) * len(cores) // jobs]
    if hasattr(os, "sched_setaffinity"):  # not on every system
        os.sched_setaffinity(0, share or [cores[number % len(cores)]])
    torch.set_num_threads(max(1, len(share)))


def _measure(experiment: str, run: str, folder: ResultsFolder, sources: tuple[str, ...]) -> RunRecord:
    found = EXPERIMENTS[experiment]
    named = next(each for each in found.runs[folder.scale] if each.name == run)
    return measured(found, named, folder, Texts(sources))
