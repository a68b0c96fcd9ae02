"""The files: whole or absent, readable back, and safe to open."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from kvshift.errors import OutputError, UsageError
from kvshift.pilot.report import write_report
from kvshift.pilot.report.render import embedded_json
from kvshift.pilot.results import RESULTS_VERSION, Results, RunRow


def test_the_three_files_say_what_the_results_say(samples, tmp_path) -> None:
    results = samples.results("adopt_cost")
    page = write_report(results, tmp_path / "new")
    assert page == tmp_path / "new" / "report.html"
    assert sorted(os.listdir(page.parent)) == ["report.html", "report.json", "runs.csv"]
    assert Results.model_validate_json((page.parent / "report.json").read_text()) == results
    with (page.parent / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(RunRow.model_fields)
    assert [float(row["final_nats_per_token"]) for row in rows] == [
        r.final_nats_per_token for r in results.runs
    ]


def fields_of(model: type[BaseModel]) -> dict[str, list[str]]:
    """Every model of the schema with its fields."""
    schema = model.model_json_schema()
    parts = {model.__name__: schema, **schema["$defs"]}
    return {name: sorted(part["properties"]) for name, part in sorted(parts.items())}


def test_programs_that_read_the_report_find_what_its_version_promises() -> None:
    """A field that goes or is renamed needs a new RESULTS_VERSION and its own file beside this one; one that
    is added belongs into the file there is."""
    promised = Path(__file__).with_name(f"report-fields-{RESULTS_VERSION}.json")
    assert json.loads(promised.read_text()) == fields_of(Results)


def test_curves_with_nan_leave_a_json_that_can_be_read(samples, tmp_path) -> None:
    results = samples.results("diverged")
    broken = results.curves[0].model_copy(
        update={"nats_per_token": [4.0, float("nan"), float("inf")] + [3.0] * 17}
    )
    results = results.model_copy(update={"curves": [broken, *results.curves[1:]]})
    write_report(results, tmp_path)
    back = Results.model_validate_json((tmp_path / "report.json").read_text())
    assert len(back.curves[0].tokens) == 18
    drawn = re.findall(r'\bd="([^"]*)"', (tmp_path / "report.html").read_text())
    assert not any("nan" in path or "inf" in path for path in drawn)


def test_a_full_disk_leaves_the_old_files_and_nothing_half_written(samples, tmp_path, monkeypatch) -> None:
    write_report(samples.results("adopt"), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"report\.json: the disk is full"):
        write_report(samples.results("harmful"), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_where_the_folder_should_be(samples, tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        write_report(samples.results("adopt"), tmp_path / "taken")


def test_an_unknown_language_writes_nothing(samples, tmp_path) -> None:
    with pytest.raises(UsageError, match="'de'"):
        write_report(samples.results("adopt"), tmp_path, "de")
    assert list(tmp_path.iterdir()) == []


def test_the_language_is_the_pilots_own_unless_given(samples, tmp_path) -> None:
    results = samples.results("adopt")
    asked = results.settings.model_copy(update={"language": "ja"})
    results = results.model_copy(update={"settings": asked})
    assert '<html lang="ja">' in write_report(results, tmp_path / "a").read_text()
    assert '<html lang="en">' in write_report(results, tmp_path / "b", "en").read_text()


def test_embedded_json_cannot_end_its_script() -> None:
    hostile = {"</script>": "<!--&\u2028\u2029"}
    embedded = str(embedded_json(hostile))
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == hostile


def test_a_spreadsheet_runs_nothing(samples, tmp_path) -> None:
    results = samples.results("adopt")
    run = results.runs[0].model_copy(update={"name": "=HYPERLINK(1)", "error": "@SUM(1)"})
    write_report(results.model_copy(update={"runs": [run]}), tmp_path)
    assert "\n'=HYPERLINK(1)," in (tmp_path / "runs.csv").read_text()
    assert ",'@SUM(1)," in (tmp_path / "runs.csv").read_text()
