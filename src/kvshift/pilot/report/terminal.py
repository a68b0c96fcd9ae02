"""The verdict and its numbers in a few lines, for the end of `kvshift pilot`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvshift.pilot.report import headline
from kvshift.pilot.report.context import Context
from kvshift.pilot.results import Results

_STYLES = {"adopt": "green", "bigger_pilot": "yellow", "no_benefit": "blue", "harmful": "red"}
_ICONS = {
    "adopt": "✔",
    "bigger_pilot": "…",
    "no_benefit": "–",
    "harmful": "✘",
    "missing": "?",
    "neutral": "=",
}


def print_summary(results: Results, console: Console, language: str | None = None) -> None:
    """Prints the verdict, the key numbers with their intervals, and what to do next.

    Everything goes through `rich.text.Text`, so that user text in brackets is never taken for markup.
    """
    context = Context.of(results, language)
    verdict = headline.verdict(context)
    style = f"bold {_STYLES.get(verdict['kind'], 'white')}"
    word = verdict["word"]
    if verdict["undecided"]:
        word = context.text("terminal.undecided", word=word)
    console.print()
    console.print(Text(f"{_ICONS.get(verdict['kind'], '')} {word}", style=style))
    console.print(Text(verdict["head"], style="bold"))
    console.print(Text(verdict["why"]))
    table = Table.grid(padding=(0, 2))
    for card in verdict["numbers"]:
        table.add_row(
            Text(card["title"]), Text(card["value"], style="bold"), Text(card["interval"], style="dim")
        )
    speed = results.added.throughput_ratio
    if speed is not None and not context.self_test:
        shown = Text(context.numbers.faster(speed.value), style="bold")
        table.add_row(
            Text(context.text("effort.speed")), shown, Text(context.speed_interval(speed), style="dim")
        )
    console.print()
    console.print(table)
    if verdict["next"]:
        console.print()
        console.print(Text(verdict["next"]["text"]))
        console.print(Text(f"  {verdict['next']['command']}", style="bold"), soft_wrap=True)
    if verdict["failed"]:
        console.print(Text(verdict["failed"], style="yellow"))
    console.print()
