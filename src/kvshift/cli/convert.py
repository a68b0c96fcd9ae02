"""`kvshift convert`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kvshift.cli.shift import Constraint, Keys, PerChannel, Queries, Values, Window, option, shift_config
from kvshift.cli.values import whole


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A model's folder: config.json and safetensors files.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The converted copy; a new folder.")],
    init: Annotated[
        str | None,
        option(
            help="How the taps start: identity (outputs stay as they are), structured, or paper. "
            "Default: structured; paper with --constraint gate.",
        ),
    ] = None,
    window: Window = 2,
    keys: Keys = True,
    values: Values = True,
    queries: Queries = False,
    per_channel: PerChannel = False,
    constraint: Constraint = "free",
    seed: Annotated[int, option(help="Of --init paper's draw.")] = 0,
) -> None:
    """Add KV shift to a checkpoint on disk, without loading the model.

    Copies the weights as they are and adds a small file with the taps. SRC stays as it is; DST appears only
    when it is whole.

    Examples:

      kvshift convert llama/ llama-kvshift/ --init identity   go on training it: outputs are the same at first
    """
    whole("--seed", seed, 0, 2**63 - 1)
    config = shift_config(
        window=window,
        keys=keys,
        values=values,
        queries=queries,
        per_channel=per_channel,
        constraint=constraint,
        init=init,
    )

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from kvshift.models.disk import convert_folder

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
    if config.init != "identity":
        console.print(
            f"The taps start {config.init}: until it is trained on, the model answers otherwise than before. "
            "--init identity keeps its answers.",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
