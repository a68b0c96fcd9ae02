"""`kvshift pilot`."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from kvshift.cli import values

STARTED = 0.0
"""When the command line was read (`time.monotonic`): the imports count towards the budget too."""

PLAN, TEXT, REPORT = "What is compared", "The text", "The report"


def pilot(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="Files, folders, globs or Hugging Face dataset names (owner/name). Plain text and source "
            "code, .jsonl, .csv, .parquet, each also .gz, .xz or .zst. Default: the standard library of "
            "this Python.",
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Time for everything, the text's preparation included: 90s, 8m, 2h, 1h30m.")
    ] = "10m",
    out: Annotated[
        Path, typer.Option(help="Folder of the pilot. Starting again with the same one goes on.")
    ] = Path("kvshift-pilot"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop; no folder is made.")
    ] = False,
    arms: Annotated[
        str,
        typer.Option(
            rich_help_panel=PLAN,
            help="Baseline and candidate. Known: vanilla, kvshift, paper, keys-only, values-only, qkv, gate, "
            "clamp, window3, window4, per-channel, and vanilla-again (the same on other seeds).",
        ),
    ] = "vanilla,kvshift",
    sizes: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PLAN,
            help="Model sizes, e.g. d64-L2,d96-L3,d128-L3 (width and layers). Default: three that fit.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=PLAN,
            help="Your own architecture, a config.json or a folder with one, as the largest size; smaller "
            "ones are derived from it. Only its shape is used, no weights.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(rich_help_panel=PLAN, help="A list, 0,1,2, or how many, 5. Default: three or more."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PLAN, help="Training tokens of a run, e.g. 500k or 2M. Default: what fits."
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(rich_help_panel=PLAN, help="Tokens in a window. Default: 256, 1024 on a GPU."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(rich_help_panel=PLAN, help="Windows in an optimizer step.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(rich_help_panel=PLAN, help="Peak, for every size. Default: by width.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PLAN, help="How the shift's scalars start: structured, paper or identity."
        ),
    ] = None,
    multiplier: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=PLAN,
            help="The scalars' learning rate as a multiple of the model's; without it they have their own.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(rich_help_panel=PLAN, help="auto, cpu or cuda.")] = "auto",
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            rich_help_panel=PLAN,
            help="torch.compile the models. Default: on a GPU, where runs are long enough.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=TEXT, help="A tokenizer.json or a folder with one. Default: trained here."
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(rich_help_panel=TEXT, help="Column of tables that holds the text. Default: text."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(rich_help_panel=REPORT, help="What an hour of your machine costs, to report money."),
    ] = None,
    currency: Annotated[
        str, typer.Option(rich_help_panel=REPORT, help="Of the price, e.g. USD, EUR, JPY.")
    ] = "USD",
    lang: Annotated[
        str, typer.Option(rich_help_panel=REPORT, help="Language of the report: en or ja.")
    ] = "en",
) -> None:
    """Find out on your own text whether KV shifting attention pays off.

    Trains small models with and without it, in pairs that differ in nothing else, within the time you give,
    and writes a report with a verdict: better or not, by how much, how sure, and what it saves.

    Ctrl-C is safe: the same line goes on where it stopped.

    Examples:

      kvshift pilot                                 ten minutes, on this Python's own sources

      kvshift pilot notes/ more.jsonl --budget 2h   your text, two hours

      kvshift pilot notes/ --dry-run                only the plan
    """
    wanted = {
        "sources": tuple(data or ()),
        "text_column": text_column,
        "tokenizer": tokenizer,
        "budget_seconds": values.duration(budget),
        "arms": values.arms(arms),
        "sizes": values.names("--sizes", sizes),
        "seeds": values.seeds(seeds),
        "tokens": values.tokens(tokens),
        "sequence_length": values.whole("--sequence-length", sequence_length, 8, 1 << 20),
        "batch_size": values.whole("--batch-size", batch_size, 1, 1 << 16),
        "learning_rate": values.number("--learning-rate", learning_rate, above=0, most=10),
        "start": values.one_of("--start", start, ("structured", "paper", "identity")),
        "multiplier": values.number("--multiplier", multiplier, least=0, most=1000),
        "model": None if model is None else Path(os.path.expanduser(model)),
        "price_per_hour": values.number("--price", price, least=0, most=math.inf),
        "currency": values.text("--currency", currency),
        "language": values.one_of("--lang", lang, ("en", "ja")),
        "device": values.one_of("--device", device, ("auto", "cpu", "cuda")),
        "compile": compile_,
    }

    from kvshift.pilot import worker

    worker.start_server()  # its ten seconds of imports run beside ours
    from kvshift.pilot.pilot import run_pilot
    from kvshift.pilot.settings import PilotSettings

    run_pilot(
        PilotSettings.model_validate(wanted),
        Path(os.path.expanduser(out)),  # the shell leaves the "~" of --out=~/pilot alone
        dry_run=dry_run,
        spent_seconds=time.monotonic() - STARTED,
    )


def resume_line(arguments: list[str]) -> str | None:
    """What to tell a person who interrupted this command line; None if there is nothing to go on with."""
    if arguments[:1] not in (["pilot"], ["reproduce"]) or "--dry-run" in arguments:
        return None
    return f"Interrupted; nothing is lost. To go on:\n  {_program()} {shlex.join(arguments)}"


def _program() -> str:
    """What the user would type to call this program again."""
    called = sys.argv[0]
    if called.endswith("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m kvshift"
    found = shutil.which("kvshift")
    by_name = found is not None and os.path.exists(called) and os.path.samefile(found, called)
    return "kvshift" if by_name or not os.path.exists(called) else shlex.quote(os.path.relpath(called))
