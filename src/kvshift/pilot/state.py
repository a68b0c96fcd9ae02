"""A pilot's folder: whose it is, what it remembers over resumes, and that one process uses it at a time."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvshift.errors import OutputError
from kvshift.files import OUTPUT_MARK, locked, output_errors, write_atomically
from kvshift.pilot.settings import PLAN_VERSION, PilotSettings, Plan

PRESENTATION = {"language", "price_per_hour", "currency"}
"""Settings that change the report only: a finished pilot may be shown again with others."""


class PilotState(BaseModel):
    """`pilot.json`: what is known of a pilot besides its plan and its runs."""

    model_config = ConfigDict(extra="ignore")

    version: int = 1
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    starts: int = 0
    elapsed_seconds: float = 0.0  # of work, summed over resumes
    peak_memory_bytes: int = 0  # of the whole process tree
    failures: dict[str, str] = {}  # run → why it failed at its last try


class PilotFolder:
    """The files of one pilot beside its runs' own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_folder(self, name: str) -> Path:
        """Where a run keeps its files."""
        return self.path / "runs" / name

    def log_file(self, name: str) -> Path:
        """What a run's process printed."""
        return self.run_folder(name) / "log.txt"

    def check(self) -> None:
        """Refuses a place that cannot become or go on being a pilot's folder; creates nothing.

        Raises:
            OutputError: a file, somebody else's folder, or not writable.
        """
        try:
            with output_errors(self.path):
                self._check()
        except OSError as error:
            raise OutputError(
                f"--out {self.path} cannot be written ({error.strerror}); choose another folder."
            ) from error

    def _check(self) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise OutputError(f"--out {path} is a file; give a folder.")
        ours = (path / "plan.json").exists() or (path / OUTPUT_MARK).exists()
        others = sorted(set(os.listdir(path)) - {".lock"}) if path.is_dir() and not ours else []
        if others:
            raise OutputError(
                f"--out {path} already holds other files ({others[0]}); give an empty or a new folder."
            )
        existing = path
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0" * 4096)
            file.flush()

    def create(self) -> None:
        """Makes the folder, marked as no text: it may lie within the text that the pilot reads.

        Raises:
            OutputError: it cannot be made.
        """
        with output_errors(self.path):
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            (self.path / OUTPUT_MARK).touch()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder; the lock of a process that died is free.

        Raises:
            OutputError: another process holds it.
        """
        with locked(self.path, "pilot"):
            try:
                yield
            finally:
                if not (self.path / "plan.json").exists():
                    with contextlib.suppress(OSError):
                        os.unlink(self.path / ".lock")  # no pilot came of it: the folder is left as it was

    def load_plan(self) -> Plan | None:
        """The plan made at the first start, if there was one.

        Raises:
            OutputError: `plan.json` is damaged or of another version of kvshift.
        """
        file = self.path / "plan.json"
        try:
            written = json.loads(file.read_bytes())
            version = written.get("version") if isinstance(written, dict) else None
            if isinstance(version, int) and version != PLAN_VERSION:  # its fields may have other types
                raise OutputError(f"{file} is of another version of kvshift; give another --out.")
            return Plan.model_validate(written)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(
                f"{file} is not a plan this kvshift can read; give another --out. "
                f"({str(error).splitlines()[0]})"
            ) from None

    def save_plan(self, plan: Plan) -> None:
        """Writes `plan.json`."""
        write_atomically(self.path / "plan.json", (plan.model_dump_json(indent=1) + "\n").encode())

    def load_state(self) -> PilotState:
        """What earlier starts left; a missing or damaged file only loses the time counted so far."""
        try:
            return PilotState.model_validate_json((self.path / "pilot.json").read_bytes())
        except (FileNotFoundError, ValidationError, ValueError):
            return PilotState()

    def save_state(self, state: PilotState) -> None:
        """Writes `pilot.json`."""
        write_atomically(self.path / "pilot.json", (state.model_dump_json(indent=1) + "\n").encode())


def same_pilot(asked: PilotSettings, planned: PilotSettings) -> str | None:
    """The first setting in which two requests differ so that they are two pilots; None if they agree."""
    one, other = (settings.model_dump(mode="json", exclude=PRESENTATION) for settings in (asked, planned))
    return next((name for name in one if one[name] != other[name]), None)


class Stopwatch:
    """Adds the time since it was started to a state."""

    def __init__(self, state: PilotState, spent: float = 0.0) -> None:
        self._before = state.elapsed_seconds + spent
        self._started = time.monotonic()
        self._state = state

    def read(self) -> float:
        """Seconds over all starts, also put into the state."""
        self._state.elapsed_seconds = self._before + time.monotonic() - self._started
        return self._state.elapsed_seconds
