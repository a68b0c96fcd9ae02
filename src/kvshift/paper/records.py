"""A results folder: what belongs to it, and the records of runs, one JSON object a line.

results.json            version, scale and text of everything in the folder
NAME/records.jsonl      the finished runs of an experiment; a run that has a line is not done again
NAME/verdict.json       the rule applied to them
NAME/NAME.png           the figure
NAME/runs/RUN/          what a run keeps while it goes on
report.html             all verdicts, on request
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvshift.errors import OutputError
from kvshift.files import locked, output_errors, write_atomically
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Scale

RECORDS_VERSION = 1
FOLDER_FILE = "results.json"
RECORDS_FILE = "records.jsonl"


class FolderFile(BaseModel):
    """`results.json`."""

    model_config = ConfigDict(frozen=True)

    version: int
    scale: Scale
    sources: list[str] = Field(default=[], description="Of language models' text; none: the default text")
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def text(self) -> str:
        """What language models learn from, for people."""
        return ", ".join(self.sources) or "Python’s standard library"


class RunRecord(BaseModel):
    """One finished run: a line of `records.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    version: int = Field(description="Of the experiment")
    run: str
    settings: dict[str, Any]
    measured: dict[str, Any]
    started: str = Field(description="UTC, ISO 8601")
    seconds: float = Field(description="Since it went on, where it was resumed")
    resumed: bool = Field(False, description="After an interruption; records from before 2026-12 do not say")
    device: str = Field(description="For people")
    versions: dict[str, str]

    @property
    def took(self) -> str:
        """Seconds, for people."""
        return f"{self.seconds:.1f} s{' since it went on' if self.resumed else ''}"

    def measurement(self) -> Measurement:
        """What judges and figures read."""
        return Measurement(settings=self.settings, measured=self.measured)


class ResultsFolder:
    """The files of one results folder, all of one scale."""

    def __init__(self, path: Path, scale: Scale) -> None:
        self.path, self.scale = path, scale

    def of(self, experiment: Experiment) -> Path:
        """An experiment's own folder."""
        return self.path / experiment.name

    @property
    def begun(self) -> bool:
        """Whether it holds results, of whatever kind."""
        return (self.path / FOLDER_FILE).exists()

    def open(self, sources: Sequence[str] = ()) -> None:
        """Makes the folder, or goes on with it.

        Args:
            sources: of the text that language models learn from.

        Raises:
            OutputError: it holds other files, another scale, text or version, or cannot be written.
        """
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            others = sorted(set(os.listdir(self.path)) - {".lock"})
        file = self.path / FOLDER_FILE
        if not others:
            made = FolderFile(version=RECORDS_VERSION, scale=self.scale, sources=list(sources))
            write_atomically(file, (made.model_dump_json(indent=1) + "\n").encode())
            return
        if FOLDER_FILE not in others:
            raise OutputError(
                f"--out {self.path} already holds other files ({others[0]}); give an empty or a new folder."
            )
        found = self.described()
        if found.scale != self.scale:
            raise OutputError(
                f"{self.path} holds results at scale {found.scale}, not {self.scale}; give another --out, or "
                f"--scale {found.scale}."
            )
        if found.sources != list(sources):
            asked = FolderFile(version=RECORDS_VERSION, scale=self.scale, sources=list(sources))
            raise OutputError(
                f"{self.path} holds results with the text {found.text}, not {asked.text}; give another "
                "--out, or the same --text."
            )

    def described(self) -> FolderFile:
        """What `results.json` says of everything in the folder.

        Raises:
            OutputError: it is damaged, or of another version than this kvshift's.
        """
        file = self.path / FOLDER_FILE
        unreadable = OutputError(f"{file} cannot be read; give another --out.")
        try:
            found = json.loads(file.read_bytes())
            version = found["version"]
        except (OSError, ValueError, KeyError, TypeError):
            raise unreadable from None
        if version != RECORDS_VERSION:  # whose other fields may be others
            raise OutputError(
                f"{self.path} holds records of version {version}; this kvshift reads and writes version "
                f"{RECORDS_VERSION}. Give another --out."
            )
        try:
            return FolderFile.model_validate(found)
        except ValidationError:
            raise unreadable from None

    def locked(self) -> AbstractContextManager[None]:
        """Holds the folder, which exists; the lock of a process that died is free.

        Raises:
            OutputError: another process holds it.
        """
        return locked(self.path, "reproduction")

    def begin_again(self, experiment: Experiment) -> str:
        """What to do about records that cannot be used."""
        return f"Delete {self.of(experiment)} to begin it again, or give another --out."

    def read(self, experiment: Experiment) -> dict[str, RunRecord]:
        """The finished runs of this scale, by name.

        Raises:
            OutputError: the records are damaged, or of other runs than this kvshift's.
        """
        file = self.of(experiment) / RECORDS_FILE
        begin_again = self.begin_again(experiment)
        try:
            lines = file.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:  # the experiment's folder is a file, for one
            raise OutputError(f"{file} cannot be read: {error.strerror}. {begin_again}") from error
        wanted = {run.name: run.settings for run in experiment.runs[self.scale]}
        found: dict[str, RunRecord] = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = RunRecord.model_validate_json(line)
            except ValidationError as error:
                reason = str(error).splitlines()[0]
                raise OutputError(f"{file}, line {number}, is no record: {reason}. {begin_again}") from None
            if record.version != experiment.version:
                raise OutputError(
                    f"{file} is of version {record.version} of {experiment.name}; this kvshift has version "
                    f"{experiment.version}. {begin_again}"
                )
            if wanted.get(record.run) != record.settings:
                raise OutputError(
                    f"{file}, line {number}: run {record.run!r} with these settings is none of "
                    f"{experiment.name} at scale {self.scale}. {begin_again}"
                )
            found[record.run] = record
        return found

    def read_or_nothing(self, experiment: Experiment) -> dict[str, RunRecord]:
        """`read`, of records that are only a help: none where they cannot be used."""
        try:
            return self.read(experiment)
        except OutputError:
            return {}

    def append(self, experiment: Experiment, record: RunRecord) -> None:
        """Adds a line; the file has it whole or not at all.

        Raises:
            OutputError: it cannot be written.
            ValueError: a number in it is not finite.
        """
        file = self.of(experiment) / RECORDS_FILE
        with output_errors(file):
            file.parent.mkdir(exist_ok=True)
            before = file.read_bytes() if file.exists() else b""
        write_atomically(file, before + json.dumps(record.model_dump(), allow_nan=False).encode() + b"\n")

    def run_folder(self, experiment: Experiment, run: Run) -> Path:
        """Where a run keeps what it needs to go on; not made."""
        return self.of(experiment) / "runs" / run.name

    def write_verdict(
        self, experiment: Experiment, judgement: Judgement, records: Sequence[RunRecord]
    ) -> None:
        """Writes `verdict.json`."""
        written = {
            "experiment": experiment.name,
            "version": experiment.version,
            "scale": self.scale,
            "claim": experiment.claim,
            "paper": experiment.paper,
            "rule": experiment.rule,
            "verdict": judgement.verdict,
            "ours": judgement.ours,
            "finding": judgement.finding,
            "runs": [record.run for record in records],
        }
        content = json.dumps(written, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.of(experiment) / "verdict.json", content.encode())
