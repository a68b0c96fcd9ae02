"""What people see while runs go on: a line for each that is done, and between them how far the others are."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kvshift.durations import format_duration
from kvshift.paper.experiment import Experiment, Run, Settings
from kvshift.paper.place import Say
from kvshift.paper.records import ResultsFolder, RunRecord
from kvshift.training.record import RECORD_FILE

_TAIL_BYTES = 65_536  # holds several lines of a run's record


class Task(NamedTuple):
    """One run."""

    experiment: Experiment
    run: Run


class Progress:
    """Records runs that are done, and tells from what the others have written how far they are.

    Args:
        missing: every run that has no record.
        folder: takes the records.
        say: takes a line for people about each.
    """

    def __init__(self, missing: Sequence[Task], folder: ResultsFolder, say: Say) -> None:
        self.folder, self.say = folder, say
        self.total = Counter(task.experiment.name for task in missing)
        self.done: Counter[str] = Counter()
        self.open = list(missing)
        self.began, self.began_at = time.monotonic(), time.time()
        self.worked = 0  # runs that were done here, not taken from another experiment

    def measured(self, task: Task, record: RunRecord) -> None:
        """Records a run that was done."""
        self.worked += 1
        self._recorded(task, record, record.took)

    def shared(self, task: Task, record: RunRecord) -> None:
        """Records a run that another experiment has done."""
        self._recorded(task, record, "as recorded by another experiment")

    def _recorded(self, task: Task, record: RunRecord, said: str) -> None:
        name = task.experiment.name
        self.folder.append(task.experiment, record)
        self.done[name] += 1
        self.open.remove(task)
        self.say(f"{name}: run {self.done[name]} of {self.total[name]}, {task.run.name}, {said}")

    def line(self) -> str:
        """How far everything is, now."""
        under_way = [(task, share) for task in list(self.open) if (share := self._share(task)) is not None]
        done, total = sum(self.done.values()), sum(self.total.values())
        said = [f"{done} of {total} run{'' if total == 1 else 's'} done"]
        said += [f"{task.experiment.name} {task.run.name} {share:.0%}" for task, share in under_way]
        worked = self.worked + sum(share for _, share in under_way)
        if worked > 0:
            left = (time.monotonic() - self.began) / worked * (total - done - (worked - self.worked))
            said.append(f"about {format_duration(left)} left")
        return ", ".join(said)

    def _share(self, task: Task) -> float | None:
        """How much of a run is done; None if it is not under way."""
        file = self.folder.run_folder(*task) / RECORD_FILE
        try:
            if file.stat().st_mtime < self.began_at:  # of an interrupted reproduction, not yet gone on with
                return None
            return share_done(file, task.run.settings)
        except OSError:
            return None

    @contextmanager
    def told(self, show: Say, seconds: float) -> Iterator[None]:
        """Shows `line` every so many seconds, and never again after the block."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(seconds):
                show(self.line())

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def share_done(file: Path, settings: Settings) -> float:
    """How much of a training run is done, by the last point in its record; 0 where none tells.

    Raises:
        OSError: there is no such file.
    """
    with open(file, "rb") as record:
        record.seek(max(0, os.fstat(record.fileno()).st_size - _TAIL_BYTES))
        lines = record.read().split(b"\n")[:-1]  # without one that is being written
    for line in reversed(lines):
        try:
            point = json.loads(line)
        except ValueError:  # the tail began within it
            continue
        for name, whole in (("tokens", "tokens"), ("step", "steps")):
            if name in point and settings.get(whole):
                return min(1.0, float(point[name] / settings[whole]))
    return 0.0
