"""`kvshift inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kvshift.cli import values

if TYPE_CHECKING:
    from kvshift.inspection.taps import Start


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model's folder, a run's folder (runs/NAME of a pilot), or a name in the local Hugging "
            "Face cache. With or without KV shift. Nothing is downloaded.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write inspection.json to, and the picture.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[
        str | None,
        typer.Option(help="Write a picture, png or svg: inspection.png in --out, or here."),
    ] = None,
    induction: Annotated[
        bool, typer.Option("--induction/--no-induction", help="Measure the heads' induction scores.")
    ] = True,
    sequences: Annotated[int, typer.Option(help="Random sequences to average the scores over.")] = 32,
    length: Annotated[
        int | None, typer.Option(help="Random tokens in a copy. Default: 25, or what the model holds.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the random tokens.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Look into a model: the taps it learned, and which heads are induction heads.

    Shows for every layer and KV head how much of the current and of the previous token's key and value it
    reads, and for every query head how much it behaves as an induction head on repeated random tokens. A
    model without KV shift has no taps; its heads are scored all the same.

    Examples:

      kvshift inspect kvshift-pilot/runs/NAME             tables

      kvshift inspect shifted/ --out looked --plot png    also inspection.json and inspection.png
    """
    values.one_of("--plot", plot, ("png", "svg"))
    values.one_of("--device", device, ("auto", "cpu", "cuda"))
    values.whole("--sequences", sequences, 1, 100_000)
    values.whole("--length", length, 2, 1 << 20)
    values.whole("--seed", seed, 0, 2**63 - 1)

    from kvshift.errors import UsageError
    from kvshift.files import output_errors
    from kvshift.inspection.load import find_model
    from kvshift.inspection.picture import check_drawable

    found = find_model(model)
    if plot is not None:
        check_drawable()
    folder = out or Path()
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

    import torch
    from rich.console import Console
    from transformers.utils import logging

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device that torch can use.")
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")

    from kvshift.files import write_atomically
    from kvshift.inspection import inspect_model
    from kvshift.inspection.load import load_model
    from kvshift.inspection.picture import Format, draw
    from kvshift.inspection.terminal import print_inspection

    logging.disable_progress_bar()
    console = Console()
    with Console(stderr=True).status(f"reading {model}"):
        inspection = inspect_model(
            load_model(model).to(chosen),
            name=model,
            induction=induction,
            sequences=sequences,
            length=length,
            seed=seed,
            started=_recorded_start(Path(found)),
        )
    written = inspection.model_dump_json(indent=2) + "\n"
    if out is not None:
        write_atomically(folder / "inspection.json", written.encode())
    if plot is not None:
        write_atomically(folder / f"inspection.{plot}", draw(inspection, cast(Format, plot)))
    if json:
        typer.echo(written, nl=False)
        return
    print_inspection(inspection, console)
    names = [*(["inspection.json"] if out is not None else []), *([f"inspection.{plot}"] if plot else [])]
    if names:
        console.print("Written: " + ", ".join(str(folder / name) for name in names), soft_wrap=True)


def _recorded_start(found: Path) -> Start | None:
    """The taps at step 0, if `found` is the final model of a run that recorded them."""
    from kvshift.training.record import read_record

    if found.name != "final" or not (found.parent / "record.jsonl").is_file():
        return None
    taps = read_record(found.parent).taps
    if not taps or taps[0].step != 0:
        return None
    return {"k_weight": taps[0].keys, "v_weight": taps[0].values}
