"""`kvshift doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvshift.cli.shift import Keys, PerChannel, Queries, Values, Window, shift_config

if TYPE_CHECKING:
    from rich.console import Console

    from kvshift.inspection.doctor import Examination

UNHEALTHY = 4


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A config.json, a model's folder, or a name in the local Hugging Face cache. Nothing is "
            "downloaded, and no weights are read.",
        ),
    ],
    window: Window = 2,
    keys: Keys = True,
    values: Values = True,
    queries: Queries = False,
    per_channel: PerChannel = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what KV shift would do to a model, and whether everything works with it.

    Says which layers are shifted and what that adds. Then a tiny random copy of the architecture is run in
    every way that is easy to get wrong (cached decoding, chunks, padding, packing, beams, a static cache,
    saving) and compared with a plain forward. Exit code 4 if the model cannot be shifted or a check fails.
    """
    shift = shift_config(window=window, keys=keys, values=values, queries=queries, per_channel=per_channel)

    from rich.console import Console
    from transformers.utils import logging

    from kvshift.inspection.doctor import examine
    from kvshift.inspection.load import load_config

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console()
    with console.status("Examining"):
        found = examine(load_config(model), shift)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found, console)
    if not found.healthy:
        raise typer.Exit(UNHEALTHY)


def _show(found: Examination, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from kvshift.inspection.doctor import TOLERANCE

    share = found.added_parameters / found.parameters
    numbers = found.shifted_layers
    every = len(numbers) == found.layers
    layers = f"all {found.layers}" if every else f"{len(numbers)} of {found.layers} ({_ranges(numbers)})"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_row("Architecture", f"{found.model_type} (family {found.family})")
    facts.add_row("Shifted layers", layers)
    facts.add_row("Heads", f"{found.query_heads} query, {found.kv_heads} KV, {found.head_dim} wide")
    facts.add_row(
        "Parameters", f"{found.parameters:,} + {found.added_parameters:,} (one in {round(1 / share):,})"
    )
    facts.add_row(
        "State",
        f"{found.state_bytes:,} bytes a sequence beside the cache, which takes "
        f"{found.cache_bytes_per_token:,} bytes a token (at 16 bits)",
    )
    console.print(facts)
    console.print()
    table = Table(title="On a tiny random copy", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("Way of running")
    table.add_column("Largest error", justify="right")
    table.add_column("")
    for check in found.checks:
        error = "" if check.error is None else f"{check.error:.1e}"
        if check.passed:
            said = Text("right", style="green")
        elif check.refused:
            said = Text(f"refused: {check.refused}", style="yellow")
        else:
            said = Text(f"WRONG{': ' + check.failed if check.failed else ''}", style="bold red")
        table.add_row(check.name, error, said)
    console.print(table)
    console.print()
    console.print(
        f"Errors are in units of the logits' standard deviation, against a forward without cache, padding or "
        f"packing; right means {TOLERANCE:g} or less in float32."
    )
    if found.healthy:
        console.print(
            Text("Everything that is not refused is right: kvshift.convert takes this model.", "green")
        )
    else:
        console.print(Text("Do not use KV shift with this model: see what is WRONG above.", "bold red"))


def _ranges(numbers: list[int]) -> str:
    """`0–3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
