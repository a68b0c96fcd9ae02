"""From records to verdicts and figures, the whole path of every experiment that trains."""

from __future__ import annotations

import shutil

import pytest

from kvshift.paper import language, learning
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.records import ResultsFolder, RunRecord
from kvshift.paper.reproduce import reproduce
from kvshift.training.task_run import TaskModel

pytest.importorskip("matplotlib")

TRAINED = [name for name, each in EXPERIMENTS.items() if each.measure is learning.measure]
LANGUAGE = [name for name, each in EXPERIMENTS.items() if each.measure is language.measure]


def records(tiny, name: str) -> list[RunRecord]:
    experiment = EXPERIMENTS[name]
    found = ResultsFolder(tiny, "tiny").read(experiment)
    return [found[run.name] for run in experiment.runs["tiny"]]


@pytest.mark.parametrize("name", [*TRAINED, *LANGUAGE])
def test_verdict_and_figure_come_from_records_without_training(tiny, tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr("kvshift.training.task_run.TaskModel", None)
    monkeypatch.setattr("kvshift.paper.language.train", None)
    (tmp_path / name).mkdir()
    for file in ("results.json", f"{name}/records.jsonl"):
        shutil.copyfile(tiny / file, tmp_path / file)
    reproduce([EXPERIMENTS[name]], "tiny", tmp_path, print)
    for file in (f"{name}.png", "verdict.json"):
        assert (tmp_path / name / file).read_bytes() == (tiny / name / file).read_bytes()


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_changed_loss_changes_figure_and_numbers(tiny, name) -> None:
    experiment = EXPERIMENTS[name]
    found = [record.measurement() for record in records(tiny, name)]
    before = experiment.draw(found, "svg"), experiment.judge(found)
    changed = found[-1].measured  # of an arm with KV shift
    changed["evaluations"][-1][1] += 1.0
    changed["predicted"] = {
        kind: [right // 2, total] for kind, (right, total) in changed["predicted"].items()
    }
    changed["taps"][-1]["keys"] = [[[0.9, 0.1], [0.9, 0.1]]]
    after = experiment.draw(found, "svg"), experiment.judge(found)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("name", "score", "count"),
    [
        ("fig1a", "first", [15, 16]),
        ("fig1b", "determined", [15, 16]),
        ("fig3", "rules", [1, 107]),
        ("vocabulary", "rules", [1, 107]),
        ("fig9", "hops=2", [3, 100]),
        ("hops_dropout", "hops=2", [3, 100]),
        ("table7", None, [3, 4]),
    ],
)
def test_a_changed_record_changes_figure_and_numbers(tiny, name, score, count) -> None:
    experiment = EXPERIMENTS[name]
    found = [record.measurement() for record in records(tiny, name)]
    before = experiment.draw(found, "svg"), experiment.judge(found)
    if score is None:
        found[0].measured["grades"]["answers"] = count
    else:
        found[0].measured["points"][-1]["scores"][score] = count
    after = experiment.draw(found, "svg"), experiment.judge(found)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_an_interrupted_experiment_goes_on_within_a_run(tiny, tmp_path, monkeypatch) -> None:
    learn = TaskModel.learn
    steps = 0

    def stop(self, lesson, done):
        nonlocal steps
        steps += 1
        if steps == 6:  # in the second run
            raise KeyboardInterrupt
        learn(self, lesson, done)

    experiment = EXPERIMENTS["fig1a"]
    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "learn", stop)
        patch.setattr("kvshift.training.task_run.CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            reproduce([experiment], "tiny", tmp_path, print)
    second = tmp_path / "fig1a" / "runs" / experiment.runs["tiny"][1].name
    assert [path.name for path in (second / "checkpoints").iterdir()] == ["step-00000001"]
    (outcome,) = reproduce([experiment], "tiny", tmp_path, print)
    whole = records(tiny, "fig1a")
    assert [record.measured for record in outcome.records] == [record.measured for record in whole]
