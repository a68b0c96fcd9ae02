"""`kvshift convert`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kvshift.cli import values

SHIFT = "The shift"


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A model's folder: config.json and safetensors files.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The converted copy; a new folder.")],
    init: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SHIFT,
            help="How the taps start: identity (outputs stay as they are), structured, or paper. "
            "Default: structured; paper with --constraint gate.",
        ),
    ] = None,
    window: Annotated[int, typer.Option(rich_help_panel=SHIFT, help="Taps a head: 2, 3 or 4.")] = 2,
    keys: Annotated[bool, typer.Option(rich_help_panel=SHIFT, help="Shift the keys.")] = True,
    values_: Annotated[
        bool, typer.Option("--values/--no-values", rich_help_panel=SHIFT, help="Shift the values.")
    ] = True,
    queries: Annotated[bool, typer.Option(rich_help_panel=SHIFT, help="Shift the queries too.")] = False,
    per_channel: Annotated[
        bool,
        typer.Option("--per-channel", rich_help_panel=SHIFT, help="Taps for each channel, not each head."),
    ] = False,
    constraint: Annotated[
        str, typer.Option(rich_help_panel=SHIFT, help="Of the taps: free, gate or clamp.")
    ] = "free",
    seed: Annotated[int, typer.Option(rich_help_panel=SHIFT, help="Of --init paper's draw.")] = 0,
) -> None:
    """Add KV shift to a checkpoint on disk, without loading the model.

    Copies the weights as they are and adds a small file with the taps. SRC stays as it is; DST appears only
    when it is whole.

    Examples:

      kvshift convert llama/ llama-kvshift/ --init identity   go on training it: outputs are the same at first
    """
    values.whole("--window", window, 2, 4)
    values.whole("--seed", seed, 0, 2**63 - 1)
    values.one_of("--init", init, ("identity", "structured", "paper"))
    values.one_of("--constraint", constraint, ("free", "gate", "clamp"))

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from kvshift.models.disk import convert_folder
    from kvshift.shift import KVShiftConfig

    config = KVShiftConfig(
        window=window,
        shift_keys=keys,
        shift_values=values_,
        shift_queries=queries,
        per_channel=per_channel,
        constraint=constraint,  # type: ignore[arg-type]
        init=init or ("paper" if constraint == "gate" else "structured"),  # type: ignore[arg-type]
    )
    console = Console()
    started = time.monotonic()
    columns = (TextColumn("copying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        done = convert_folder(
            source,
            destination,
            config,
            generator=torch.Generator().manual_seed(seed),
            on_progress=lambda written, total: bar.update(task, completed=written, total=total),
        )
    console.print(
        f"{done.path}: {done.model_type}, {done.taps:,} taps in {done.layers} layers, "
        f"{done.bytes / 1e9:.2f} GB of weights, {time.monotonic() - started:.1f} s",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
