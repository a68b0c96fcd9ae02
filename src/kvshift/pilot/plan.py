"""From a request to a plan: which models are trained on how much text, in which order, and how long it takes.

The machine's speed is measured first; `fit.py` holds the written rule that then picks sizes and length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kvshift.errors import UsageError
from kvshift.pilot import fit
from kvshift.pilot.advice import check_text, too_small, warnings_of
from kvshift.pilot.arms import arms_of
from kvshift.pilot.ladder import LADDER, read_config, rung, user_ladder
from kvshift.pilot.settings import Arm, PilotSettings, Plan, PlannedRun, Size
from kvshift.training.recipe import Recipe

if TYPE_CHECKING:
    from kvshift.tasks.text import TextData

SEQUENCE_LENGTH = {"cpu": 256, "cuda": 1024}
BATCHES = {"cpu": (16, 8, 4, 2), "cuda": (64, 32, 16)}
"""Windows of that length in a batch; the largest that leaves `ENOUGH_STEPS` is taken."""
ENOUGH_STEPS = {"cpu": 900, "cuda": 500}
"""Short runs gain more from steps than from large batches (docs/results/defaults.md)."""
MORE_STEPS = 1.25
"""What a smaller batch must bring. A GPU that waits for its host steps no faster with half the tokens
(docs/results/pilot.md)."""
_CALIBRATION_SHARE = 0.03  # of the budget
_CALIBRATION_SECONDS = (4.0, 15.0)  # least and most
_CHECKPOINT_SECONDS = {
    "cpu": 2.0,
    "cuda": 30.0,
}  # between two, at least: a GPU's models take a second to write
_BYTES_A_PARAMETER = 16  # float32: the weight, its gradient and AdamW's two averages
_MICRO_BATCH_BYTES = 16e9  # logits, their gradient and the activations together
_MICRO_BATCH_SHARE = 0.35  # of the GPU's memory, if that is less


@dataclass(frozen=True)
class DeviceInfo:
    """The machine that runs go to."""

    kind: Literal["cpu", "cuda"]
    name: str  # for people
    count: int = 1
    memory_bytes: int | None = None  # of one GPU, or what is free of the machine's; None: not known


Measure = Callable[[Recipe, float], fit.MeasuredSpeed]
Derive = Callable[[Path, int, int], Sequence[Size]]


def make_plan(
    settings: PilotSettings,
    data: TextData,
    *,
    measure: Measure,
    device_info: DeviceInfo,
    spent_seconds: float = 0.0,
    derive: Derive = user_ladder,
) -> Plan:
    """The pilot that fits the budget on this machine.

    `measure` trains a recipe for some seconds and tells its speed; `spent_seconds` of the budget are gone.

    Raises:
        UsageError: settings contradict each other.
        DataError: the text is too small; says how much is needed.
        BudgetError: the budget is too small; says the least that works.
        RunsFailedError: no size of the least pilot can be trained on this machine.
        UnsupportedModelError: `settings.model` cannot be converted.
    """
    arms = check_settings(settings)
    device = _device(settings, device_info)
    length = settings.sequence_length or SEQUENCE_LENGTH[device.kind]
    check_text(settings, data, length, _batches(device, length)[-1])
    groups = _groups(settings, data, length, derive)
    batch = settings.batch_size or _first_batch(settings, data, device, length)
    shape = _Shape(settings, data, device, length, batch)
    limits = fit.Limits(
        seconds=0.0,
        devices=device.count,
        seeds=settings.seeds,
        tokens=settings.tokens,
        train_tokens=len(data.train),
        validation_tokens=len(data.validation),
        top_is_given=settings.sizes is not None or settings.model is not None,
    )
    clock = _Spent(spent_seconds, settings.budget_seconds)

    machine = _machine(shape, measure, settings.budget_seconds)
    choice = fit.choose_measured(machine, groups, arms, clock.limits(limits, machine))
    if settings.batch_size is None:
        better = batch_for(0 if choice is None else choice.length.tokens, device, length)
        if better != shape.batch:
            other = dataclasses.replace(shape, batch=better)
            clock = dataclasses.replace(clock, measuring=clock.measuring + machine.seconds_used)
            with_other = _machine(other, measure, settings.budget_seconds)
            again = fit.choose_measured(with_other, groups, arms, clock.limits(limits, with_other))
            if choice is None or (again is not None and _brings_steps(shape, choice, other, again)):
                shape, machine, choice = other, with_other, again
    if choice is None:
        raise too_small(settings, machine, groups, arms, clock.limits(limits, machine))
    worth = device.kind == "cuda" and _worth_compiling(machine, choice, arms)
    if settings.compile or (settings.compile is None and worth):
        clock = dataclasses.replace(clock, measuring=clock.measuring + machine.seconds_used)
        shape, machine = _compiled(shape, machine, choice, arms, measure)
        choice = fit.choose_measured(machine, groups, arms, clock.limits(limits, machine))
        if choice is None:
            raise too_small(settings, machine, groups, arms, clock.limits(limits, machine))
    return _plan(shape, machine, choice, arms)


def check_settings(settings: PilotSettings) -> tuple[Arm, Arm]:
    """Refuses what no text and no machine could make possible, before any time goes into either.

    Returns:
        The two arms.

    Raises:
        UsageError: an unknown or impossible arm, size or model, or settings that contradict each other.
    """
    arms = arms_of(settings)
    if settings.sizes is not None and settings.model is not None:
        raise UsageError(
            "--sizes and --model contradict each other: the model is the ladder's top. Drop one."
        )
    if settings.sizes is not None:
        names = {rung(name, vocab_size=1, sequence_length=1).name for name in settings.sizes}
        if len(names) < len(settings.sizes):
            raise UsageError(f"--sizes {','.join(settings.sizes)} names a size twice.")
    if settings.model is not None:
        read_config(settings.model)
    return arms


def learning_rate(hidden: int) -> float:
    """Peak learning rate by width: 3e-3 up to 128, then falling, 1e-3 at 512."""
    return 3e-3 * min(1.0, (128 / hidden) ** 0.75)


def batch_for(tokens: int, device: DeviceInfo, sequence_length: int) -> int:
    """Windows in a batch: the largest of the device's that leaves enough steps."""
    batches, enough = _batches(device, sequence_length), ENOUGH_STEPS[device.kind]
    return next((b for b in batches if tokens / (b * sequence_length) >= enough), batches[-1])


def _brings_steps(shape: _Shape, choice: fit.Choice, other: _Shape, again: fit.Choice) -> bool:
    """Whether another batch is worth its change: a larger one always, a smaller one for more steps."""
    if other.batch > shape.batch:
        return True
    steps, steps_again = choice.length.tokens / shape.step_tokens, again.length.tokens / other.step_tokens
    return steps_again >= MORE_STEPS * steps


def _batches(device: DeviceInfo, sequence_length: int) -> list[int]:
    """`BATCHES` at another length: as many tokens, in windows."""
    usual = SEQUENCE_LENGTH[device.kind]
    return [max(1, round(batch * usual / sequence_length)) for batch in BATCHES[device.kind]]


@dataclass(frozen=True)
class _Shape:
    """What all runs of a plan share."""

    settings: PilotSettings
    data: TextData
    device: DeviceInfo
    sequence_length: int
    batch: int
    compile: bool = False

    @property
    def step_tokens(self) -> int:
        return self.batch * self.sequence_length

    def recipe(self, size: Size, arm: Arm, seed: int, length: fit.Length, seconds: float = 60.0) -> Recipe:
        return Recipe(
            data=self.data.folder,
            model=size.model,
            shift=arm.shift,
            seed=(seed + arm.seed_offset) % 2**31,
            tokens=length.tokens,
            sequence_length=self.sequence_length,
            batch_size=self.batch,
            micro_batch_size=None if self.device.kind == "cpu" else self._micro_batch(size),
            learning_rate=self.settings.learning_rate or learning_rate(size.hidden),
            evaluations=length.evaluations,
            evaluation_tokens=length.evaluation_tokens,
            checkpoint_seconds=min(600.0, max(_CHECKPOINT_SECONDS[self.device.kind], seconds / 10)),
            device=self.device.kind,
            compile=self.compile,
        )

    def check_memory(self, size: Size) -> None:
        """Refuses what needs no trial: a machine that runs out of memory is of no use for minutes.

        Raises:
            ModelTooLargeError: the model is larger than the memory; activations are not even counted.
        """
        needed, there = _BYTES_A_PARAMETER * size.parameters, self.device.memory_bytes
        if there is not None and needed > there:
            raise fit.ModelTooLargeError(needed, there)

    def _micro_batch(self, size: Size) -> int | None:
        """Windows on the GPU at once: a divisor of the batch that keeps memory bounded."""
        logits = 2 * 4 * int(size.model["vocab_size"])  # float32, and their gradient
        activations = 70 * size.layers * size.hidden  # a bfloat16 layer without recomputation
        room = min(_MICRO_BATCH_BYTES, _MICRO_BATCH_SHARE * (self.device.memory_bytes or math.inf))
        windows = max(1, int(room / ((logits + activations) * self.sequence_length)))
        return None if windows >= self.batch else max(d for d in range(1, windows + 1) if self.batch % d == 0)


@dataclass(frozen=True)
class _Spent:
    """What of the budget is gone."""

    before: float
    budget: float
    measuring: float = 0.0  # on machines measured and left behind

    def limits(self, limits: fit.Limits, machine: fit.Machine) -> fit.Limits:
        used = self.before + self.measuring + max(machine.seconds_used, machine.seconds_allowed)
        return dataclasses.replace(limits, seconds=self.budget * (1 - fit.RESERVE[machine.kind]) - used)


def _device(settings: PilotSettings, found: DeviceInfo) -> DeviceInfo:
    if settings.device == "cuda" and found.kind != "cuda":
        raise UsageError("--device cuda: PyTorch finds no usable GPU on this machine. Use --device cpu.")
    return found


def _first_batch(settings: PilotSettings, data: TextData, device: DeviceInfo, length: int) -> int:
    """The batch to measure with before the length of a run is known."""
    if device.kind == "cpu" and settings.tokens is None:
        return _batches(device, length)[-1]
    most = settings.tokens or fit.MOST_EPOCHS * len(data.train)
    return min(batch_for(int(most), device, length), _batches(device, length)[1])


def _groups(settings: PilotSettings, data: TextData, length: int, derive: Derive) -> list[list[Size]]:
    """Ladders to choose from, largest first; the last is the least pilot."""
    if settings.model is not None:
        sizes = list(derive(settings.model, data.vocab_size, length))
        return [sizes, sizes[-2:]] if len(sizes) > 2 else [sizes]
    if settings.sizes is not None:
        sizes = [rung(name, data.vocab_size, length) for name in settings.sizes]
        return [sorted(sizes, key=lambda size: size.parameters)]
    ladder = [rung(name, data.vocab_size, length) for name in LADDER]
    threes = [ladder[i : i + 3] for i in range(len(ladder) - 2)]
    return [*reversed(threes), ladder[:2]]


def _machine(shape: _Shape, measure: Measure, budget: float) -> fit.Machine:
    """What is to be measured of this machine, and for how long."""
    least, most = _CALIBRATION_SECONDS
    allowed = min(most, max(least, _CALIBRATION_SHARE * budget))
    evaluated = min(len(shape.data.validation), 8 * shape.sequence_length)

    def measure_size(size: Size, arm: Arm, seconds: float) -> tuple[fit.MeasuredSpeed, int]:
        shape.check_memory(size)
        length = fit.Length(tokens=1000 * shape.step_tokens, evaluations=1, evaluation_tokens=evaluated)
        return measure(shape.recipe(size, arm, 0, length), seconds), evaluated

    return fit.Machine(
        kind=shape.device.kind,
        sequence_length=shape.sequence_length,
        step_tokens=shape.step_tokens,
        measure=measure_size,
        seconds_each=allowed / 10,
        seconds_allowed=allowed,
    )


def _worth_compiling(machine: fit.Machine, choice: fit.Choice, arms: Sequence[Arm]) -> bool:
    """Whether compiled runs save more time than compiling takes; judged by the whole pilot."""
    paces = [machine.pace(size, arm) for size in choice.sizes for arm in arms]
    one_seed = sum(fit.run_seconds(pace, choice.length) - pace.startup for pace in paces)
    compiling = fit.COMPILE_SECONDS + fit.COMPILE_AGAIN_SECONDS * len(choice.seeds)
    return one_seed * len(choice.seeds) * fit.COMPILE_GAIN > len(paces) * compiling


def _compiled(
    shape: _Shape, machine: fit.Machine, choice: fit.Choice, arms: Sequence[Arm], measure: Measure
) -> tuple[_Shape, fit.Machine]:
    """The same with compiled models, which are measured again: what compiling gains differs between arms.

    The batch is settled first, since another one is another compilation.
    """
    tokens = int(choice.length.tokens / (1 - fit.COMPILE_GAIN))
    if shape.settings.batch_size is None:
        batch = max(shape.batch, batch_for(tokens, shape.device, shape.sequence_length))
        shape = dataclasses.replace(shape, batch=batch)
    shape = dataclasses.replace(shape, compile=True)
    measured = _machine(shape, measure, shape.settings.budget_seconds)
    models = len(choice.sizes) * len(arms)
    seconds = models * (fit.COMPILE_SECONDS + measured.seconds_each)
    return shape, dataclasses.replace(measured, seconds_allowed=seconds, uncompiled=machine)


def _plan(shape: _Shape, machine: fit.Machine, choice: fit.Choice, arms: tuple[Arm, Arm]) -> Plan:
    settings = shape.settings
    runs: list[PlannedRun] = []
    for seed in choice.seeds:  # one seed after the other: an interrupted pilot has whole pairs of every size
        for size in choice.sizes:
            runs += [_run(shape, machine, choice.length, size, arm, seed) for arm in arms]
        runs.append(
            _run(
                shape, machine, _shortened(choice.length, shape), choice.sizes[-1], arms[1], seed, check=True
            )
        )
    expected = fit.total_seconds([run.expected_seconds for run in runs], shape.device.count)
    sizes = tuple(
        size.model_copy(
            update={
                "tokens_per_second": {arm.name: machine.pace(size, arm).tokens_per_second for arm in arms}
            }
        )
        for size in choice.sizes
    )
    return Plan(
        settings=settings,
        data=shape.data.folder,
        device=shape.device.name,
        devices=shape.device.count,
        arms=arms,
        sizes=sizes,
        seeds=choice.seeds,
        tokens=choice.length.tokens,
        check_share=fit.CHECK_SHARE,
        runs=tuple(runs),
        expected_seconds=expected,
        warnings=tuple(warnings_of(settings, len(shape.data.train), machine, choice, expected)),
    )


def _shortened(length: fit.Length, shape: _Shape) -> fit.Length:
    steps = max(1, round(length.tokens * fit.CHECK_SHARE / shape.step_tokens))
    return dataclasses.replace(
        length, tokens=steps * shape.step_tokens, evaluations=min(length.evaluations, steps)
    )


def _run(
    shape: _Shape,
    machine: fit.Machine,
    length: fit.Length,
    size: Size,
    arm: Arm,
    seed: int,
    check: bool = False,
) -> PlannedRun:
    seconds = fit.run_seconds(machine.pace(size, arm), length)
    return PlannedRun(
        name=f"{size.name}-{arm.name}-seed{seed}" + ("-check" if check else ""),
        role="check" if check else "main",
        arm=arm.name,
        size=size.name,
        seed=seed,
        recipe=shape.recipe(size, arm, seed, length, seconds),
        expected_seconds=seconds,
    )
