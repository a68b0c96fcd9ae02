"""One run: start it, go on with it, or return what it left behind."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kvshift.errors import OutputError
from kvshift.files import output_errors, sync_file, sync_folder, write_atomically
from kvshift.tasks.text import TextData
from kvshift.training import checkpoint
from kvshift.training.data import EvaluationWindows, check_enough
from kvshift.training.meters import Clock, PeakMemory
from kvshift.training.model import effective_taps, tap_parameters
from kvshift.training.recipe import Recipe
from kvshift.training.record import (
    RECIPE_FILE,
    RECORD_FILE,
    STATUS_FILE,
    EvaluationPoint,
    Record,
    RecordWriter,
    Status,
    StepPoint,
    TapsPoint,
    WatchedPoint,
    read_recipe,
    read_record,
    read_status,
    write_status,
)
from kvshift.training.schedule import evaluation_steps, recorded_every
from kvshift.training.trainer import (
    RunTrainer,
    check_hardware,
    run_device,
    run_precision,
    run_threads,
    trained_steps,
)

FINAL = "final"
_PROGRESS_SECONDS = 0.5
_SAME_RUN = {"checkpoint_seconds", "data"}  # may differ between two starts of one run


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    steps: int
    tokens: int
    loss: float | None  # nats a token, averaged over the last steps; None before the first
    seconds: float  # training time so far


Watch = Callable[[nn.Module, EvaluationWindows], Mapping[str, Any]]
"""Takes the model as it is and the validation windows; returns what JSON can hold."""


class _DivergedError(Exception):
    """The loss is no longer a finite number."""


def run(
    recipe: Recipe,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    watch: Watch | None = None,
) -> Record:
    """Trains as `recipe` says, in `folder`.

    Goes on from the last whole checkpoint if the folder holds one, to weights that are bit-identical on a
    CPU to an uninterrupted run's. Returns at once if the run has finished or diverged. A run that failed is
    tried again. Afterwards `folder/final` holds the model in Hugging Face's layout.

    Args:
        recipe: the run.
        folder: made if missing; nothing is written anywhere else.
        on_progress: called about twice a second, or once a step where steps are longer.
        watch: called after each evaluation, outside of training time; the record's `watched` keeps what it
            returns. It may not draw random numbers or change the model.

    Returns:
        The record; its status is `finished` or `diverged`.

    Raises:
        UsageError, DataError, UnsupportedModelError: the recipe cannot be run; the folder is untouched, or
            its record says `failed`.
        OutputError: the folder holds another run, or cannot be written.
        Exception: whatever else went wrong; the record says `failed` and why.
    """
    began = time.perf_counter()
    _refuse_other_run(recipe, folder)
    status = read_status(folder)
    if status is not None and status[0] in ("finished", "diverged"):
        checkpoint.delete_checkpoints(folder)
        return read_record(folder)
    check_hardware(recipe)
    data = TextData.open(recipe.data)
    check_enough(data, recipe)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE_FILE, recipe.model_dump_json(indent=2).encode() + b"\n")
        (folder / STATUS_FILE).unlink(missing_ok=True)
    recorder = _Recorder(recipe, folder, began, on_progress, watch)
    try:
        with limit_threads(run_threads(recipe)):
            recorder.train(data)
        recorder.end("finished", None)
    except _DivergedError as diverged:
        recorder.end("diverged", str(diverged))
    except Exception as error:
        with contextlib.suppress(Exception):  # a full disk may refuse this too; the first error matters
            recorder.end("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        recorder.close()
    checkpoint.delete_checkpoints(folder)
    return read_record(folder)


class _Recorder(TrainerCallback):
    """Steers one run: what is measured when, and everything that is written down."""

    trainer: RunTrainer  # both from `train` on
    writer: RecordWriter

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        began: float,
        on_progress: Callable[[Progress], None] | None,
        watch: Watch | None,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.device = run_device(recipe)
        self.memory = PeakMemory(self.device)
        self._recording = False
        self._on_progress = on_progress
        self._watch = watch
        self._reported = -math.inf
        self._began = began
        self._wall_before = 0.0
        self._step = 0
        self._last_loss: float | None = None
        self._evaluations = evaluation_steps(recipe)
        self._every = recorded_every(recipe)
        self._saved = began

    def train(self, data: TextData) -> None:
        """Builds the trainer, trains from the last checkpoint or from the start, and saves the model."""
        trainer = self.trainer = RunTrainer(self.recipe, data, self.folder, self)
        trainer.extra_state = self._state
        trainer.between = self._report
        start = checkpoint.latest_checkpoint(self.folder, self._record_reaches)
        kept = 0
        if start is not None:
            state = checkpoint.read_json(start / checkpoint.RUN)
            kept, self._wall_before = state["record_bytes"], state["wall_seconds"]
            self.memory = PeakMemory(self.device, state["peak_memory_bytes"])
            trainer.clock = Clock(self.device, state["seconds"], [tuple(block) for block in state["blocks"]])
            self._step = trained_steps(start)
        self.writer = RecordWriter(self.folder, kept)
        self._recording = True
        self.writer.write("start", self._start_line())
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        self._save_final()

    def end(self, status: Status, error: str | None) -> None:
        """Closes the record."""
        if self._recording:
            self.writer.write("end", {"status": status, "error": error, **self._totals()})
            self.writer.sync()
        write_status(self.folder, status, error)

    def close(self) -> None:
        """Closes the record's file."""
        if self._recording:
            self.writer.close()

    # What the Trainer calls

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.device.type == "cuda":
            self.trainer.warm_up()
        if state.global_step == 0:
            self._write_taps()
        self._saved = time.perf_counter()
        self.trainer.clock.start(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = self._step = state.global_step
        clock = self.trainer.clock
        point = step % self._every == 0 or step == self.recipe.steps
        control.should_evaluate = step in self._evaluations
        control.should_save = self._save_due(step)
        if self.device.type == "cpu" or point or control.should_evaluate or control.should_save:
            clock.mark(step)
        if point:
            with clock.paused():
                self._write_point(step)
                self.memory.sample(self.trainer.idle_bytes)
        self._report()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        measured = metrics or {}
        if not all(math.isfinite(value) for value in measured.values()):
            raise _DivergedError(
                f"The validation loss was {measured['nats_per_token']} at step {self._step}."
            )
        self.writer.point(
            EvaluationPoint(
                step=self._step, tokens=self._tokens, seconds=self.trainer.clock.seconds, **measured
            )
        )
        self._write_taps()
        if self._watch is not None:
            values = self._watch(self.trainer.model_wrapped, self.trainer.evaluation_windows)
            self.writer.point(WatchedPoint(step=self._step, tokens=self._tokens, values=dict(values)))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved = time.perf_counter()

    # Decisions and lines

    @property
    def _tokens(self) -> int:
        return self._step * self.recipe.step_tokens

    def _save_due(self, step: int) -> bool:
        if step == self.recipe.steps or time.perf_counter() - self._saved < self.recipe.checkpoint_seconds:
            return False
        return math.isfinite(float(self.trainer.loss_sum))  # else the next point ends the run

    def _write_point(self, step: int) -> None:
        steps = (step - 1) % self._every + 1  # since the last point
        loss = self.trainer.take_loss() / steps
        if not math.isfinite(loss):
            raise _DivergedError(f"The training loss was {loss} at step {step}.")
        self._last_loss = loss
        self.writer.point(
            StepPoint(step=step, tokens=self._tokens, loss=loss, seconds=self.trainer.clock.seconds)
        )

    def _write_taps(self) -> None:
        if self.recipe.shift is not None:
            keys, values = (effective_taps(self.trainer.model, name) for name in ("k_weight", "v_weight"))
            self.writer.point(TapsPoint(step=self._step, tokens=self._tokens, keys=keys, values=values))

    def _report(self) -> None:
        now = time.perf_counter()
        if self._on_progress is None or now - self._reported < _PROGRESS_SECONDS:
            return
        self._reported = now
        since = self._step % self._every
        loss = float(self.trainer.loss_sum) / since if since else self._last_loss
        self._on_progress(
            Progress(self._step, self.recipe.steps, self._tokens, loss, self.trainer.clock.seconds)
        )

    def _start_line(self) -> dict[str, Any]:
        model = self.trainer.model
        cuda = self.device.type == "cuda"
        threads = torch.get_num_threads()
        return {
            "step": self._step,
            "device": torch.cuda.get_device_name(self.device)
            if cuda
            else f"CPU, {threads} {'thread' if threads == 1 else 'threads'}",
            "versions": _versions(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tap_parameters": sum(parameter.numel() for parameter in tap_parameters(model)),
            "extra": {
                "precision": run_precision(self.recipe),
                "threads": threads,
                "cuda_graphs": self.trainer.graphed is not None,
            },
        }

    def _totals(self) -> dict[str, Any]:
        step_seconds = self.trainer.clock.step_seconds()
        return {
            "train_seconds": self.trainer.clock.seconds,
            "wall_seconds": self._wall_seconds(),
            "tokens_per_second": self.recipe.step_tokens / step_seconds if step_seconds else 0.0,
            "peak_memory_bytes": self.memory.sample(self.trainer.idle_bytes),
        }

    def _wall_seconds(self) -> float:
        return self._wall_before + time.perf_counter() - self._began

    def _state(self) -> dict[str, Any]:
        """What a checkpoint must know to go on with the record."""
        return {
            "record_bytes": self.writer.sync(),
            "seconds": self.trainer.clock.seconds,
            "blocks": list(self.trainer.clock.blocks),
            "wall_seconds": self._wall_seconds(),
            "peak_memory_bytes": self.memory.sample(self.trainer.idle_bytes),
        }

    def _record_reaches(self, path: Path) -> bool:
        """Whether the record is at least as long as it was when the checkpoint was written."""
        try:
            written = (self.folder / RECORD_FILE).stat().st_size
            return bool(checkpoint.read_json(path / checkpoint.RUN)["record_bytes"] <= written)
        except (OSError, ValueError, KeyError):
            return False

    def _save_final(self) -> None:
        final = self.folder / FINAL
        temporary = self.folder / f".{FINAL}.tmp"
        with output_errors(final):
            for leftover in (temporary, final):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                model = self.trainer.model
                model.config.use_cache = True  # the Trainer switched it off for training
                with no_progress_bars():
                    model.save_pretrained(temporary)
                for path in temporary.iterdir():
                    sync_file(path)
                os.rename(temporary, final)
                sync_folder(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def _refuse_other_run(recipe: Recipe, folder: Path) -> None:
    there = read_recipe(folder)
    if there is None:
        return
    mine, theirs = recipe.model_dump(mode="json"), there.model_dump(mode="json")
    different = [name for name in mine if name not in _SAME_RUN and mine[name] != theirs[name]]
    if recipe.data.name != there.data.name:  # a prepared text is named by its content and may have moved
        different.append("data")
    if different:
        name = different[0]
        raise OutputError(
            f"{folder} holds another run: its {name} is {theirs[name]!r}, this recipe's {mine[name]!r}. "
            "Choose another folder, or delete this one."
        )


def _versions() -> dict[str, str]:
    try:
        ours = importlib.metadata.version("kvshift")
    except importlib.metadata.PackageNotFoundError:  # run from its source without being installed
        ours = "source"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kvshift": ours,
    }


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars over the caller's own display."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


@contextlib.contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
