"""Training steps: every arm on the same weights, in turns, eager and compiled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kvshift.bench.arms import ARMS, BASELINE, Arm
from kvshift.bench.attempts import Failure, attempt, release_memory
from kvshift.bench.configurations import Configuration, build
from kvshift.bench.schema import Spread, StepRow
from kvshift.bench.timing import stopwatch, take_turns
from kvshift.bench.watch import LEFT_OUT, Watch

Mode = Literal["eager", "compiled"]
MODES: tuple[Mode, ...] = ("eager", "compiled")


@dataclasses.dataclass(frozen=True)
class Effort:
    """How many steps are measured."""

    rounds: int
    steps: int
    """One after the other in an arm's turn: the host may run ahead, as it does in training."""
    most_seconds: float
    """For all arms of a configuration and mode, without compiling."""


class Trainer:
    """The vanilla model, whose weights all arms share, with one optimizer for these and the arms' taps.

    So several arms fit on one GPU, and can take turns step by step.
    """

    def __init__(
        self, configuration: Configuration, layers: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.configuration, self.layers, self.device = configuration, layers, device
        self.vanilla = build(configuration, layers, device, dtype)
        self.vanilla.train()
        # So small a rate that random labels do not spoil the weights. What the optimizer costs is the same.
        self.optimizer = torch.optim.AdamW(
            self.vanilla.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        shape = (configuration.batch, configuration.length)
        self.tokens = torch.randint(configuration.vocabulary, shape, device=device)
        self._known = {id(parameter) for parameter in self.vanilla.parameters()}

    def ready(self, arm: Arm, mode: Mode) -> tuple[Callable[[], Tensor], int]:
        """A training step of an arm, and the number of its parameters."""
        model = arm.make(self.vanilla)
        model.train()
        taps = [parameter for parameter in model.parameters() if id(parameter) not in self._known]
        if taps:
            self.optimizer.add_param_group({"params": taps, "weight_decay": 0.0})
        parameters = sum(parameter.numel() for parameter in model.parameters())
        call: Any = torch.compile(model, fullgraph=True, dynamic=False) if mode == "compiled" else model

        def step() -> Tensor:
            with arm.inside(self.tokens.device):
                loss: Tensor = call(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
                loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step, parameters

    def forget_taps(self) -> None:
        """Leaves the weights alone with the optimizer, before arms are made anew."""
        for group in self.optimizer.param_groups[1:]:
            for parameter in group["params"]:
                self.optimizer.state.pop(parameter, None)
        del self.optimizer.param_groups[1:]


def fitting_layers(
    configuration: Configuration, most: int, device: torch.device, dtype: torch.dtype, watch: Watch
) -> tuple[int, Failure | None]:
    """As many layers, of all or three quarters of them and so on, as the plain formula's eager step fits.

    It keeps more than any other arm. 0 layers, with the reason, if it cannot run at all.
    """
    heaviest = next(arm for arm in ARMS if arm.name == "formula")

    def try_out(layers: int) -> bool:
        trainer = Trainer(configuration, layers, device, dtype)
        step, _ = trainer.ready(heaviest, "eager")
        for _ in range(2):  # the optimizer's state comes with the first
            step()
        _wait(device)
        return True

    failure: Failure | None = None
    for layers in sorted({max(1, most * quarters // 4) for quarters in (1, 2, 3, 4)}, reverse=True):
        watch.now(f"{configuration.name}: do {layers} layers fit?")
        outcome = attempt(partial(try_out, layers))
        release_memory()
        if outcome.failure is None:
            return layers, None
        failure = outcome.failure
        if "OutOfMemoryError" not in failure.reason:
            break
    return 0, failure


def measure_steps(
    configuration: Configuration,
    device: torch.device,
    dtype: torch.dtype,
    effort: Effort,
    watch: Watch,
    *,
    layers: int | None = None,
    modes: Sequence[Mode] = MODES,
    arms: Sequence[Arm] = ARMS,
) -> Iterator[StepRow]:
    """Every arm in every mode, a mode's when it is done; an arm that fails has a row that says why.

    Args:
        layers: build at most so many; None: all of the configuration's, or as many as fit.
    """
    arms = [arm for arm in arms if arm.trained]
    most = min(layers or configuration.layers, configuration.built_layers or configuration.layers)
    fitting, failure = fitting_layers(configuration, most, device, dtype, watch)
    if failure is not None:
        watch.failed(f"{configuration.name}", failure)
        watch.done(len(arms) * len(modes))
        for mode in modes:
            yield from (_row(configuration, most, mode, arm.name, failure) for arm in arms)
        return
    trainer = Trainer(configuration, fitting, device, dtype)
    for mode in modes:
        torch.compiler.reset()  # what other models and modes compiled counts against these
        trainer.forget_taps()
        yield from _measure_mode(trainer, mode, arms, effort, watch)
        release_memory()


def _measure_mode(
    trainer: Trainer, mode: Mode, arms: Sequence[Arm], effort: Effort, watch: Watch
) -> list[StepRow]:
    configuration, device = trainer.configuration, trainer.device
    steps: dict[str, Callable[[], object]] = {}
    found: dict[str, dict[str, Any]] = {arm.name: {} for arm in arms}
    failures: dict[str, Failure] = {}
    for arm in arms:
        what = f"{configuration.name} {mode}, {arm.name}"
        watch.now(what)
        if watch.over and arm.name != BASELINE:
            failures[arm.name] = LEFT_OUT
        else:
            outcome = attempt(partial(_first_steps, trainer, arm, mode))
            if outcome.value is None:
                failures[arm.name] = outcome.failure or LEFT_OUT
                watch.failed(what, failures[arm.name])
                trainer.optimizer.zero_grad(set_to_none=True)
            else:
                steps[arm.name], found[arm.name] = outcome.value
        watch.done()
    time_once = stopwatch(device)

    def sample(step: Callable[[], object]) -> Callable[[], float]:
        def run() -> None:
            for _ in range(effort.steps):
                step()

        return lambda: time_once(run) / effort.steps

    watch.now(f"{configuration.name} {mode}, in turns")
    taken = attempt(
        lambda: take_turns(
            {name: sample(step) for name, step in steps.items()},
            rounds=effort.rounds,
            seconds=effort.most_seconds,
        )
    )
    if taken.failure is not None:
        watch.failed(f"{configuration.name} {mode}, in turns", taken.failure)
        failures |= dict.fromkeys(steps, taken.failure)
    rows = []
    for arm in arms:
        failure = failures.get(arm.name)
        row = _row(configuration, trainer.layers, mode, arm.name, failure)
        if failure is None and taken.value is not None:
            seconds = taken.value[arm.name]
            tokens = configuration.batch * configuration.length
            row = row.model_copy(
                update={"seconds": seconds, "tokens_per_second": tokens / seconds.median, **found[arm.name]}
            )
        rows.append(row)
    return _compared(rows)


def _first_steps(
    trainer: Trainer, arm: Arm, mode: Mode
) -> tuple[Callable[[], object], dict[str, int | float | None]]:
    """A step that is compiled and has its optimizer's state, with what it takes beside time."""
    began = time.monotonic()
    step, parameters = trainer.ready(arm, mode)
    loss = step()
    if not bool(torch.isfinite(loss)):
        raise RuntimeError(f"The first step's loss is {float(loss)}.")
    ready = time.monotonic() - began
    step()
    peak = _peak_bytes(step, trainer.device)
    return step, {"parameters": parameters, "ready_seconds": ready, "peak_bytes": peak}


def _peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """Allocated at once during a step; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _row(configuration: Configuration, layers: int, mode: Mode, arm: str, failure: Failure | None) -> StepRow:
    return StepRow(
        status="timed" if failure is None else failure.status,
        reason=configuration.note if failure is None else failure.reason,
        configuration=configuration.name,
        layers=layers,
        of_layers=configuration.layers,
        batch=configuration.batch,
        length=configuration.length,
        mode=mode,
        arm=arm,
    )


def _compared(rows: list[StepRow]) -> list[StepRow]:
    """The same rows with their ratios to vanilla's."""
    vanilla = next((row for row in rows if row.arm == BASELINE), None)
    if vanilla is None or vanilla.seconds is None:
        return rows
    compared = []
    for row in rows:
        if row.seconds is not None and row.arm != BASELINE:
            memory = None
            if row.peak_bytes is not None and vanilla.peak_bytes:
                memory = row.peak_bytes / vanilla.peak_bytes
            over = Spread.of_ratios(row.seconds, vanilla.seconds)
            row = row.model_copy(update={"over_vanilla": over, "memory_over_vanilla": memory})
        compared.append(row)
    return compared
