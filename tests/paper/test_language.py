"""Language models: what is counted, how runs pair up, which text they learned from."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from kvshift.errors import DataError, OutputError
from kvshift.paper.copying import copied
from kvshift.paper.experiment import Measurement
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.language import PAPER, SIZES, Arms, Trained, arms_runs, data_saved, taps_of
from kvshift.paper.records import ResultsFolder
from kvshift.paper.reproduce import reproduce
from kvshift.training import Recipe
from kvshift.training.data import IGNORED

NAMED = {"vanilla": None, "kv": PAPER, "gate": dataclasses.replace(PAPER, constraint="gate")}


def measurement(arm: str, seed: int, losses: list[float], **measured) -> Measurement:
    (run,) = (run for run in arms_runs("small", NAMED, seed + 1) if run.name == f"{arm}-seed{seed}")
    points = [[100 * (i + 1), loss] for i, loss in enumerate(losses)]
    found = {"text": "novels", "status": "finished", "parameters": 10, "evaluations": points, **measured}
    return Measurement(run.settings, found)


def slowly_copied(tokens: list[int], labels: list[int], positions: list[int]) -> list[bool]:
    """The same, read off the definition."""
    found = []
    for here in range(len(tokens)):
        begin = max(place for place in range(here + 1) if positions[place] == 0)
        earlier = [place for place in range(begin, here) if tokens[place] == tokens[here]]
        found.append(bool(earlier) and labels[here] != IGNORED and labels[max(earlier)] == labels[here])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_what_can_be_copied(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, (4, 23), generator=generator)
    starts = torch.rand(4, 23, generator=generator) < 0.15
    starts[:, 0] = True
    labels = tokens.roll(-1, 1)
    labels[:, -1] = IGNORED
    labels[:, :-1][starts[:, 1:]] = IGNORED
    place = torch.arange(23)
    positions = place - torch.where(starts, place, 0).cummax(1).values
    found = copied(tokens, labels, positions)
    assert found.any()
    for row in range(4):
        right = slowly_copied(tokens[row].tolist(), labels[row].tolist(), positions[row].tolist())
        assert found[row].tolist() == right


def test_gains_are_paired_by_seed_and_better_is_above_zero() -> None:
    arms = Arms(
        [
            measurement("vanilla", 0, [3.0, 2.0]),
            measurement("vanilla", 1, [3.0, 2.5]),
            measurement("vanilla", 2, [3.0], status="diverged"),
            measurement("kv", 0, [2.5, 1.75]),
            measurement("kv", 1, [3.5, 3.0]),
            measurement("kv", 2, [2.0, 1.0]),
        ],
        NAMED,
    )
    assert arms.gains("kv") == [0.25, -0.5, math.inf]
    assert arms.gains("vanilla", "kv") == [-0.25, 0.5, -math.inf]
    assert arms.gains("gate") == []
    assert arms.gains("kv", keep=lambda run: run.seed == 0) == [0.25]
    assert list(arms.by_name) == ["vanilla", "kv"]


def test_data_saved_is_read_off_the_curve() -> None:
    arms = Arms(
        [
            measurement("vanilla", 0, [3.0, 2.0]),
            measurement("vanilla", 1, [3.0, 2.0]),
            measurement("kv", 0, [2.5, 1.5]),
            measurement("kv", 1, [3.0, 2.5]),
        ],
        NAMED,
    )
    assert data_saved(arms, "kv") == [0.25, 0.0]  # half of the second hundred of two; never
    lost = [measurement("vanilla", 0, [3.0], status="diverged"), measurement("kv", 0, [2.5, 1.5])]
    assert math.isnan(data_saved(Arms(lost, NAMED), "kv")[0])


def test_a_run_diverges_by_rising_too() -> None:
    def diverged(losses: list[float], status: str = "finished") -> bool:
        found = measurement("kv", 0, losses, status=status)
        return Trained(found.settings, found.measured).diverged

    assert not diverged([3.0, 2.0, 2.4])
    assert diverged([3.0, 2.0, 2.6])
    assert diverged([3.0], "diverged")
    assert diverged([], "diverged")


def test_a_diverged_run_has_an_infinite_loss() -> None:
    found = measurement("kv", 0, [3.0], status="diverged")
    assert Trained(found.settings, found.measured).loss == math.inf


def test_runs_on_different_texts_are_not_compared() -> None:
    with pytest.raises(OutputError, match="different texts"):
        Arms([measurement("vanilla", 0, [1.0]), measurement("kv", 0, [1.0], text="other")], NAMED)


def test_both_arms_differ_in_the_shift_alone() -> None:
    runs = {run.name: run.settings for run in arms_runs("small", NAMED, 2)}
    kv, vanilla = runs["kv-seed1"], runs["vanilla-seed1"]
    assert [name for name in kv if kv[name] != vanilla[name]] == ["shift"]


@pytest.mark.parametrize("scale", SIZES)
def test_every_run_is_a_recipe(scale, tmp_path) -> None:
    for experiment in EXPERIMENTS.values():
        for run in experiment.runs[scale]:
            if "text" in run.settings:
                fields = {name: value for name, value in run.settings.items() if name != "text"}
                recipe = Recipe(data=tmp_path, **fields)
                assert json.loads(json.dumps(run.settings)) == run.settings
                assert recipe.steps >= recipe.evaluations


def test_an_arm_is_trained_once_for_all_experiments(tiny) -> None:
    folder = ResultsFolder(tiny, "tiny")
    first = folder.read(EXPERIMENTS["fig5a"])["kv-seed1"]
    again = folder.read(EXPERIMENTS["table4"])["kv-seed1"]
    assert again.started == first.started
    assert again.measured == first.measured
    assert (tiny / "fig5a" / "runs" / "kv-seed1").is_dir()
    assert not (tiny / "table4" / "runs").exists()


def test_what_is_watched_at_the_end_is_what_the_final_model_predicts(tiny) -> None:
    for record in ResultsFolder(tiny, "tiny").read(EXPERIMENTS["emergence"]).values():
        copying, evaluations = record.measured["copying"], record.measured["evaluations"]
        assert [point[0] for point in copying] == [point[0] for point in evaluations]
        assert copying[-1][1:] == record.measured["predicted"]["copied"]


def test_a_folder_keeps_to_one_text(make_experiment, tmp_path) -> None:
    (tmp_path / "novels").write_text("Call me Ishmael.")
    novels, out = str(tmp_path / "novels"), tmp_path / "out"
    reproduce([make_experiment()], "small", out, print, [novels])
    assert json.loads((out / "results.json").read_text())["sources"] == [novels]
    with pytest.raises(OutputError, match=r"with the text .*novels, not Python’s standard library; give"):
        reproduce([make_experiment()], "small", out, print)


def test_a_text_that_is_not_there_is_told_before_anything_is_made(make_experiment, counter, tmp_path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        reproduce([make_experiment()], "small", tmp_path / "out", print, [str(tmp_path / "nothing")])
    assert not (tmp_path / "out").exists()
    (tmp_path / "novels").write_text("Call me Ishmael.")
    novels, out = str(tmp_path / "novels"), tmp_path / "out"
    reproduce([make_experiment()], "tiny", out, print, [novels])
    done = len(counter.done)
    (tmp_path / "novels").unlink()
    with pytest.raises(DataError, match="no file or folder"):  # before the squares
        reproduce([make_experiment("other"), EXPERIMENTS["fig5a"]], "tiny", out, print, [novels])
    assert len(counter.done) == done
    reproduce([make_experiment()], "tiny", out, print, [novels])  # whose runs are all recorded


def test_taps_are_read_at_the_start_and_at_the_end(tiny) -> None:
    record = ResultsFolder(tiny, "tiny").read(EXPERIMENTS["table4"])["kv-seed0"]
    run = Trained(record.settings, record.measured)
    start, end = taps_of(run, 0), taps_of(run, -1)
    assert len(start) == len(end) == 2  # heads
    assert start != end
    assert all(sum(keys) == pytest.approx(1, abs=1e-6) for keys, _ in start)  # the paper's draw
