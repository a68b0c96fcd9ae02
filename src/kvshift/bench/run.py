"""All sections in turn, each written to the folder when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kvshift.bench import shapes
from kvshift.bench.attempts import attempt
from kvshift.bench.bandwidth import measure_bandwidth
from kvshift.bench.contenders import DECODE, NORM_ROTARY, ROTARY, SHIFT, Operator
from kvshift.bench.decoding import measure_decoding, parts_of
from kvshift.bench.machine import describe
from kvshift.bench.operators import Machine, measure_operator
from kvshift.bench.schema import BenchResult
from kvshift.bench.settings import SECTIONS, Settings
from kvshift.bench.shapes import Shape
from kvshift.bench.steps import measure_steps
from kvshift.bench.watch import Watch
from kvshift.files import output_errors, write_atomically

RESULTS = "bench.json"
ERRORS = "errors.txt"
_WEIGHTS = {"operators": 0.35, "steps": 0.35, "decoding": 0.3}
"""How a quick bench's time is divided."""


def run_bench(
    settings: Settings,
    folder: Path,
    watch: Watch,
    *,
    command: str,
    on_start: Callable[[BenchResult], None] = lambda result: None,
    after_section: Callable[[str, BenchResult], None] = lambda name, result: None,
) -> BenchResult:
    """Measures what the settings say; `bench.json` is written after every shape, model and section.

    Args:
        folder: made if it is not there. Tracebacks of what failed go to `errors.txt` in it.
        on_start: called when the machine is known and the folder can be written.
        after_section: called with a section's name and everything so far.

    Raises:
        OutputError: the folder cannot be written, found before anything is measured.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(settings.device)
    result = BenchResult(command=command, machine=describe(device), quick=settings.quick)
    write(result, folder, watch)
    on_start(result)
    share, whole = 0.0, sum(_WEIGHTS[name] for name in settings.only)
    try:
        watch.now("copy bandwidth")
        result.bandwidth = measure_bandwidth(device, buffer_bytes=settings.bandwidth_bytes)
        for name in SECTIONS:
            if name not in settings.only:
                continue
            share += _WEIGHTS[name] / whole
            watch.may_use(min(1.0, share))
            parts, units = _PLANS[name](settings, result, watch)
            with watch.section(name, units):
                for part in parts:
                    _measure(part, result, watch, partial(write, result, folder, watch))
            after_section(name, result)
        result.finished = True
    finally:
        write(result, folder, watch)
    return result


def write(result: BenchResult, folder: Path, watch: Watch) -> None:
    """Everything so far, and the tracebacks of what failed."""
    result.seconds = watch.elapsed
    write_atomically(folder / RESULTS, (result.model_dump_json(indent=1) + "\n").encode())
    if watch.traces:
        write_atomically(folder / ERRORS, "\n\n".join(watch.traces).encode())


@dataclass(frozen=True)
class Part:
    """One shape of an operator, or one model."""

    what: str
    measure: Callable[[], Iterable[Any]]
    rows: list[Any]
    """Where its rows go."""


Plan = tuple[list[Part], int]
"""The parts of a section, and how many units of progress they report."""


def _measure(part: Part, result: BenchResult, watch: Watch, keep: Callable[[], None]) -> None:
    """A part's rows, each kept as it comes; a note where some are missing, for it failed or time is over."""
    if watch.over:
        result.notes.append(f"Left out, for the time was over: {part.what}.")
        return

    def run() -> None:
        for row in part.measure():
            part.rows.append(row)
            keep()

    outcome = attempt(run)
    if outcome.failure is not None:
        watch.failed(part.what, outcome.failure)
        result.notes.append(f"Failed: {part.what}: {outcome.failure.reason}")
        keep()


def plan_operators(settings: Settings) -> list[tuple[Operator, Shape]]:
    """What is measured, what matters most first: a quick bench may not come to the end."""
    if not settings.on_gpu:
        return [(SHIFT, shape) for shape in (shapes.QUICK_ON_CPU if settings.quick else shapes.ON_CPU)]
    if settings.quick:
        first, small, packed = shapes.QUICK
        step = shapes.DECODING[0]
        return [(SHIFT, first), (ROTARY, first), (SHIFT, small), (DECODE, step), (SHIFT, packed)]
    planned = [(operator, shape) for shape in shapes.SHAPES for operator in (SHIFT, ROTARY)]
    planned += [(NORM_ROTARY, shape) for shape in shapes.WITH_NORM]
    return planned + [(DECODE, shape) for shape in shapes.DECODING]


def _operators(settings: Settings, result: BenchResult, watch: Watch) -> Plan:
    assert result.bandwidth is not None
    machine = Machine(
        torch.device(settings.device),
        settings.dtype,
        result.machine.cache_bytes,
        result.bandwidth.bytes_per_second.median,
        settings.on_gpu,
    )
    parts = [
        Part(
            f"{operator.name} {shape.name}",
            partial(
                measure_operator,
                operator,
                shape,
                machine,
                settings.operator_effort,
                watch,
                quick=settings.quick,
            ),
            result.operators,
        )
        for operator, shape in plan_operators(settings)
    ]
    return parts, len(parts)


def _steps(settings: Settings, result: BenchResult, watch: Watch) -> Plan:
    parts = [
        Part(
            f"training steps of {configuration.name}",
            partial(
                measure_steps,
                configuration,
                torch.device(settings.device),
                settings.dtype,
                settings.step_effort,
                watch,
                layers=settings.most_layers,
                modes=settings.modes,
                arms=settings.compared,
            ),
            result.steps,
        )
        for configuration in settings.trained
    ]
    return parts, len(parts) * len(settings.modes) * sum(arm.trained for arm in settings.compared)


def _decoding(settings: Settings, result: BenchResult, watch: Watch) -> Plan:
    parts = [
        Part(
            f"decoding of {configuration.name}",
            partial(
                measure_decoding,
                configuration,
                torch.device(settings.device),
                settings.dtype,
                settings.decoding_effort,
                watch,
                layers=settings.most_layers,
                ways=settings.ways,
                arms=settings.compared,
            ),
            result.decoding,
        )
        for configuration in settings.decoded
    ]
    return parts, len(parts) * len(parts_of(settings.ways, settings.decoding_effort))


_PLANS: dict[str, Callable[[Settings, BenchResult, Watch], Plan]] = {
    "operators": _operators,
    "steps": _steps,
    "decoding": _decoding,
}
