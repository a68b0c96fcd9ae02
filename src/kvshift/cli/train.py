"""`kvshift train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvshift.errors import UsageError


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.json", help="A recipe; every run keeps its own.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the run is kept, or goes on.")],
) -> None:
    """Train one model from a recipe, or go on with a run that was interrupted.

    A pilot's folder holds the recipe of each of its runs: runs/NAME/recipe.json.
    """
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{recipe} cannot be read: {error}") from None

    from pydantic import ValidationError
    from rich.console import Console

    from kvshift.training.recipe import Recipe

    try:
        wanted = Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{recipe}: {field}: {first['msg']}.") from None

    from kvshift.training.run import Progress, run

    console = Console()
    with console.status("starting") as status:

        def show(progress: Progress) -> None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
            status.update(f"step {progress.step:,} of {progress.steps:,}{loss}")

        record = run(wanted, folder, on_progress=show)
    if record.final_loss is None:
        console.print(f"{record.status}: {record.error}", soft_wrap=True)
    else:
        console.print(f"finished, validation loss {record.final_loss:.4f} nats a token")
