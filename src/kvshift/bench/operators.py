"""Each operator at each shape: ours and every installed peer, checked, then timed in turns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kvshift.bench.attempts import Failure, attempt, release_memory
from kvshift.bench.contenders import OURS, Call, Contender, Operator, Results, leaves_of
from kvshift.bench.formulas import forget_compilations
from kvshift.bench.graphs import Flusher, Recorder, replay_seconds
from kvshift.bench.schema import Direction, OperatorRow, Spread
from kvshift.bench.shapes import Case, Shape
from kvshift.bench.timing import enough_repeats, rotating, stopwatch, take_turns
from kvshift.bench.watch import LEFT_OUT, Watch

_MOST_CASES_ON_GPU, _MOST_CASES_ON_CPU = 64, 4
_CACHES_APART = 3  # before a call meets its buffers again, so many caches' worth of others were moved
MOST_ERROR = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Of a peer that computes the same; a wrong one is off by about 1. Rounding after every operation, as the
formula does in these dtypes, stays well below."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    sample_seconds: float
    most_seconds: float = 20.0
    """For all contenders of a shape and direction."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the timing of operators needs to know."""

    device: torch.device
    dtype: torch.dtype
    cache_bytes: int
    bytes_per_second: float
    on_gpu: bool
    """Kernels run, and calls are recorded in CUDA graphs."""


def measure_operator(
    operator: Operator, shape: Shape, machine: Machine, effort: Effort, watch: Watch, *, quick: bool = False
) -> list[OperatorRow]:
    """Every contender at one shape, forward and (where there is one) forward + backward.

    A contender that is not installed, fails or is wrong has a row that says so.
    """
    forget_compilations()
    on_gpu = machine.on_gpu
    contenders = [
        each for each in operator.contenders if on_gpu or not (each.needs_gpu or (quick and each.slow))
    ]
    bench = _Bench(operator, shape, machine, effort, watch)
    rows: list[OperatorRow] = []
    ready, errors = bench.check(contenders, rows)
    if ready:
        cases = bench.cases()
        for direction in ("forward", "forward+backward") if operator.leaves else ("forward",):
            rows += bench.time(ready, errors, cases, direction)
    watch.done()
    release_memory()
    return rows


class _Bench:
    """One operator at one shape."""

    def __init__(
        self, operator: Operator, shape: Shape, machine: Machine, effort: Effort, watch: Watch
    ) -> None:
        self.operator, self.shape, self.machine = operator, shape, machine
        self.effort, self.watch = effort, watch

    def check(
        self, contenders: Sequence[Contender], rows: list[OperatorRow]
    ) -> tuple[list[Contender], dict[str, float]]:
        """Those that give the exact results, and their errors; the others get their row."""
        case = Case.random(self.shape, self.machine.dtype, self.machine.device, seed=0)
        exact: dict[tuple[float, float] | None, dict[str, Tensor]] = {}
        ready: list[Contender] = []
        errors: dict[str, float] = {}
        for contender in contenders:
            if self.watch.over and contender.name != OURS:
                rows += self._without(contender, LEFT_OUT)
                continue
            self.watch.now(f"{self.operator.name} {self.shape.name}: checking {contender.name}")
            outcome = attempt(partial(self._error, contender, case, exact))
            failure = outcome.failure
            if outcome.value is not None:
                errors[contender.name] = outcome.value
                limit = MOST_ERROR[self.machine.dtype]
                if not outcome.value <= limit:  # NaN too
                    failure = Failure(
                        "wrong", f"its results are off by {outcome.value:.2g}; at most {limit:g} is rounding"
                    )
            if failure is None:
                ready.append(contender)
            else:
                rows += self._without(contender, failure, errors.get(contender.name))
        return ready, errors

    def _error(
        self, contender: Contender, case: Case, exact: dict[tuple[float, float] | None, dict[str, Tensor]]
    ) -> float:
        if contender.taps not in exact:
            exact[contender.taps] = self._exact(case, contender.taps)
        right = exact[contender.taps]
        found = self._everything(contender.prepare(case.copied()), case)  # some overwrite their inputs
        return max(_relative_error(x, right[name]) for name, x in found.items() if name in right)

    def _exact(self, case: Case, taps: tuple[float, float] | None) -> dict[str, Tensor]:
        """The definition's results and gradients in a dtype so wide that its rounding does not count."""
        wide = torch.float64 if self.machine.dtype == torch.float32 else torch.float32
        changes = {}
        if taps is not None:
            changes = {
                name: torch.tensor(taps, device=case.k.device).expand_as(case.k_taps)
                for name in ("k_taps", "v_taps")
            }
        exact = case.copied(wide, **changes)
        leaves = leaves_of(exact, self.operator.leaves)
        return self._everything(Call(lambda: self.operator.exact(exact), leaves), exact)

    def _everything(self, call: Call, case: Case) -> dict[str, Tensor]:
        """Results as `result 0`, …, and gradients by the names of their leaves."""
        made = call.run()
        found = {f"result {place}": x.detach() for place, x in enumerate(made)}
        if call.leaves:
            given = [
                x.to(y.dtype, copy=True)  # some overwrite gradients
                for x, y in zip(self._gradients(case), made, strict=True)
            ]
            gradients = torch.autograd.grad(made, list(call.leaves.values()), given)
            found |= dict(zip(call.leaves, gradients, strict=True))
        return found

    def _gradients(self, case: Case) -> Results:
        gradients: Results = case.gradients
        return gradients[self.operator.results]

    def cases(self) -> list[Case]:
        """So many that a call finds none of its buffers in the cache."""
        once = self.operator.floor_bytes(self.shape, self.machine.dtype, backward=False)
        most = _MOST_CASES_ON_GPU if self.machine.on_gpu else _MOST_CASES_ON_CPU
        count = max(2, min(most, math.ceil(_CACHES_APART * self.machine.cache_bytes / once)))
        return [
            Case.random(self.shape, self.machine.dtype, self.machine.device, seed=1 + number)
            for number in range(count)
        ]

    def time(
        self,
        contenders: Sequence[Contender],
        errors: dict[str, float],
        cases: Sequence[Case],
        direction: Direction,
    ) -> list[OperatorRow]:
        """All of them in turns, launched one by one and, on a GPU, replayed."""
        failures: dict[str, Failure] = {}
        launched: dict[str, Callable[[], float]] = {}
        replayed: dict[str, Callable[[], float]] = {}
        notes: dict[str, str] = {}
        recorder = Recorder() if self.machine.on_gpu else None
        flush = Flusher(self.machine.cache_bytes, self.machine.device) if self.machine.on_gpu else None
        for contender in contenders:
            what = f"{self.operator.name} {self.shape.name} {direction}"
            if self.watch.over and contender.name != OURS:
                failures[contender.name] = LEFT_OUT
                continue
            self.watch.now(f"{what}: {contender.name}")
            made = attempt(partial(self._launched, contender, cases, direction))
            if made.value is None:
                failures[contender.name] = made.failure or LEFT_OUT
                continue
            launched[contender.name], calls, recordable = made.value
            if recorder is None or flush is None:
                continue
            if not recordable:
                notes[contender.name] = "not recorded in a graph: it waits for the device"
                continue
            recorded = attempt(partial(self._replayed, calls, recorder, flush))
            if recorded.value is not None:
                replayed[contender.name] = recorded.value
            elif recorded.failure is not None:
                self.watch.failed(f"{what}: {contender.name} in a graph", recorded.failure)
                notes[contender.name] = f"not recorded in a graph: {recorded.failure.reason}"
        turns = {"rounds": self.effort.rounds, "seconds": self.effort.most_seconds}
        by_launch = take_turns(launched, **turns)  # type: ignore[arg-type]
        by_replay = take_turns(replayed, **turns)  # type: ignore[arg-type]
        rows = []
        for contender in contenders:
            if contender.name in failures:
                rows += self._without(
                    contender, failures[contender.name], errors.get(contender.name), (direction,)
                )
                continue
            rows.append(
                self._row(
                    contender,
                    direction,
                    status="timed",
                    reason=notes.get(contender.name),
                    error=errors.get(contender.name),
                    launched=by_launch[contender.name],
                    device=by_replay.get(contender.name),
                )
            )
        return _compared(rows)

    def _launched(
        self, contender: Contender, cases: Sequence[Case], direction: Direction
    ) -> tuple[Callable[[], float], list[Callable[[], Results]], bool]:
        """A sample of seconds a call, the calls themselves, and whether a graph can hold them."""
        prepared = [contender.prepare(case) for case in cases]
        calls = [self._directed(call, case, direction) for call, case in zip(prepared, cases, strict=True)]
        time = stopwatch(self.machine.device)
        every = rotating(calls, 1)
        for _ in range(2):  # compiles, tunes and allocates
            once = time(every)
        repeats = enough_repeats(once, self.effort.sample_seconds)
        run = rotating(calls, repeats)
        number = repeats * len(calls)
        return lambda: time(run) / number, calls, all(call.recordable for call in prepared)

    def _directed(self, call: Call, case: Case, direction: Direction) -> Callable[[], Results]:
        if direction == "forward":
            return torch.no_grad()(call.run)
        return call.with_gradients(self._gradients(case))

    def _replayed(
        self, calls: list[Callable[[], Results]], recorder: Recorder, flush: Flusher
    ) -> Callable[[], float]:
        once = replay_seconds(recorder.record(rotating(calls, 1)), flush)
        repeats = enough_repeats(once, self.effort.sample_seconds, most=200)
        replay = recorder.record(rotating(calls, repeats))
        number = repeats * len(calls)
        return lambda: replay_seconds(replay, flush) / number

    def _without(
        self,
        contender: Contender,
        failure: Failure,
        error: float | None = None,
        directions: tuple[Direction, ...] = ("forward", "forward+backward"),
    ) -> list[OperatorRow]:
        self.watch.failed(f"{self.operator.name} {self.shape.name}: {contender.name}", failure)
        return [
            self._row(contender, direction, status=failure.status, reason=failure.reason, error=error)
            for direction in directions
            if self.operator.leaves or direction == "forward"
        ]

    def _row(self, contender: Contender, direction: Direction, **found: object) -> OperatorRow:
        shape = self.shape
        floor_bytes = self.operator.floor_bytes(shape, self.machine.dtype, backward=direction != "forward")
        return OperatorRow(
            operator=self.operator.name,
            shape=(shape.batch, shape.time, shape.kv_heads, shape.head_dim),
            query_heads=shape.query_heads,
            packed=shape.packed,
            dtype=str(self.machine.dtype).removeprefix("torch."),
            direction=direction,
            contender=contender.name,
            work=contender.work,
            floor_bytes=floor_bytes,
            floor=floor_bytes / self.machine.bytes_per_second,
            **found,
        )


def _compared(rows: list[OperatorRow]) -> list[OperatorRow]:
    """The same rows with their share of the bandwidth, and their time in ours.

    Only like is divided by like: replays by replays, launches by launches.
    """
    ours = next((row for row in rows if row.contender == OURS and row.status == "timed"), None)
    compared = []
    for row in rows:
        if row.time is not None and row.floor is not None:
            row = row.model_copy(update={"share": row.floor / row.time.median})
            if ours is not None:
                row = row.model_copy(update={"over_ours": _over(row, ours)})
        compared.append(row)
    return compared


def _over(row: OperatorRow, ours: OperatorRow) -> Spread | None:
    if row.device is not None and ours.device is not None:
        return Spread.of_ratios(row.device, ours.device)
    if row.launched is not None and ours.launched is not None:
        return Spread.of_ratios(row.launched, ours.launched)
    return None


def _relative_error(found: Tensor, exact: Tensor) -> float:
    exact = exact.to(torch.promote_types(exact.dtype, torch.float32))
    return float((found.to(exact.dtype) - exact).norm() / exact.norm().clamp(min=1e-30))
