"""All sections in turn, each written to the folder when it is done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from kvshift.bench import shapes
from kvshift.bench.arms import ARMS
from kvshift.bench.attempts import attempt
from kvshift.bench.bandwidth import measure_bandwidth
from kvshift.bench.contenders import DECODE, NORM_ROTARY, ROTARY, SHIFT, Operator
from kvshift.bench.decoding import measure_decoding, parts
from kvshift.bench.machine import describe
from kvshift.bench.operators import Machine, measure_operator
from kvshift.bench.schema import BenchResult
from kvshift.bench.settings import Settings
from kvshift.bench.shapes import Shape
from kvshift.bench.steps import measure_steps
from kvshift.bench.watch import Watch
from kvshift.files import output_errors, write_atomically

RESULTS = "bench.json"
ERRORS = "errors.txt"
_WEIGHTS = {"operators": 0.35, "steps": 0.35, "decoding": 0.3}
"""How a quick bench's time is divided."""
T = TypeVar("T")


def run_bench(
    settings: Settings,
    folder: Path,
    watch: Watch,
    *,
    command: str,
    on_start: Callable[[BenchResult], None] = lambda result: None,
    after_section: Callable[[str, BenchResult], None] = lambda name, result: None,
) -> BenchResult:
    """Measures what the settings say; `bench.json` is written after the bandwidth and after every section.

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
    sections = {name: section for name, section in _SECTIONS.items() if name in settings.only}
    share, whole = 0.0, sum(_WEIGHTS[name] for name in sections)
    try:
        watch.now("copy bandwidth")
        result.bandwidth = measure_bandwidth(device, buffer_bytes=settings.bandwidth_bytes)
        for name, section in sections.items():
            share += _WEIGHTS[name] / whole
            watch.may_use(min(1.0, share))
            section(settings, result, watch)
            write(result, folder, watch)
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


def plan_operators(settings: Settings) -> list[tuple[Operator, Shape]]:
    """What is measured, what matters most first: a quick bench may not come to the end."""
    if not settings.on_gpu:
        return [(SHIFT, shape) for shape in (shapes.QUICK_ON_CPU if settings.quick else shapes.ON_CPU)]
    if settings.quick:
        first, small, packed = shapes.QUICK
        return [
            (SHIFT, first),
            (ROTARY, first),
            (SHIFT, small),
            (DECODE, shapes.DECODING[0]),
            (SHIFT, packed),
        ]
    planned = [(operator, shape) for operator in (SHIFT, ROTARY) for shape in shapes.SHAPES]
    planned += [(NORM_ROTARY, shape) for shape in shapes.WITH_NORM]
    return planned + [(DECODE, shape) for shape in shapes.DECODING]


def _operators(settings: Settings, result: BenchResult, watch: Watch) -> None:
    assert result.bandwidth is not None
    machine = Machine(
        torch.device(settings.device),
        settings.dtype,
        result.machine.cache_bytes,
        result.bandwidth.bytes_per_second.median,
    )
    planned = plan_operators(settings)
    with watch.section("operators", len(planned)):
        for operator, shape in planned:
            what = f"{operator.name} {shape.name}"
            if watch.over:
                result.notes.append(f"Left out, for the time was over: {what}.")
                continue
            measure = partial(
                measure_operator,
                operator,
                shape,
                machine,
                settings.operator_effort,
                watch,
                quick=settings.quick,
            )
            result.operators += _or_note(measure, what, result, watch)
            watch.done()


def _steps(settings: Settings, result: BenchResult, watch: Watch) -> None:
    chosen = [each for each in settings.chosen if each.trained]
    with watch.section("steps", len(chosen) * len(settings.modes) * sum(arm.trained for arm in ARMS)):
        for configuration in chosen:
            what = f"training steps of {configuration.name}"
            if watch.over:
                result.notes.append(f"Left out, for the time was over: {what}.")
                continue
            measure = partial(
                measure_steps,
                configuration,
                torch.device(settings.device),
                settings.dtype,
                settings.step_effort,
                watch,
                layers=settings.most_layers,
                modes=settings.modes,
            )
            result.steps += _or_note(measure, what, result, watch)


def _decoding(settings: Settings, result: BenchResult, watch: Watch) -> None:
    chosen = [each for each in settings.chosen if each.decoded]
    count = len(parts(settings.ways, settings.decoding_effort))
    with watch.section("decoding", len(chosen) * count):
        for configuration in chosen:
            what = f"decoding of {configuration.name}"
            if watch.over:
                result.notes.append(f"Left out, for the time was over: {what}.")
                continue
            measure = partial(
                measure_decoding,
                configuration,
                torch.device(settings.device),
                settings.dtype,
                settings.decoding_effort,
                watch,
                layers=settings.most_layers,
                ways=settings.ways,
            )
            result.decoding += _or_note(measure, what, result, watch)


def _or_note(measure: Callable[[], list[T]], what: str, result: BenchResult, watch: Watch) -> list[T]:
    """The rows, or none and a note that says why."""
    outcome = attempt(measure)
    if outcome.failure is not None:
        watch.failed(what, outcome.failure)
        result.notes.append(f"Failed: {what}: {outcome.failure.reason}")
    return outcome.value or []


_SECTIONS: dict[str, Callable[[Settings, BenchResult, Watch], None]] = {
    "operators": _operators,
    "steps": _steps,
    "decoding": _decoding,
}
