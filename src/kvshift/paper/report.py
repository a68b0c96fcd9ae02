"""All verdicts of a results folder as one HTML page that is complete in itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kvshift import __version__
from kvshift.paper.experiment import Verdict
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.records import RunRecord
from kvshift.paper.reproduce import Outcome

VERDICTS: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "partly": "partly reproduced",
    "not": "not reproduced",
    "undecided": "undecided",
}
_PROGRAMS = {"torch": "PyTorch", "python": "Python"}


def render(outcomes: Sequence[Outcome], text: str) -> str:
    """The page: claim, the paper's number, ours, verdict; then each experiment's rule, figure and runs.

    Args:
        outcomes: at least one, all of one scale. Other experiments are named as not done.
        text: what their language models learned from.
    """
    done = {outcome.experiment.name for outcome in outcomes}
    style = (resources.files(__package__) / "page" / "style.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("kvshift.paper", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:",
        style=Markup(style),  # our own file, nobody's words
        scale=outcomes[0].scale,
        text=text,
        written=datetime.now(UTC).strftime("%Y-%m-%d"),
        version=__version__,
        missing=[name for name in EXPERIMENTS if name not in done],
        sections=[_section(outcome) for outcome in outcomes],
    )


def _section(outcome: Outcome) -> dict[str, Any]:
    records = outcome.records
    return {
        "experiment": outcome.experiment,
        "verdict": VERDICTS[outcome.judgement.verdict],
        "kind": outcome.judgement.verdict,
        "ours": outcome.judgement.ours,
        "finding": outcome.judgement.finding,
        "figure": base64.b64encode(outcome.figure).decode(),
        "took": f"{'at least ' if any(record.resumed for record in records) else ''}"
        f"{sum(record.seconds for record in records):.0f} s",
        "reads_text": outcome.reads_text,
        "devices": "; ".join(sorted({record.device for record in records})),
        "versions": _versions(records),
        "dates": " to ".join(
            sorted({min(record.started for record in records)[:10], max(r.started for r in records)[:10]})
        ),
        "runs": [
            {
                "name": record.run,
                "settings": ", ".join(f"{name} {value}" for name, value in record.settings.items()),
                "took": record.took,
            }
            for record in records
        ],
    }


def _versions(records: Sequence[RunRecord]) -> str:
    """Of every program, the versions that the runs were done with, in the order of the runs."""
    found: dict[str, list[str]] = {}
    for record in records:
        for program, version in record.versions.items():
            of_program = found.setdefault(_PROGRAMS.get(program, program), [])
            if version not in of_program:
                of_program.append(version)
    return ", ".join(f"{program} {' and '.join(versions)}" for program, versions in found.items())
