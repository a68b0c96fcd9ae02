from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest
import torch
from filelock import FileLock

from kvshift.errors import OutputError, UsageError
from kvshift.paper.records import ResultsFolder
from kvshift.paper.reproduce import chosen, every_outcome, reproduce


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_runs_become_records_a_verdict_and_a_figure(make_experiment, counter, tmp_path) -> None:
    said: list[str] = []
    (outcome,) = reproduce([make_experiment()], "small", tmp_path / "out", said.append)
    assert outcome.judgement.verdict == "reproduced"
    assert outcome.judgement.ours == "3 of 3 squares"
    assert [line.split(",")[0] for line in said] == [f"squares: run {n} of 3" for n in (1, 2, 3)]
    own = tmp_path / "out" / "squares"
    assert (own / "squares.png").read_bytes() == outcome.figure == b'["png", 4, 9, 16]'
    records = lines(own / "records.jsonl")
    assert [record["settings"]["number"] for record in records] == [2, 3, 4]
    assert records[0]["versions"].keys() == {"kvshift", "torch", "python"}
    assert records[0]["device"] == f"CPU, threads: {torch.get_num_threads()}"
    verdict = json.loads((own / "verdict.json").read_text())
    assert verdict["verdict"] == "reproduced"
    assert verdict["rule"] == "Reproduced if all are."
    assert verdict["runs"] == ["square-2", "square-3", "square-4"]


def test_an_interrupted_reproduction_goes_on_where_it_stopped(make_experiment, counter, tmp_path) -> None:
    counter.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        reproduce([make_experiment()], "small", tmp_path, print)
    assert counter.done == [2, 3]
    assert (tmp_path / "squares" / "runs" / "square-4" / "checkpoint").exists()
    assert not (tmp_path / "squares" / "verdict.json").exists()
    counter.stop_at = None
    said: list[str] = []
    (outcome,) = reproduce([make_experiment()], "small", tmp_path, said.append)
    assert counter.done == [2, 3, 4]
    assert [record.resumed for record in outcome.records] == [False, False, True]
    assert next(line for line in said if "square-4" in line).endswith(" s since it went on")
    reproduce([make_experiment()], "small", tmp_path, print)
    assert counter.done == [2, 3, 4]


def test_verdict_and_figure_follow_a_changed_record(make_experiment, counter, tmp_path) -> None:
    reproduce([make_experiment()], "small", tmp_path, print)
    file = tmp_path / "squares" / "records.jsonl"
    file.write_text(file.read_text().replace('"square": 9', '"square": 10'))
    (outcome,) = reproduce([make_experiment()], "small", tmp_path, print)
    assert outcome.judgement.verdict == "partly"
    assert outcome.figure == b'["png", 4, 10, 16]'
    assert len(counter.done) == 3


def test_tiny_decides_nothing_and_says_so(make_experiment, tmp_path) -> None:
    (outcome,) = reproduce([make_experiment()], "tiny", tmp_path, print)
    assert outcome.judgement.verdict == "undecided"
    assert outcome.judgement.finding.startswith(
        "Scale tiny decides nothing; by the rule it would be: reproduced."
    )
    assert json.loads((tmp_path / "squares" / "verdict.json").read_text())["verdict"] == "undecided"
    assert len(outcome.records) == 1


def test_a_number_that_is_not_finite_is_no_record(make_experiment, counter, tmp_path) -> None:
    counter.broken = float("nan")
    with pytest.raises(ValueError):
        reproduce([make_experiment()], "small", tmp_path, print)
    assert not (tmp_path / "squares" / "records.jsonl").exists()


def test_all_means_every_experiment_and_unknown_ones_are_listed(make_experiment, only) -> None:
    one, other = make_experiment("one"), make_experiment("other")
    only(one, other)
    assert chosen("all") == [one, other]
    assert chosen("other") == [other]
    assert chosen("other", "one", "other") == [one, other]
    assert chosen("one", "all") == [one, other]
    with pytest.raises(UsageError, match="'fig99'; expected all, one, other"):
        chosen("one", "fig99")


def test_a_scale_that_needs_a_gpu_is_refused_without_one(make_experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    experiments = [make_experiment("light"), make_experiment("heavy", uses_gpu=True)]
    with pytest.raises(UsageError, match="--scale gpu: heavy needs a GPU"):
        reproduce(experiments, "gpu", tmp_path / "out", print)
    assert not (tmp_path / "out").exists()
    reproduce(experiments[:1], "gpu", tmp_path / "light", print)
    reproduce(experiments, "small", tmp_path / "small", print)


def test_records_alone_need_no_gpu(make_experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    heavy = make_experiment("heavy", uses_gpu=True)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cuda, "is_available", lambda: True)
        elsewhere.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        reproduce([heavy], "gpu", tmp_path, print)
    (tmp_path / "heavy" / "heavy.png").unlink()
    reproduce([heavy], "gpu", tmp_path, print)
    assert (tmp_path / "heavy" / "heavy.png").exists()


def test_what_another_experiment_has_recorded_needs_no_gpu(
    make_experiment, only, counter, tmp_path, monkeypatch
) -> None:
    first = make_experiment("first", uses_gpu=True)
    second, third = (  # a bound method is another one each time
        dataclasses.replace(make_experiment(name, uses_gpu=True, numbers=numbers), measure=first.measure)
        for name, numbers in (("second", (3, 4)), ("third", (2, 3, 5)))
    )
    only(first, second, third)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cuda, "is_available", lambda: True)
        elsewhere.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        reproduce([first], "gpu", tmp_path, print)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reproduce([second], "gpu", tmp_path, print)
    assert counter.done == [2, 3, 4]
    with pytest.raises(UsageError, match="--scale gpu: third needs a GPU"):
        reproduce([third], "gpu", tmp_path, print)


def test_without_matplotlib_nothing_begins(make_experiment, counter, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'kvshift\[plots\]'"):
        reproduce([make_experiment()], "small", tmp_path / "out", print)
    assert counter.done == []
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_scale_is_refused(make_experiment, tmp_path) -> None:
    reproduce([make_experiment()], "tiny", tmp_path, print)
    with pytest.raises(OutputError, match=r"holds results at scale tiny, not small.*--scale tiny"):
        reproduce([make_experiment()], "small", tmp_path, print)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"version": 0, "scale": "small"}', "records of version 0; this kvshift reads and writes version 1"),
        ('{"version": 2, "scale": "small"}', "records of version 2"),
        ("{", "results.json cannot be read"),
        ("[]", "results.json cannot be read"),
        ('{"version": 1}', "results.json cannot be read; give another --out"),
        ('{"version": 1, "scale": "huge"}', "results.json cannot be read"),
        ('{"version": 1, "scale": "small", "sources": 3}', "results.json cannot be read"),
    ],
)
def test_a_folder_of_another_version_is_refused(make_experiment, tmp_path, content, said) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(OutputError, match=said):
        reproduce([make_experiment()], "small", tmp_path, print)


def test_records_of_another_version_of_the_experiment_are_refused(make_experiment, counter, tmp_path) -> None:
    reproduce([make_experiment()], "small", tmp_path, print)
    before = list(counter.done)
    newer = make_experiment(version=2)
    with pytest.raises(OutputError, match=r"version 1 of squares; this kvshift has version 2\. Delete"):
        reproduce([make_experiment("first"), newer], "small", tmp_path, print)
    assert counter.done == before  # the first experiment did not begin either


def test_runs_that_the_experiment_no_longer_has_are_refused(make_experiment, tmp_path) -> None:
    reproduce([make_experiment()], "small", tmp_path, print)
    with pytest.raises(OutputError, match="line 1: run 'square-2' with these settings is none of squares"):
        reproduce([make_experiment(numbers=(3, 4))], "small", tmp_path, print)


def test_damaged_records_are_refused(make_experiment, tmp_path) -> None:
    reproduce([make_experiment()], "small", tmp_path, print)
    file = tmp_path / "squares" / "records.jsonl"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(OutputError, match=r"line 3, is no record.*Delete .*squares to begin it again"):
        reproduce([make_experiment()], "small", tmp_path, print)


@pytest.mark.parametrize("part", ["judge", "draw"])
@pytest.mark.parametrize(
    ("measured", "cause"),
    [("{}", KeyError), ('{"square": "four"}', TypeError), ('{"square": 0}', ValueError)],
)
def test_records_that_lack_what_was_measured_are_refused(
    make_experiment, tmp_path, part, measured, cause
) -> None:
    def read(measurements, *kind):
        for each in measurements:
            math.isqrt(each.measured["square"] - 1)

    experiment = make_experiment()
    (outcome,) = reproduce([experiment], "small", tmp_path, print)
    file = tmp_path / "squares" / "records.jsonl"
    file.write_text(file.read_text().replace('{"square": 9}', measured))
    always = {"judge": lambda measurements: outcome.judgement, "draw": lambda measurements, kind: b"PNG"}
    experiment = dataclasses.replace(experiment, **{**always, part: read})
    (tmp_path / "squares" / "verdict.json").unlink()
    with pytest.raises(
        OutputError, match=r"squares/records.jsonl does not hold.*Delete .*squares to"
    ) as found:
        reproduce([experiment], "small", tmp_path, print)
    assert isinstance(found.value.__cause__, cause)
    assert not (tmp_path / "squares" / "verdict.json").exists()


def test_what_a_judge_says_to_the_user_stays_as_it_is(make_experiment, tmp_path) -> None:
    def judge(measurements):
        raise UsageError("Mine.")

    with pytest.raises(UsageError, match=r"^Mine\.$"):
        reproduce([dataclasses.replace(make_experiment(), judge=judge)], "small", tmp_path, print)


def test_a_file_in_the_place_of_an_experiments_folder_is_refused(make_experiment, counter, tmp_path) -> None:
    ResultsFolder(tmp_path, "small").open()
    (tmp_path / "squares").write_text("mine")
    with pytest.raises(OutputError, match=r"records.jsonl cannot be read: Not a dir.*Delete .*squares to"):
        reproduce([make_experiment()], "small", tmp_path, print)
    assert counter.done == []


def test_other_folders_and_files_are_left_alone(make_experiment, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"already holds other files \(thesis.tex\)"):
        reproduce([make_experiment()], "small", tmp_path, print)
    with pytest.raises(OutputError, match=r"Cannot write"):
        reproduce([make_experiment()], "small", tmp_path / "thesis.tex", print)


def test_one_process_at_a_time(make_experiment, counter, tmp_path) -> None:
    ResultsFolder(tmp_path, "small").open()
    with FileLock(tmp_path / ".lock"), pytest.raises(OutputError, match="Another reproduction is running"):
        reproduce([make_experiment()], "small", tmp_path, print)
    assert counter.done == []
    reproduce([make_experiment()], "small", tmp_path, print)


def test_every_outcome_adds_what_is_complete(make_experiment, counter, only, tmp_path) -> None:
    first, half, last = (make_experiment(name) for name in ("first", "half", "last"))
    only(first, half, last)
    reproduce([last], "small", tmp_path, print)
    counter.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        reproduce([half], "small", tmp_path, print)
    counter.stop_at = None
    known = reproduce([first], "small", tmp_path, print)
    outcomes = every_outcome(ResultsFolder(tmp_path, "small"), known)
    assert [outcome.experiment.name for outcome in outcomes] == ["first", "last"]
