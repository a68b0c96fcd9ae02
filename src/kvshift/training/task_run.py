"""A training run on a synthetic task: recipe → loop → record, with exact resuming.

The loop is written out, and not Hugging Face's Trainer, which text runs use. What both share are the model's
draw, the parameter groups, the record's file and the checkpoints. What `trainer.py` adds to the Trainer
(windows of text, their loss by micro-batches, bits a byte) has no place here, and what the Trainer adds to a
loop, ways to run large models on many devices, these small ones do not need.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kvshift.errors import OutputError, UsageError
from kvshift.files import output_errors, write_atomically
from kvshift.tasks.gsm import GradeSchoolMaths
from kvshift.tasks.task import IGNORED, Batch, Scores, merge
from kvshift.training import checkpoint
from kvshift.training.derivations import write_derivations
from kvshift.training.graphed import Cuda, GraphedStep, can_be_graphed, take_whole_rows
from kvshift.training.model import (
    compile_layers,
    draw_model,
    dropout,
    evaluating,
    parameter_groups,
    tap_parameters,
)
from kvshift.training.record import (
    RECIPE_FILE,
    RECORD_FILE,
    RecordWriter,
    Status,
    read_lines,
    read_status,
    write_status,
)
from kvshift.training.task_data import Lesson, lessons, make_lesson, worker_count
from kvshift.training.task_recipe import TaskRecipe

CHECKPOINT_SECONDS = 60.0
_NONE = -1  # what is predicted where nothing is asked
_WRITTEN_TOGETHER = 512  # derivations: each token of a batch is a pass of its own, so the fewer batches


@dataclass(frozen=True)
class ScorePoint:
    """The model after `step` steps."""

    step: int
    loss: float  # of training, averaged since the last point, in nats an asked position
    scores: dict[str, list[int]]  # by the task's name: right answers, all answers


@dataclass(frozen=True)
class TaskRecord:
    """What a run left behind."""

    status: Status
    parameters: int  # embeddings and taps included
    tap_parameters: int
    points: list[ScorePoint]
    grades: dict[str, list[int]]  # of derivations the model wrote itself; empty where none were asked for


def train_task(recipe: TaskRecipe, folder: Path, *, checkpoint_seconds: float | None = None) -> TaskRecord:
    """Trains as `recipe` says, in `folder`.

    Goes on from the last whole checkpoint if the folder holds one, on a CPU to the very record that an
    uninterrupted run leaves. Returns at once if the run has ended. Where the model has dropout the process's
    random state is the run's from then on; else it is left alone.

    Args:
        recipe: the run.
        folder: made if missing; nothing is written anywhere else.
        checkpoint_seconds: least time between checkpoints, `CHECKPOINT_SECONDS` if None; 0 writes one each
            step.

    Returns:
        The record; its status is `finished`, or `diverged` if the loss was no longer a finite number.

    Raises:
        UsageError, UnsupportedModelError: the recipe cannot be run.
        OutputError: the folder holds another run, or cannot be written.
    """
    _refuse_other_run(recipe, folder)
    status = read_status(folder)
    if status is None:
        model = TaskModel(recipe)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE_FILE, recipe.model_dump_json(indent=2).encode() + b"\n")
        every = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
        ended = _train(model, folder, every)
        write_status(folder, ended, None)
    checkpoint.delete_checkpoints(folder)
    return read_task_record(folder)


def read_task_record(folder: Path) -> TaskRecord:
    """What a run has left in `folder` so far."""
    status = read_status(folder)
    found: dict[str, Any] = {"parameters": 0, "tap_parameters": 0, "grades": {}}
    points = []
    for line in read_lines(folder / RECORD_FILE):
        event = line.pop("event", None)
        if event == "evaluation":
            points.append(ScorePoint(**line))
        else:
            found |= {name: value for name, value in line.items() if name in found}
    return TaskRecord(status="unfinished" if status is None else status[0], points=points, **found)


class TaskModel:
    """A model, its optimizer and the fixed test batches of its task."""

    def __init__(self, recipe: TaskRecipe) -> None:
        self.recipe, self.task = recipe, recipe.made_task
        if recipe.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device is 'cuda', but PyTorch sees no CUDA GPU here; take 'cpu'.")
        self.device = torch.device(recipe.device)
        self.model: Any = draw_model(recipe, self.task.vocab_size).to(self.device)
        if recipe.logits == "final_norm" and self.model.config.hidden_size < self.task.vocab_size:
            raise UsageError(
                f"logits is 'final_norm' and the hidden size {self.model.config.hidden_size}; expected at "
                f"least the task's vocabulary of {self.task.vocab_size}."
            )
        groups = parameter_groups(self.model, recipe)
        self._peaks = [group["lr"] for group in groups]
        graphed = recipe.compile and self.device.type == "cuda" and not self.task.packs
        graphed = graphed and can_be_graphed(self.model)
        if graphed:
            for group in groups:
                group["lr"] = torch.tensor(group["lr"], device=self.device)
        self.optimizer = torch.optim.AdamW(groups, betas=recipe.betas, fused=True, capturable=graphed)
        self._step: Callable[[Lesson], None] = self._learn_from
        if graphed:
            take_whole_rows(self.model)
            self._step = GraphedStep(self._learn_from, Cuda())
        if recipe.compile:
            compile_layers(self.model)
        self._tests: list[tuple[Batch, Lesson]] = []
        for number in range(recipe.evaluation_batches):
            batch = self.task.test(number, recipe.evaluation_rows)
            self._tests.append((batch, make_lesson(batch).to(self.device)))
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.drops = dropout(self.model.config) is not None

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU, nothing on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def logits(self, lesson: Lesson) -> Tensor:
        """float32 `(n, classes)` at the asked positions."""
        with self.autocast():
            hidden = self.model.base_model(
                input_ids=lesson.inputs, position_ids=lesson.positions, use_cache=False
            ).last_hidden_state
            asked = hidden.flatten(0, 1).index_select(0, lesson.asked)  # whose backward need not sort
            if self.recipe.logits == "head":
                asked = self.model.get_output_embeddings()(asked)
        return asked.float()

    def learn(self, lesson: Lesson, done: int) -> None:
        """The step that follows `done` finished ones."""
        factor = self.recipe.learning_rate_factor(done)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor
        self._step(lesson)

    def _learn_from(self, lesson: Lesson) -> None:
        """Forward, backward and update; nothing here waits for the device."""
        total = F.cross_entropy(self.logits(lesson), lesson.answers, ignore_index=IGNORED, reduction="sum")
        loss = total / (lesson.answers != IGNORED).sum().clamp_min(1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_sum += loss.detach()

    def take_loss(self) -> float:
        """The steps' losses added up since the last call."""
        total = float(self.loss_sum)
        self.loss_sum.zero_()
        return total

    @torch.no_grad()
    def evaluate(self) -> Scores:
        """The task's scores on its test batches."""
        found = []
        with evaluating(self.model):
            for batch, lesson in self._tests:
                predictions = torch.full_like(batch.targets, _NONE)
                predictions.view(-1)[lesson.asked.cpu()] = self.logits(lesson).argmax(-1).cpu()
                found.append(self.task.score(predictions, batch))
        return merge(found)

    def grade(self) -> Scores:
        """The scores of derivations that the model writes by itself.

        Of test problems; and, with `trained_` before a score's name, of as many that take as many operations
        as the longest it has learned from (the same ones, where tests are no longer than those).
        """
        assert isinstance(self.task, GradeSchoolMaths)  # `made_task` refuses grades of others
        as_long = dataclasses.replace(self.task, test_operations=self.task.train_operations)
        trained = {f"trained_{name}": count for name, count in self._graded(as_long).items()}
        return {**self._graded(self.task), **trained}

    def _graded(self, task: GradeSchoolMaths) -> Scores:
        problems = task.problems(0, self.recipe.graded_problems)
        with self.autocast():
            written = write_derivations(self.model, problems, _WRITTEN_TOGETHER)
        return task.grade(problems, written)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Fills a checkpoint."""
        checkpoint.save_weights(self.model, folder / checkpoint.WEIGHTS)
        checkpoint.save_optimizer(self.model, self.optimizer, folder / checkpoint.OPTIMIZER)
        if self.drops:
            checkpoint.save_rng(folder)
        checkpoint.write_json(folder / checkpoint.RUN, {"loss_sum": float(self.loss_sum), **state})

    def load(self, folder: Path) -> dict[str, Any]:
        """The inverse of `save`; returns its `state`."""
        checkpoint.load_weights(self.model, folder / checkpoint.WEIGHTS)
        checkpoint.load_optimizer(self.model, self.optimizer, folder / checkpoint.OPTIMIZER)
        if self.drops:
            checkpoint.load_rng(folder)
        if isinstance(self._step, GraphedStep):  # a recording would go on with the optimizer's old tensors
            self._step = self._step.anew()
        state = checkpoint.read_json(folder / checkpoint.RUN)
        self.loss_sum.fill_(state["loss_sum"])
        return state


def _train(model: TaskModel, folder: Path, checkpoint_seconds: float) -> Status:
    """From the last checkpoint, or from the start, to the end."""
    recipe = model.recipe
    start = checkpoint.latest_checkpoint(folder, lambda path: _record_reaches(folder, path))
    state = {"step": 0, "record_bytes": 0} if start is None else model.load(start)
    if start is None and model.drops:
        torch.manual_seed(recipe.seed)
    writer = RecordWriter(folder, state["record_bytes"])
    try:
        if start is None:
            writer.write("start", _sizes(model))
        saved, since = time.monotonic(), state["step"] - state["step"] % recipe.evaluate_every
        upcoming = lessons(
            model.task,
            recipe.batch_size,
            begin=state["step"],
            end=recipe.steps,
            device=model.device,
            workers=worker_count(model.device),
        )
        for step, lesson in enumerate(upcoming, start=state["step"] + 1):
            model.learn(lesson, step - 1)
            if step % recipe.evaluate_every == 0 or step == recipe.steps:
                loss = model.take_loss() / (step - since)
                since = step
                if not math.isfinite(loss):
                    return "diverged"
                point = ScorePoint(step, loss, _plain(model.evaluate()))
                writer.write("evaluation", dataclasses.asdict(point))
            if time.monotonic() - saved >= checkpoint_seconds:
                reached = {"step": step, "record_bytes": writer.sync()}
                checkpoint.write_checkpoint(folder, step, partial(model.save, state=reached))
                saved = time.monotonic()
        if recipe.graded_problems:
            writer.write("grades", {"grades": _plain(model.grade())})
        writer.sync()
    finally:
        writer.close()
    return "finished"


def _sizes(model: TaskModel) -> dict[str, int]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "tap_parameters": sum(parameter.numel() for parameter in tap_parameters(model.model)),
    }


def _plain(scores: Scores) -> dict[str, list[int]]:
    return {name: [count.correct, count.total] for name, count in scores.items()}


def _record_reaches(folder: Path, path: Path) -> bool:
    """Whether the record is at least as long as it was when the checkpoint was written."""
    try:
        written = (folder / RECORD_FILE).stat().st_size
        return bool(checkpoint.read_json(path / checkpoint.RUN)["record_bytes"] <= written)
    except (OSError, ValueError, KeyError):
        return False


def _refuse_other_run(recipe: TaskRecipe, folder: Path) -> None:
    path = folder / RECIPE_FILE
    try:
        there = TaskRecipe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise OutputError(
            f"{path} cannot be read as a recipe: {error}. Delete {folder} to start over."
        ) from error
    mine, theirs = recipe.settings(), there.settings()
    for name in mine:
        if mine[name] != theirs[name]:
            raise OutputError(
                f"{folder} holds another run: its {name} is {theirs[name]!r}, this recipe's {mine[name]!r}. "
                "Choose another folder, or delete this one."
            )
