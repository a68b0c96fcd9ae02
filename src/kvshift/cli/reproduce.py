"""`kvshift reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kvshift.cli import values

if TYPE_CHECKING:
    from rich.console import Console

    from kvshift.paper.experiment import Scale
    from kvshift.paper.reproduce import Outcome


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...|all]", help="Experiments. Without one: lists them."),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="tiny (decides nothing), small (a CPU) or gpu (one GPU, where it helps).")
    ] = "small",
    out: Annotated[Path, typer.Option(help="Folder of records, figures and verdicts.")] = Path(
        "kvshift-reproduce"
    ),
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Files, folders, globs or dataset names that language models learn from; may be given more "
            "than once. Default: Python's standard library."
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            help="Runs beside each other, each with its share of the cores and, of several GPUs, on one."
        ),
    ] = 1,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html: every experiment that is done in the folder.")
    ] = False,
) -> None:
    """Check claims of the paper: runs, a figure, and a verdict by a rule written before the runs.

    A run that the folder has a record of is not done again, so the same line goes on after an interruption,
    and figures and verdicts come from records alone.

    Examples:

      kvshift reproduce                          the experiments there are

      kvshift reproduce fig2                     one of them

      kvshift reproduce fig5a --text novels/     a language model, on your text

      kvshift reproduce fig8a fig10 --jobs 2     several, with runs beside each other

      kvshift reproduce all --report             all, and one page
    """
    values.one_of("--scale", scale, ("tiny", "small", "gpu"))

    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not names:
        _list(console)
        return

    from kvshift.files import write_atomically
    from kvshift.paper.records import ResultsFolder
    from kvshift.paper.report import render
    from kvshift.paper.reproduce import chosen, every_outcome
    from kvshift.paper.reproduce import reproduce as do

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    known = cast("Scale", scale)
    with console.status("starting") as status:
        shown = console.is_terminal
        outcomes = do(
            chosen(*names),
            known,
            out,
            say,
            text or (),
            jobs=jobs,
            show=(lambda line: status.update(escape(line))) if shown else say,
            show_every=1.0 if shown else 60.0,
        )
    folder = ResultsFolder(out, known)
    learned_from = folder.described().text
    _show(outcomes, learned_from, console)
    if report:
        page = render(every_outcome(folder, outcomes), learned_from)
        write_atomically(out / "report.html", page.encode())
        console.print(f"Written: {out / 'report.html'}", soft_wrap=True)


def _list(console: Console) -> None:
    from rich.table import Table

    from kvshift.paper.experiments import EXPERIMENTS

    table = Table("experiment", "claim", "the paper")
    for experiment in EXPERIMENTS.values():
        table.add_row(experiment.name, experiment.claim, experiment.paper)
    console.print(table)


def _show(outcomes: list[Outcome], learned_from: str, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from kvshift.paper.report import VERDICTS

    table = Table("experiment", "the paper", "here", "verdict")
    for outcome in outcomes:
        judgement = outcome.judgement
        row = (outcome.experiment.name, outcome.experiment.paper, judgement.ours, VERDICTS[judgement.verdict])
        table.add_row(*map(Text, row))
    console.print(table)
    for outcome in outcomes:
        console.print(Text(f"{outcome.experiment.name}: {outcome.judgement.finding}"))
    if any(outcome.reads_text for outcome in outcomes):
        console.print(Text(f"Language models learned from {learned_from}."))
