from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from kvshift.errors import OutputError
from kvshift.training import checkpoint, read_record, run
from kvshift.training.record import RecordWriter
from kvshift.training.trainer import RunTrainer


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception`, and the test undoes what a `finally` would tidy up."""


@pytest.fixture(scope="module")
def recipe(make_recipe):
    """A checkpoint each step; dropout, so that the random state matters."""
    model = {**make_recipe().model, "attention_dropout": 0.1}
    return make_recipe(model=model, tokens=14 * 128, evaluations=5, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def rare(recipe):
    """The same run without checkpoints, to go on with: they cost time and change nothing."""
    return recipe.model_copy(update={"checkpoint_seconds": 1000.0})


@pytest.fixture(scope="module")
def whole(rare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(rare, folder)
    return folder


@pytest.fixture
def same(whole, lines_without_times, final_bytes):
    def check(folder: Path) -> None:
        assert lines_without_times(folder) == lines_without_times(whole)
        assert final_bytes(folder) == final_bytes(whole)

    return check


def _train(recipe, folder):
    """In a process of its own, and slowly: however busy the machine is, there is time to kill it."""
    step = RunTrainer.training_step

    def slow(self, *args):
        time.sleep(0.1)
        return step(self, *args)

    RunTrainer.training_step = slow
    run(recipe, folder)


def test_killed_at_random_moments(recipe, tmp_path, context, same):
    draw = random.Random(1)
    folder = tmp_path / "run"
    kills = 0
    for _ in range(10):
        process = context.Process(target=_train, args=(recipe, folder))
        process.start()
        lines = _count(folder)
        # Wait for the record to grow, so that every start gets somewhere, then a random moment more.
        while process.is_alive() and _count(folder) < lines + 2:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    run(recipe, folder)
    assert kills >= 2
    same(folder)


def test_what_was_watched_is_the_same_after_a_kill(recipe, rare, tmp_path, monkeypatch, whole, final_bytes):
    def watch(model, windows):
        return {"weight": float(model.lm_head.weight.detach().sum()), "batches": len(windows.batches)}

    undisturbed = run(rare, tmp_path / "undisturbed", watch=watch)
    assert final_bytes(tmp_path / "undisturbed") == final_bytes(whole)  # to be watched changes nothing
    assert [point.step for point in undisturbed.watched] == [point.step for point in undisturbed.evaluations]
    assert len({point.values["weight"] for point in undisturbed.watched}) == 5
    _interrupt(monkeypatch, recipe, tmp_path / "run", RunTrainer, "training_step", 9, watch=watch)
    assert 0 < len(read_record(tmp_path / "run").watched) < 5
    assert run(rare, tmp_path / "run", watch=watch).watched == undisturbed.watched


def test_killed_before_the_first_checkpoint(rare, tmp_path, monkeypatch, same):
    _interrupt(monkeypatch, rare, tmp_path / "run", RunTrainer, "training_step", 7)
    assert read_record(tmp_path / "run").status == "unfinished"
    run(rare, tmp_path / "run")
    same(tmp_path / "run")


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (checkpoint, "save_weights", 9),  # in the middle of a checkpoint
        (checkpoint, "save_rng", 9),
        (checkpoint, "sync_file", 3),
        (checkpoint.os, "rename", 9),
        (checkpoint, "_listed", 9),  # renamed, the old one not yet deleted
        (RecordWriter, "write", 14),
        (RunTrainer, "evaluate", 2),
        (RunTrainer, "_save_checkpoint", 9),  # after the evaluation
        (checkpoint, "delete_checkpoints", 1),  # after everything
    ],
)
def test_killed_at_a_nasty_place(recipe, rare, tmp_path, monkeypatch, same, owner, name, call):
    folder = tmp_path / "run"
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # a killed process tidies nothing up
    _interrupt(monkeypatch, recipe, folder, owner, name, call)
    run(rare, folder)
    same(folder)
    assert not (folder / "checkpoints").exists()
    assert not list(folder.glob(".*"))


def test_killed_while_the_final_model_is_written(recipe, rare, tmp_path, monkeypatch, same):
    from transformers import PreTrainedModel

    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)
    _interrupt(monkeypatch, recipe, tmp_path / "run", PreTrainedModel, "save_pretrained", 1)
    run(rare, tmp_path / "run")
    same(tmp_path / "run")


def test_half_a_line_is_cut_off(recipe, rare, tmp_path, monkeypatch, same):
    _interrupt(monkeypatch, recipe, tmp_path / "run", RunTrainer, "training_step", 9)
    with open(tmp_path / "run" / "record.jsonl", "ab") as file:
        file.write(b'{"event": "step", "st')
    assert len(read_record(tmp_path / "run").steps) == 8
    run(rare, tmp_path / "run")
    same(tmp_path / "run")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "run.json", "manifest.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    recipe, rare, tmp_path, monkeypatch, same, damage, name
):
    folder = tmp_path / "run"
    _interrupt(monkeypatch, recipe, folder, RunTrainer, "training_step", 9)
    damage(folder / "checkpoints" / "step-00000008" / name)
    assert checkpoint.latest_checkpoint(folder) == folder / "checkpoints" / "step-00000007"
    run(rare, folder)
    same(folder)
    assert '"start", "step": 7' in (folder / "record.jsonl").read_text()


def test_all_damaged_starts_over(recipe, rare, tmp_path, monkeypatch, same):
    folder = tmp_path / "run"
    _interrupt(monkeypatch, recipe, folder, RunTrainer, "training_step", 9)
    for path in (folder / "checkpoints").iterdir():
        _truncate(path / "optimizer.safetensors")
    run(rare, folder)
    same(folder)
    assert (folder / "record.jsonl").read_text().count('"start"') == 1


def test_a_record_shorter_than_the_checkpoint_says_starts_over(recipe, rare, tmp_path, monkeypatch, same):
    folder = tmp_path / "run"
    _interrupt(monkeypatch, recipe, folder, RunTrainer, "training_step", 9)
    os.truncate(folder / "record.jsonl", 100)
    run(rare, folder)
    same(folder)


def test_optimizer_and_random_state_come_back_exactly(recipe, tmp_path, monkeypatch):
    """Without them the kill tests would still pass if nothing depended on them: it does."""
    folder = tmp_path / "run"
    _interrupt(monkeypatch, recipe, folder, RunTrainer, "training_step", 9)
    saved = checkpoint._read(folder / "checkpoints" / "step-00000008" / "optimizer.safetensors")
    assert {key.rsplit("/")[-1] for key in saved} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(value == 8 for key, value in saved.items() if key.endswith("/step"))
    torch.manual_seed(3)
    checkpoint.save_rng(tmp_path)
    drawn = [torch.rand(3).tolist(), random.random()]
    checkpoint.load_rng(tmp_path)
    assert [torch.rand(3).tolist(), random.random()] == drawn


@pytest.mark.parametrize("place", ["checkpoint", "record", "final"])
def test_full_disk(recipe, rare, tmp_path, monkeypatch, same, place):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if place == "checkpoint":
            patch.setattr(checkpoint, "save_file", full)
        elif place == "record":
            patch.setattr(RunTrainer, "take_loss", full_record(patch, full))
        else:
            patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(OutputError, match="disk is full"):
            run(recipe, folder)
        leftovers = [path.name for path in folder.rglob(".*")]
    assert leftovers == []
    if place != "record":
        record = read_record(folder)
        assert record.status == "failed"
        assert "disk is full" in record.error
    run(rare, folder)
    same(folder)


def full_record(patch, full):
    """From the sixth step on the record cannot grow."""
    original = RunTrainer.take_loss

    def take_loss(self):
        if self.state.global_step == 6:
            patch.setattr(RecordWriter, "_append", full)
        return original(self)

    return take_loss


def _count(folder: Path) -> int:
    try:
        return (folder / "record.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _interrupt(monkeypatch, recipe, folder, owner, name, call, watch=None):
    """Runs until `owner.name` is called for the `call`-th time, then dies there."""
    original = getattr(owner, name)
    calls = 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            run(recipe, folder, watch=watch)
    monkeypatch.undo()


def test_a_loss_averaged_over_steps_is_carried_over(recipe, rare, tmp_path, monkeypatch, lines_without_times):
    """A long run records every so many steps; here a checkpoint falls between two such points."""
    few = pytest.MonkeyPatch()
    few.setattr("kvshift.training.schedule.RECORDED_POINTS", 4)
    try:
        run(rare, tmp_path / "whole")
        _interrupt(monkeypatch, recipe, tmp_path / "run", RunTrainer, "training_step", 12)
        run(rare, tmp_path / "run")
    finally:
        few.undo()
    assert [point.step for point in read_record(tmp_path / "run").steps] == [4, 8, 12, 14]
    assert lines_without_times(tmp_path / "run") == lines_without_times(tmp_path / "whole")
