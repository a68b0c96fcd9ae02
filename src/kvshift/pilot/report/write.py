"""The three files a pilot ends with: a page for people, JSON for programs, CSV for tables."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from kvshift.files import output_errors, write_atomically
from kvshift.pilot.report.render import render
from kvshift.pilot.results import Results, RunRow

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_report(results: Results, folder: Path, language: str | None = None) -> Path:
    """Writes `report.html`, `report.json` and `runs.csv` into `folder`, each whole or not at all.

    Args:
        language: "en" or "ja"; None takes the pilot's own.

    Returns:
        The path of report.html.

    Raises:
        UsageError: there are no texts in this language.
        OutputError: the folder cannot be written to, or the disk is full.
    """
    folder = Path(folder)
    results = finite(results)
    page = render(results, language)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", f"{results.model_dump_json(indent=2)}\n".encode())
    write_atomically(folder / "runs.csv", runs_csv(results).encode())
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def finite(results: Results) -> Results:
    """The results without the points where a diverged run's loss was no number: JSON has none for them."""
    curves = []
    for curve in results.curves:
        columns = zip(curve.tokens, curve.nats_per_token, curve.bits_per_byte, strict=True)
        kept = [point for point in columns if all(map(math.isfinite, point))]
        tokens, nats, bits = (list(column) for column in zip(*kept, strict=True)) if kept else ([], [], [])
        update = {"tokens": tokens, "nats_per_token": nats, "bits_per_byte": bits}
        curves.append(curve.model_copy(update=update))
    return results.model_copy(update={"curves": curves})


def runs_csv(results: Results) -> str:
    """One line a run, the columns of `RunRow`, numbers in full precision, missing ones empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(RunRow.model_fields), lineterminator="\n")
    writer.writeheader()
    for run in results.runs:
        writer.writerow({name: _cell(value) for name, value in run.model_dump().items()})
    return stream.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
