"""Running a plan: each run in a process of its own, one at a time a device, whatever happens to any."""

from __future__ import annotations

import dataclasses
import multiprocessing.connection
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvshift.errors import KVShiftError, OutputError
from kvshift.files import output_errors
from kvshift.pilot.memory import MemoryMeter
from kvshift.pilot.settings import Plan, PlannedRun
from kvshift.pilot.state import PilotFolder, PilotState, Stopwatch
from kvshift.pilot.worker import Job, JobFailedError
from kvshift.processes import gpu_names
from kvshift.training.recipe import Recipe
from kvshift.training.record import Record, read_record

Read = Callable[[Path, Recipe], Record]
TRAIN = "kvshift.pilot.jobs:train"
FINAL = ("finished", "diverged")
_TICK_SECONDS = 0.25
_SAVE_SECONDS = 10.0


@dataclass
class Running:
    """A run that has a device."""

    run: PlannedRun
    job: Job
    device: int
    started: float
    progress: dict[str, Any] = field(default_factory=dict)  # the last of training.Progress


@dataclass(frozen=True)
class Finished:
    """A run that ended in this start."""

    run: PlannedRun
    status: str  # of its record, or "failed"
    loss: float | None  # nats a token
    seconds: float
    error: str | None = None


@dataclass
class Progress:
    """How far the pilot is, for whoever shows it."""

    plan: Plan
    done_before: int  # runs that earlier starts finished
    waiting: deque[PlannedRun]
    running: list[Running] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def runs_done(self) -> int:
        return self.done_before + len(self.finished)

    def seconds_left(self, now: float) -> float:
        """From the plan's expectations, corrected by how long the finished runs really took."""
        counted = [run for run in self.finished if run.status in FINAL]
        expected = sum(run.run.expected_seconds for run in counted)
        pace = sum(run.seconds for run in counted) / expected if expected > 0 else 1.0
        left = sum(run.expected_seconds for run in self.waiting) * pace
        for running in self.running:
            left += max(0.0, running.run.expected_seconds * pace - (now - running.started))
        return left / max(1, self.plan.devices)

    def seconds_late(self, now: float) -> float:
        """How much longer than planned the runs of this start will take in all; negative if shorter."""
        runs = [*(f.run for f in self.finished), *(r.run for r in self.running), *self.waiting]
        planned = sum(run.expected_seconds for run in runs) / max(1, self.plan.devices)
        return now - self.began + self.seconds_left(now) - planned


Watcher = Callable[[Progress, Finished | None], None]


def unfinished(plan: Plan, folder: PilotFolder, read: Read = read_record) -> list[PlannedRun]:
    """The runs of a plan that have no result yet, failed ones among them, in the plan's order."""
    return [run for run in plan.runs if read(folder.run_folder(run.name), run.recipe).status not in FINAL]


def execute(
    plan: Plan,
    folder: PilotFolder,
    state: PilotState,
    *,
    watch: Watcher,
    stopwatch: Stopwatch,
    train: str = TRAIN,
    read: Read = read_record,
) -> None:
    """Trains what is missing. A failed run is noted in `state.failures` and the others go on.

    On KeyboardInterrupt, or when anything else stops the pilot, the children are ended and the state saved;
    the next call goes on from there.

    Raises:
        OutputError: the disk is full or the folder cannot be written any more.
    """
    missing = unfinished(plan, folder, read)
    progress = Progress(plan, done_before=len(plan.runs) - len(missing), waiting=deque(missing))
    free = deque(range(max(1, plan.devices)))
    meter = MemoryMeter(state.peak_memory_bytes)
    saved = time.monotonic()
    watch(progress, None)
    try:
        with meter:
            while progress.waiting or progress.running:
                while free and progress.waiting:
                    run = progress.waiting.popleft()
                    progress.running.append(_start(plan, run, folder, state, free.popleft(), train))
                _wait(progress.running)
                for running in list(progress.running):
                    if messages := running.job.messages():
                        running.progress = messages[-1]
                    if running.job.ended:
                        progress.running.remove(running)
                        free.append(running.device)
                        finished = _collect(running, folder, read)
                        _note(finished, progress, state)
                        state.peak_memory_bytes = meter.peak
                        stopwatch.read()
                        folder.save_state(state)
                        saved = time.monotonic()
                        watch(progress, finished)
                watch(progress, None)
                if time.monotonic() - saved > _SAVE_SECONDS:
                    state.peak_memory_bytes = meter.peak
                    stopwatch.read()
                    folder.save_state(state)
                    saved = time.monotonic()
    finally:
        for running in progress.running:
            running.job.stop()
        state.peak_memory_bytes = max(state.peak_memory_bytes, meter.peak)
        stopwatch.read()
        if folder.path.is_dir():
            folder.save_state(state)


def records(
    plan: Plan, folder: PilotFolder, state: PilotState, read: Read = read_record
) -> dict[str, Record]:
    """Every run's record by name; a run whose process died counts as failed, with the reason."""
    found = {}
    for run in plan.runs:
        record = read(folder.run_folder(run.name), run.recipe)
        reason = state.failures.get(run.name)
        if reason is not None and record.status not in FINAL:
            record = dataclasses.replace(record, status="failed", error=reason)
        found[run.name] = record
    return found


def _start(
    plan: Plan, run: PlannedRun, folder: PilotFolder, state: PilotState, device: int, train: str
) -> Running:
    run_folder = folder.run_folder(run.name)
    with output_errors(run_folder):
        run_folder.mkdir(parents=True, exist_ok=True)
    state.failures.pop(run.name, None)
    on_gpu = run.recipe.device == "cuda" and plan.devices > 1
    job = Job(
        train,
        {"recipe": run.recipe.model_dump(mode="json"), "folder": str(run_folder)},
        log=folder.log_file(run.name),
        gpu=gpu_names(plan.devices)[device] if on_gpu else None,
    )
    return Running(run, job, device, time.monotonic())


def _wait(running: list[Running]) -> None:
    """Until a child says something or ends, but not long."""
    ends = [item.job.process.sentinel for item in running]
    pipes = [item.job.pipe for item in running if not item.job.pipe.closed and not item.job.silent]
    multiprocessing.connection.wait([*ends, *pipes], timeout=_TICK_SECONDS)


def _collect(running: Running, folder: PilotFolder, read: Read) -> Finished:
    run, seconds = running.run, time.monotonic() - running.started
    try:
        result = running.job.result()
    except OutputError:
        raise  # a full disk stops every run: there is no use in starting the next
    except (KVShiftError, JobFailedError) as error:
        reason = f"{error} (what it printed: {folder.log_file(run.name)})"
        return Finished(run, "failed", None, seconds, reason)
    finally:
        running.job.stop()
    record = read(folder.run_folder(run.name), run.recipe)
    if record.status not in FINAL:
        return Finished(
            run, "failed", None, seconds, record.error or result.get("error") or "no reason given"
        )
    return Finished(run, record.status, record.final_loss, seconds, record.error)


def _note(finished: Finished, progress: Progress, state: PilotState) -> None:
    progress.finished.append(finished)
    if finished.status == "failed":
        state.failures[finished.run.name] = finished.error or "no reason given"
