from __future__ import annotations

import dataclasses
import html
import re

from kvshift.cli import main
from kvshift.paper.experiment import Run
from kvshift.paper.records import ResultsFolder
from kvshift.paper.report import render
from kvshift.paper.reproduce import reproduce


def test_the_page_holds_claims_numbers_and_verdicts(make_experiment, only, tmp_path) -> None:
    one, other = make_experiment("one"), make_experiment("other")
    only(one, other)
    page = render(reproduce([one], "small", tmp_path, print), "novels")
    assert "Squares are squares &amp; more." in page
    assert "Squares were &lt;taken&gt;." in page
    assert "3 of 3 squares" in page
    assert '<td class="verdict reproduced">reproduced</td>' in page
    assert "Rule: Reproduced if all are." in page
    assert "Not done here: other." in page
    assert "square-4" in page
    assert "number 4" in page


def test_the_page_asks_for_nothing_outside(make_experiment, only, tmp_path) -> None:
    one = make_experiment("one")
    only(one)
    page = render(reproduce([one], "tiny", tmp_path, print), "novels")
    assert "Scale tiny shows that everything works; it decides nothing." in page
    assert "Not done here" not in page
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "default-src 'none'" in html.unescape(page)


def reading(experiment):
    """The same, of a language model: its runs have a text among their settings."""
    runs = tuple(Run(run.name, {**run.settings, "text": {}}) for run in experiment.runs["small"])
    return dataclasses.replace(experiment, runs={"tiny": runs, "small": runs, "gpu": runs})


def test_the_page_names_the_text_where_runs_read_one(make_experiment, only, tmp_path) -> None:
    one, other = make_experiment("one"), reading(make_experiment("other"))
    only(one, other)
    novels = tmp_path / "<b>novels & more"
    novels.mkdir()
    (novels / "novel.txt").write_text("Once.")
    for sources, shown in (((), "Python’s standard library"), ((str(novels),), html.escape(str(novels)))):
        out = tmp_path / f"out{len(sources)}"
        outcomes = reproduce([one, other], "small", out, print, sources)
        page = render(outcomes, ResultsFolder(out, "small").described().text)
        before, of_one, of_other = page.split("<h2")
        assert "Text:" not in before + of_one
        assert f"Text: {shown}</p>" in of_other
        assert "<b>novels" not in page


def test_the_page_names_devices_and_versions_of_the_runs(make_experiment, only, tmp_path) -> None:
    one = make_experiment("one")
    only(one)
    (outcome,) = reproduce([one], "small", tmp_path, print)
    first, second, third = outcome.records
    again = {"device": "NVIDIA <H200>", "versions": {"kvshift": "0.1", "torch": "2.10", "python": "3.12"}}
    early = {"device": "CPU, threads: 1", "versions": {"kvshift": "0.1", "torch": "2.9", "python": "3.12"}}
    records = [first.model_copy(update=early), *(each.model_copy(update=again) for each in (second, third))]
    page = render([dataclasses.replace(outcome, records=records)], "novels")
    done_with = "kvshift 0.1, PyTorch 2.9 and 2.10, Python 3.12, on CPU, threads: 1; NVIDIA &lt;H200&gt;"
    assert f"Done with {done_with}</p>" in page


def test_the_page_says_where_a_time_is_not_the_whole(make_experiment, only, tmp_path) -> None:
    one = make_experiment("one")
    only(one)
    (outcome,) = reproduce([one], "small", tmp_path, print)
    whole = [each.model_copy(update={"seconds": 40.04}) for each in outcome.records]
    page = render([dataclasses.replace(outcome, records=whole)], "novels")
    assert "3 runs, 120 s, " in page
    assert page.count("<td>40.0 s</td>") == 3
    part = [*whole[:2], whole[2].model_copy(update={"resumed": True})]
    page = render([dataclasses.replace(outcome, records=part)], "novels")
    assert "3 runs, at least 120 s, " in page
    assert page.count("<td>40.0 s since it went on</td>") == 1


def test_the_command_names_the_text_too(make_experiment, only, tmp_path, capsys) -> None:
    only(make_experiment("one"), reading(make_experiment("other")))
    (tmp_path / "[red]novel.txt").write_text("Once.")
    text, out = tmp_path / "[red]novel.txt", tmp_path / "out"
    for name, shown in (("one", 0), ("other", 1)):
        assert main(["reproduce", name, "--text", str(text), "--out", str(out), "--report"]) == 0
        said = "".join(capsys.readouterr().out.split())
        assert said.count(f"Languagemodelslearnedfrom{text}.") == shown
    assert f"Text: {text}</p>" in (out / "report.html").read_text()
