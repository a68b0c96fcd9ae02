"""A bench's results on the terminal, section by section; readable without colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvshift.bench.contenders import OURS
from kvshift.bench.schema import BenchResult, DecodingRow, Machine, OperatorRow, Row, Spread, StepRow

_NOTHING = "–"


def print_machine(machine: Machine, console: Console) -> None:
    """What the bench runs on."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    console.print(Text(machine.device, style="bold"))
    console.print(Text(f"Python {machine.python}, {packages}; commit {machine.commit or 'unknown'}"))


def print_section(name: str, result: BenchResult, console: Console) -> None:
    """The tables of one section."""
    {"operators": _operators, "steps": _steps, "decoding": _decoding}[name](result, console)


def print_end(result: BenchResult, console: Console) -> None:
    """What was left out."""
    for note in result.notes:
        console.print(Text(note, style="yellow"))


def _operators(result: BenchResult, console: Console) -> None:
    if result.bandwidth is not None:
        rate = result.bandwidth.bytes_per_second
        console.print()
        console.print(
            Text(
                f"A large copy reads and writes {rate.median / 1e9:,.4g} GB/s "
                f"[{rate.low / 1e9:,.4g}, {rate.high / 1e9:,.4g}]. Floor: the fewest bytes at that rate."
            )
        )
    for (operator, shape, heads, packed), group in groupby(
        result.operators, lambda row: (row.operator, row.shape, row.query_heads, row.packed)
    ):
        rows = list(group)
        console.print()
        console.print(_operator_title(operator, shape, heads, packed, rows))
        console.print(_operator_table(rows))
        _print_reasons(rows, console)
    absent = sorted({row.contender for row in result.operators if row.status == "not installed"})
    if absent:
        console.print()
        console.print(Text(f"Not installed, so not compared: {', '.join(absent)}."))


def _operator_title(
    operator: str, shape: tuple[int, ...], heads: int, packed: bool, rows: Sequence[OperatorRow]
) -> Text:
    title = f"{operator} {list(shape)}"
    title += f", {heads} query heads" if heads != shape[2] else ""
    title += ", packed" if packed else ""
    floors = {row.direction: row.floor for row in rows if row.floor is not None}
    said = ", ".join(f"{direction} {_number(floor * 1e6)} µs" for direction, floor in floors.items())
    return Text.assemble((title, "bold"), f"  {rows[0].dtype}; floor {said}")


def _operator_table(rows: Sequence[OperatorRow]) -> Table:
    directions = list(dict.fromkeys(row.direction for row in rows))
    both = any(row.device is not None for row in rows)
    table = _table("")
    for direction in directions:
        short = "fwd" if direction == "forward" else "fwd+bwd"
        for heading in (f"{short} µs", "of copy", "÷ ours", *(["launched"] if both else [])):
            table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(row.contender for row in rows):
        of_name = [row for row in rows if row.contender == name]
        if all(row.status == "not installed" for row in of_name):
            continue
        cells: list[str | Text] = []
        for direction in directions:
            row = next((each for each in of_name if each.direction == direction), None)
            cells += _operator_cells(row, both)
        less = "*" if of_name[0].work == "less" else ""
        table.add_row(Text(name + less, "bold" if name == OURS else ""), *cells)
    return table


def _operator_cells(row: OperatorRow | None, both: bool) -> list[str | Text]:
    width = 4 if both else 3
    if row is None or row.time is None:
        return [Text(row.status if row else _NOTHING, "yellow"), *[""] * (width - 1)]
    ours = row.contender == OURS
    over = "" if ours or row.over_ours is None else f"{row.over_ours.median:.2f}"
    slower = not ours and row.over_ours is not None and row.over_ours.median < 1
    share = _NOTHING if row.share is None else f"{row.share:.0%}"
    cells: list[str | Text] = [_plus_minus(row.time, 1e6), share, Text(over, "bold red" if slower else "")]
    if both:
        cells.append(_NOTHING if row.launched is None else _number(row.launched.median * 1e6))
    return cells


def _steps(result: BenchResult, console: Console) -> None:
    for (_, mode), group in groupby(result.steps, lambda row: (row.configuration, row.mode)):
        rows = list(group)
        first = rows[0]
        title = f"training step, {first.configuration}, {mode}"
        said = f"  {_layers(first)}, batch {first.batch} × {first.length:,}"
        table = _table("arm")
        for heading in ("ms a step", "tokens/s", "peak GiB", "time ÷ vanilla", "memory ÷", "ready s"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(row.arm, *_step_cells(row))
        console.print()
        console.print(Text.assemble((title, "bold"), said))
        console.print(table)
        _print_reasons(rows, console)


def _step_cells(row: StepRow) -> list[str | Text]:
    if row.seconds is None or row.tokens_per_second is None:
        return [Text(row.status, "yellow")]
    return [
        _plus_minus(row.seconds, 1e3),
        f"{row.tokens_per_second:,.0f}",
        _NOTHING if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
        _ratio(row.over_vanilla),
        _NOTHING if row.memory_over_vanilla is None else f"{row.memory_over_vanilla:.3f}",
        _NOTHING if row.ready_seconds is None else f"{row.ready_seconds:.0f}",
    ]


def _decoding(result: BenchResult, console: Console) -> None:
    for _, group in groupby(result.decoding, lambda row: row.configuration):
        rows = list(group)
        first = rows[0]
        table = _table("how")
        for heading in ("batch", "arm", "tokens/s", "rate ÷ vanilla", "same tokens"):
            table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
        before: tuple[str, str] | None = None
        for row in rows:
            place = (row.way, str(row.batch))
            table.add_row(*(("", "") if place == before else place), *_decoding_cells(row))
            before = place
        console.print()
        said = f"  {_layers(first)}, prompt {first.prompt}, {first.new} new tokens"
        console.print(Text.assemble((f"decoding, {first.configuration}", "bold"), said))
        console.print(table)
        _print_reasons(rows, console)


def _decoding_cells(row: DecodingRow) -> list[str | Text]:
    if row.tokens_per_second is None:
        return [row.arm, Text(row.status, "yellow")]
    same = "" if row.same_tokens is None else "yes" if row.same_tokens else "no"
    return [row.arm, _number(row.tokens_per_second), _ratio(row.over_vanilla), same]


def _layers(row: StepRow | DecodingRow) -> str:
    return (
        f"{row.layers} layers" if row.layers == row.of_layers else f"{row.layers} of {row.of_layers} layers"
    )


def _print_reasons(rows: Iterable[Row], console: Console) -> None:
    """Each reason once, with whom it concerns."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.reason is not None and row.status != "not installed":
            name = row.contender if isinstance(row, OperatorRow) else getattr(row, "arm", "")
            names = said.setdefault(row.reason, [])
            if name not in names:
                names.append(name)
    for reason, names in said.items():
        console.print(Text(f"{', '.join(names)}: {reason}", style="yellow"), soft_wrap=True)
    if any(isinstance(row, OperatorRow) and row.work == "less" and row.time for row in rows):
        console.print(Text("* does less: no taps"))


def _plus_minus(spread: Spread, scale: float) -> str:
    """The median and half the distance of the quartiles."""
    return f"{_number(spread.median * scale)} ±{_number((spread.high - spread.low) / 2 * scale)}"


def _number(value: float) -> str:
    """Three digits or more, and never an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _ratio(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.3f} [{spread.low:.3f}, {spread.high:.3f}]"


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    return table
