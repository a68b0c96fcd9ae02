"""The real experiments: the whole path at scale tiny, and their rules on records that say otherwise."""

from __future__ import annotations

import copy
import json

import pytest

from kvshift.paper.experiment import SCALES, Measurement
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.records import ResultsFolder

pytest.importorskip("matplotlib")


@pytest.fixture
def measurements(tiny):
    """What the tiny runs of an experiment measured, free to be changed."""

    def read(name: str) -> list[Measurement]:
        records = ResultsFolder(tiny, "tiny").read(EXPERIMENTS[name]).values()
        return [copy.deepcopy(record.measurement()) for record in records]

    return read


def test_the_command_leaves_everything(tiny) -> None:
    for name in EXPERIMENTS:
        assert (tiny / name / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((tiny / name / "verdict.json").read_text())["verdict"] == "undecided"
    page = (tiny / "report.html").read_text()
    assert page.count('class="verdict undecided">undecided</td>') == len(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_descriptions_are_whole(name) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert experiment.runs.keys() == set(SCALES)
    for runs in experiment.runs.values():
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            assert run.name == run.name.replace("/", "").strip()
            assert json.loads(json.dumps(run.settings)) == run.settings
    assert experiment.rule.startswith("Reproduced if")


@pytest.mark.parametrize("name", ["theorem1", "theorem2", "theorem3", "fig2"])
def test_by_the_rule_it_is_reproduced(measurements, name) -> None:
    assert EXPERIMENTS[name].judge(measurements(name)).verdict == "reproduced"


def theorem1_rate(found) -> None:
    found[0].measured["rate"] = -0.9


def theorem1_bound(found) -> None:
    found[0].measured["largest"][5] = 1.0


def theorem2_one(found) -> None:
    found[3].measured["errors"]["between"] = 1e-6


def theorem2_all(found) -> None:
    for each in found:
        each.measured["errors"]["between"] = 1e-6


def theorem3_rate(found) -> None:
    found[1].measured["logit_rates"]["T"] = -0.2


def theorem3_slip(found) -> None:
    found[0].measured["rows"][0]["slipped"] = 0.0


def theorem3_rows(found) -> None:
    for row in found[0].measured["rows"]:
        row["derived"] = 0.1


def fig2_lower(found) -> None:
    found[0].measured["panels"][1]["loss"][2][2] = 0.0


def fig2_ends(found) -> None:
    for panel in found[0].measured["panels"]:
        panel["ends"] = [{"alpha1": 1.0, "beta1": 0.0, "share": 1.0}]


def fig2_slipped(found) -> None:
    for panel in found[1].measured["panels"]:
        panel["ends"] = [{"alpha1": 1.0, "beta1": 0.0, "share": 1.0}]


@pytest.mark.parametrize(
    ("name", "change", "verdict"),
    [
        ("theorem1", theorem1_rate, "not"),
        ("theorem1", theorem1_bound, "partly"),
        ("theorem2", theorem2_one, "partly"),
        ("theorem2", theorem2_all, "not"),
        ("theorem3", theorem3_rate, "partly"),
        ("theorem3", theorem3_slip, "partly"),
        ("theorem3", theorem3_rows, "not"),
        ("fig2", fig2_lower, "partly"),
        ("fig2", fig2_ends, "not"),
        ("fig2", fig2_slipped, "reproduced"),  # what the slip does is told, and decides nothing
    ],
)
def test_other_records_give_other_verdicts(measurements, name, change, verdict) -> None:
    found = measurements(name)
    change(found)
    assert EXPERIMENTS[name].judge(found).verdict == verdict


def test_findings_say_what_was_measured(measurements) -> None:
    found = measurements("fig2")
    assert "free taps would go on past it" in EXPERIMENTS["fig2"].judge(found).finding
    found[0].measured["panels"][0]["free_flow"][0] = 1.0
    assert "would not all go on past it" in EXPERIMENTS["fig2"].judge(found).finding


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("theorem1", lambda found: found[0].measured["mean"].__setitem__(3, 0.5)),
        ("theorem2", lambda found: found[0].measured["errors"].__setitem__("causal", 10.0)),
        ("theorem3", lambda found: found[1].measured["loss_errors"].__setitem__(0, 1.0)),
    ],
)
def test_a_changed_record_changes_the_figure(measurements, name, change) -> None:
    found = measurements(name)
    before = EXPERIMENTS[name].draw(found, "svg")
    assert EXPERIMENTS[name].draw(found, "svg") == before
    change(found)
    assert EXPERIMENTS[name].draw(found, "svg") != before
