"""How fast this machine trains a recipe, measured on the real data in a few seconds."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kvshift.errors import UsageError
from kvshift.tasks.text import TextData
from kvshift.training.data import check_enough
from kvshift.training.evaluation import evaluate
from kvshift.training.meters import PeakMemory
from kvshift.training.recipe import Recipe
from kvshift.training.run import limit_threads
from kvshift.training.trainer import RunTrainer, check_hardware, run_device, run_threads

_LEAST_STEPS = 3  # after the first, which is slower than the rest
_BLOCK_SECONDS = 0.1  # a GPU is waited for no more often than this


class Speed(NamedTuple):
    """What a run of the recipe takes here."""

    tokens_per_second: float  # from the median step
    step_seconds: float
    evaluation_seconds: float  # one evaluation on all its windows
    startup_seconds: float  # from nothing to the first step, compilation included
    peak_memory_bytes: int


def measure_speed(recipe: Recipe, *, seconds: float = 2.0) -> Speed:
    """Trains the recipe for about `seconds` (at least four steps) and throws the model away.

    Writes nothing. The recipe's length does not matter.

    Raises:
        UsageError, DataError, UnsupportedModelError: the recipe cannot be run here.
    """
    if not seconds > 0:
        raise UsageError(f"seconds is {seconds}; expected more than 0.")
    began = time.perf_counter()
    check_hardware(recipe)
    data = TextData.open(recipe.data)
    check_enough(data, recipe)
    long_enough = recipe.model_copy(update={"tokens": max(recipe.tokens, 100_000 * recipe.step_tokens)})
    stopwatch = _Stopwatch(recipe, seconds)
    with limit_threads(run_threads(recipe)), tempfile.TemporaryDirectory(prefix="kvshift-speed-") as nowhere:
        trainer = stopwatch.trainer = RunTrainer(long_enough, data, Path(nowhere), stopwatch)
        trainer.train()
        step_seconds = trainer.clock.step_seconds() or math.inf
        evaluation_seconds = _evaluation_seconds(trainer)
    return Speed(
        tokens_per_second=recipe.step_tokens / step_seconds,
        step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds,
        startup_seconds=stopwatch.ready - began,
        peak_memory_bytes=stopwatch.memory.sample(trainer.idle_bytes),
    )


class _Stopwatch(TrainerCallback):
    trainer: RunTrainer  # set before it trains

    def __init__(self, recipe: Recipe, seconds: float) -> None:
        self.seconds = seconds
        self.device = run_device(recipe)
        self.memory = PeakMemory(self.device)
        self.ready = 0.0
        self._read = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.device.type == "cuda":
            self.trainer.warm_up()
        self.trainer.clock.start(0)
        self.ready = self._read = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        clock = self.trainer.clock
        if self.device.type == "cpu" or time.perf_counter() - self._read > _BLOCK_SECONDS:
            clock.mark(state.global_step)
            self._read = time.perf_counter()
        if state.global_step == 1:
            clock.blocks.clear()
        control.should_training_stop = (
            clock.seconds >= self.seconds and sum(steps for _, steps in clock.blocks) >= _LEAST_STEPS
        )


def _evaluation_seconds(trainer: RunTrainer) -> float:
    """One batch is enough: every batch has one shape. The first pays for compilation."""
    windows = trainer.evaluation_windows
    batches = len(windows.batches)
    del windows.batches[1:]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        evaluate(
            trainer.model_wrapped, windows, loss=trainer.token_loss
        )  # reads the result, so a GPU has finished
        times.append(time.perf_counter() - start)
    return min(times) * batches
