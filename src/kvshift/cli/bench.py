"""`kvshift bench`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvshift.cli import values


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes: few shapes, two layers, fewer repetitions.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Sections, with commas: operators,steps,decoding. Default: all.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Models for steps and decoding, with commas: tiny,1.5b,2.9b,19b-layer. Default: the paper's "
            "on a GPU, tiny on a CPU."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="What steps and decoding compare with vanilla, with commas: vanilla-again,formula,kvshift,"
            "kvshift-recomputing. Default: all."
        ),
    ] = None,
    modes: Annotated[
        str | None, typer.Option(help="Of training steps, with commas: eager,compiled. Default: both.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Build models with at most so many layers. Default: all, or as many as fit."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Begin nothing more after so many minutes; what is missing is named.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for bench.json, bench.png and errors.txt; earlier ones are replaced.")
    ] = Path("kvshift-bench"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure how fast KV shift is on this machine, and what it costs.

    Operators against the fewest bytes they must move and against whichever other packages are installed;
    training steps and decoding with and without KV shift, on the same weights and in turns. What is measured
    is kept as it comes. docs/guides/bench.md says what each number means.

    Examples:

      kvshift bench --quick                            is everything in order? Two minutes on a GPU

      kvshift bench --only steps --config 1.5b         training steps of one model, eager and compiled
    """
    sections = values.names("--only", only)
    chosen = values.names("--config", config)
    values.whole("--layers", layers, 1, 1000)
    values.number("--minutes", minutes, above=0, most=100_000)
    values.one_of("--device", device, ("auto", "cpu", "cuda"))

    import torch
    from rich.console import Console
    from transformers.utils import logging

    from kvshift.bench import Settings, run_bench
    from kvshift.bench.chart import can_draw, draw
    from kvshift.bench.settings import SECTIONS
    from kvshift.bench.terminal import print_end, print_machine, print_section
    from kvshift.bench.watch import Watch
    from kvshift.files import write_atomically

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(
        device=device,
        only=sections or SECTIONS,
        models=chosen,
        arms=values.names("--arms", arms),
        only_modes=values.names("--modes", modes),
        layers=layers,
        quick=quick,
        minutes=minutes,
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # In a file or a pipe nobody can widen the window.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    watch = Watch(Console(stderr=True), settings.budget)
    result = run_bench(
        settings,
        out,
        watch,
        command=" ".join(["kvshift", *sys.argv[1:]]),
        on_start=lambda begun: print_machine(begun.machine, console),
        after_section=lambda name, so_far: print_section(name, so_far, console),
    )
    console.print()
    print_end(result, console)
    written = ["bench.json", *(["errors.txt"] if watch.traces else [])]
    if not can_draw():
        console.print("No chart: matplotlib is not installed: pip install 'kvshift[plots]'", markup=False)
    elif (picture := draw(result)) is not None:
        write_atomically(out / "bench.png", picture)
        written.append("bench.png")
    console.print("Written: " + ", ".join(str(out / name) for name in written), soft_wrap=True)
