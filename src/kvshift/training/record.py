"""What a run leaves behind: `record.jsonl`, one JSON object a line, in the order things happened.

Lines have an `event`: `start` (once, and again at each resume), `step`, `evaluation`, `taps`, `watched`,
`end`.
Everything that reads runs reads them through `read_record`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from kvshift.errors import OutputError
from kvshift.files import output_errors, write_atomically
from kvshift.training.recipe import Recipe

Status = Literal["finished", "diverged", "failed", "unfinished"]


@dataclass(frozen=True)
class StepPoint:
    """Training loss, averaged since the last such point."""

    step: int
    tokens: int
    loss: float  # nats a token
    seconds: float  # training time so far, evaluation and checkpoints left out, summed over resumes


@dataclass(frozen=True)
class EvaluationPoint:
    """The model on the fixed validation windows."""

    step: int
    tokens: int
    nats_per_token: float
    bits_per_byte: float
    seconds: float  # training time so far, as in StepPoint


@dataclass(frozen=True)
class TapsPoint:
    """The effective taps: `keys[layer][head][column]`, averaged over channels if they are per channel."""

    step: int
    tokens: int
    keys: list[list[list[float]]] | None
    values: list[list[list[float]]] | None


@dataclass(frozen=True)
class WatchedPoint:
    """What the caller of `run` wanted to know of the model at an evaluation."""

    step: int
    tokens: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One run, read back. A run that was killed and not resumed is `unfinished`."""

    recipe: Recipe
    status: Status
    error: str | None = None  # why it failed or diverged, for people
    device: str = "cpu"  # for people: "CPU, 2 threads", "NVIDIA H100 80GB HBM3"
    versions: dict[str, str] = field(default_factory=dict)  # python, torch, transformers, kvshift
    parameters: int = 0  # all, embeddings included, taps included
    tap_parameters: int = 0
    steps: list[StepPoint] = field(default_factory=list)
    evaluations: list[EvaluationPoint] = field(default_factory=list)
    taps: list[TapsPoint] = field(default_factory=list)
    watched: list[WatchedPoint] = field(default_factory=list)
    train_seconds: float = 0.0
    wall_seconds: float = 0.0  # start-up, evaluation and checkpoints included, summed over resumes
    tokens_per_second: float = 0.0  # from the median step, so that one hiccup does not count
    peak_memory_bytes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def final_loss(self) -> float | None:
        """Validation loss at the end in nats a token; None unless the run finished."""
        return self.evaluations[-1].nats_per_token if self.status == "finished" and self.evaluations else None


RECIPE_FILE = "recipe.json"
RECORD_FILE = "record.jsonl"
STATUS_FILE = "status.json"
_POINTS: dict[str, type] = {
    "step": StepPoint,
    "evaluation": EvaluationPoint,
    "taps": TapsPoint,
    "watched": WatchedPoint,
}


class RecordWriter:
    """Appends to a folder's `record.jsonl`. A line is in the file, whole, once `write` has returned.

    Args:
        folder: the run's folder; it exists.
        keep_bytes: what a checkpoint vouches for; everything after it is cut off.
    """

    def __init__(self, folder: Path, keep_bytes: int) -> None:
        self.path = folder / RECORD_FILE
        with output_errors(self.path):
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
            self._file.truncate(keep_bytes)

    def write(self, event: str, fields: dict[str, Any]) -> None:
        """Appends one line.

        Raises:
            OutputError: the disk is full; the file ends with the line before.
        """
        line = json.dumps({"event": event, **fields}, allow_nan=False).encode() + b"\n"
        end = self.size()
        with output_errors(self.path):
            try:
                self._append(line)
            except OSError:
                self._file.truncate(end)
                raise

    def _append(self, line: bytes) -> None:
        while line:
            line = line[self._file.write(line) :]

    def point(self, point: StepPoint | EvaluationPoint | TapsPoint | WatchedPoint) -> None:
        """Appends a measured point."""
        event = next(name for name, kind in _POINTS.items() if isinstance(point, kind))
        self.write(event, dataclasses.asdict(point))

    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def sync(self) -> int:
        """Brings the file to the disk; returns its size in bytes."""
        with output_errors(self.path):
            os.fsync(self._file.fileno())
        return self.size()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_record(folder: Path, recipe: Recipe | None = None) -> Record:
    """Reads what a run left in `folder`, whatever state it is in. The first broken line ends the reading.

    Args:
        folder: a run's folder; it may be empty, or missing, if `recipe` is given.
        recipe: the recipe that was meant to run here, for a folder that has none yet.

    Raises:
        OutputError: `folder` holds no recipe and none was given, or its recipe cannot be read.
    """
    recipe = read_recipe(folder) or recipe
    if recipe is None:
        raise OutputError(f"{folder} holds no run: {RECIPE_FILE} is missing. Name the folder of a run.")
    found: dict[str, Any] = {}
    points: dict[str, list[Any]] = {event: [] for event in _POINTS}
    for line in read_lines(folder / RECORD_FILE):
        event = line.pop("event", None)
        if event in _POINTS:
            points[event].append(_POINTS[event](**line))
        elif event in ("start", "end"):
            known = {field.name for field in dataclasses.fields(Record)}
            found.update({name: value for name, value in line.items() if name in known})
    status = read_status(folder)
    found["status"], found["error"] = status if status is not None else ("unfinished", None)
    if not found.get("train_seconds"):
        last = [point.seconds for event in ("step", "evaluation") for point in points[event]]
        found["train_seconds"] = max(last, default=0.0)
    return Record(
        recipe=recipe,
        steps=points["step"],
        evaluations=points["evaluation"],
        taps=points["taps"],
        watched=points["watched"],
        **found,
    )


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe a run's folder holds; None if it has none.

    Raises:
        OutputError: it is damaged.
    """
    path = folder / RECIPE_FILE
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise OutputError(
            f"{path} cannot be read as a recipe: {error}. Delete {folder} to start over."
        ) from error


def read_status(folder: Path) -> tuple[Status, str | None] | None:
    """How the run in `folder` ended, and why if it failed; None while it has not."""
    try:
        written = json.loads((folder / STATUS_FILE).read_bytes())
        return written["status"], written.get("error")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_status(folder: Path, status: Status, error: str | None) -> None:
    """Writes `status.json`, the last thing a run does.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    write_atomically(folder / STATUS_FILE, json.dumps({"status": status, "error": error}).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The record's whole lines, up to the first that is not one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in raw.split(b"\n")[:-1]:  # what follows the last newline was cut off while being written
        try:
            parsed = json.loads(line)
        except ValueError:
            break
        if not isinstance(parsed, dict):
            break
        lines.append(parsed)
    return lines
