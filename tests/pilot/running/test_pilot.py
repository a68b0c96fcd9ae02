"""Whole pilots on a tiny text: real preparation, real training of toy models, real report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import kvshift
from kvshift.errors import BudgetError, DataError, OutputError, RunsFailedError, UsageError
from kvshift.pilot import pilot
from kvshift.pilot.pilot import run_pilot
from kvshift.pilot.settings import PilotSettings, Plan
from kvshift.pilot.state import PilotFolder

WORDS = ["red", "blue", "green", "stone", "river", "bird", "cloud", "night", "seven", "glass", "iron", "wind"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 40 documents of pseudo-random words."""
    folder = tmp_path_factory.mktemp("text")
    state = 1
    for index in range(40):
        words = []
        for _ in range(400):
            state = (state * 1103515245 + 12345) % 2**31
            words.append(WORDS[(state >> 16) % len(WORDS)] + str((state >> 20) % 50))
        (folder / f"{index}.txt").write_text(f"document {index}\n" + " ".join(words))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared texts go to a place of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVSHIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(text: Path, **changes: Any) -> PilotSettings:
    values: dict[str, Any] = {
        "sources": (str(text),),
        "budget_seconds": 3600,
        "sizes": ("d16-L1", "d24-L1"),
        "seeds": (0, 1),
        "tokens": 2000,
        "sequence_length": 32,
        "batch_size": 4,
        "device": "cpu",
    }
    return PilotSettings(**(values | changes))


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pilot in the folder it reads, as after `cd notes; kvshift pilot .`"""
    folder = text / "pilot"
    with open(tmp_path_factory.getbasetemp() / "output.txt", "w") as output:
        run_pilot(tiny(text), folder, console=Console(file=output, width=100))
    return folder


def test_a_pilot_ends_with_a_report(finished: Path) -> None:
    results = json.loads((finished / "report.json").read_text())
    assert len(results["runs"]) == 2 * 2 * 2 + 2
    assert {run["status"] for run in results["runs"]} == {"finished"}
    assert results["verdict"]["decision"]
    assert results["seconds"] > 0
    assert "<html" in (finished / "report.html").read_text()
    assert (finished / "runs.csv").read_text().count("\n") == 11


def test_it_printed_the_plan_each_run_and_where_the_report_is(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = (tmp_path_factory.getbasetemp() / "output.txt").read_text()
    for expected in (
        "The plan",
        "d16-L1",
        "[10/10]",
        "d24-L1-kvshift-seed1",
        "report.html",
        "Two seeds only",
    ):
        assert expected in said


def test_a_second_start_trains_nothing_but_may_report_differently(finished: Path, text: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()}
    elapsed = PilotFolder(finished).load_state().elapsed_seconds
    run_pilot(
        tiny(text, language="ja", price_per_hour=3.0, currency="JPY"), finished, console=Console(quiet=True)
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert PilotFolder(finished).load_state().elapsed_seconds == elapsed
    assert json.loads((finished / "report.json").read_text())["cost"]["currency"] == "JPY"
    assert 'lang="ja"' in (finished / "report.html").read_text()


@pytest.mark.parametrize(
    "changes", [{"seeds": (0, 2)}, {"arms": ("vanilla", "paper")}, {"budget_seconds": 60}]
)
def test_a_folder_with_another_pilot_is_refused(finished: Path, text: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(OutputError, match="holds another pilot"):
        run_pilot(tiny(text, **changes), finished, console=Console(quiet=True))


def test_a_pilot_on_a_text_that_has_changed_is_refused(finished: Path, text: Path) -> None:
    added = text / "added.txt"
    added.write_text("entirely new words " * 50)
    try:
        with pytest.raises(OutputError, match="another text"):
            run_pilot(tiny(text), finished, console=Console(quiet=True))
    finally:
        added.unlink()


def test_a_folder_in_use_is_refused_and_a_dead_ones_lock_is_not(finished: Path, text: Path) -> None:
    holder = (
        "import sys, time; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(finished / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(OutputError, match="Another pilot is running"):
            run_pilot(tiny(text), finished, console=Console(quiet=True))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    run_pilot(tiny(text), finished, console=Console(quiet=True))


@pytest.mark.parametrize("ended", [False, True])
def test_of_two_pilots_started_at_once_in_a_new_folder_one_is_refused(
    ended: bool, finished: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = PilotFolder(tmp_path / "pilot")
    theirs = PilotFolder(finished).load_plan()
    assert theirs is not None

    def plan(*arguments: Any) -> Plan:  # while we plan, the other makes the folder and begins, or even ends
        other.create()
        if not ended:
            held.enter_context(other.locked())
        other.save_plan(theirs)
        return theirs.model_copy(update={"tokens": 7})

    monkeypatch.setattr(pilot, "_new_plan", plan)
    with contextlib.ExitStack() as held, pytest.raises(OutputError, match="Another pilot"):
        run_pilot(tiny(text), other.path, console=Console(quiet=True))
    assert other.load_plan() == theirs


def test_a_start_that_was_killed_before_it_had_a_plan_is_no_obstacle(tmp_path: Path) -> None:
    folder = PilotFolder(tmp_path / "pilot")
    folder.create()
    folder.check()


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pilot._ending_signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_dry_run_shows_the_plan_and_writes_nothing(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    with open(tmp_path / "output.txt", "w") as output:
        assert run_pilot(tiny(text), folder, dry_run=True, console=Console(file=output)) is None
    assert "The plan" in (tmp_path / "output.txt").read_text()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"budget_seconds": 1}, BudgetError),
        ({"tokens": None, "batch_size": 64, "sequence_length": 1024}, DataError),
        ({"sources": ("/nonexistent/text",)}, DataError),
        ({"sources": ("/nonexistent/text",), "sizes": ("huge",)}, UsageError),  # before any text is read
        ({"sources": ("/nonexistent/text",), "sizes": None, "model": Path("/none.json")}, UsageError),
    ],
)
def test_a_pilot_that_cannot_be_planned_leaves_no_folder(
    text: Path, tmp_path: Path, changes: dict[str, Any], error: type
) -> None:
    folder = tmp_path / "deep" / "pilot"
    with pytest.raises(error):
        run_pilot(tiny(text, **changes), folder, console=Console(quiet=True))
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    with pytest.raises(error):
        run_pilot(tiny(text, **changes), folder, console=Console(quiet=True))
    assert list(folder.iterdir()) == []


def test_places_that_cannot_hold_a_pilot_are_refused_at_once(text: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("")
    too_long = tmp_path / ("x" * 300)
    for place in (occupied, tmp_path / "file", tmp_path / "file" / "below", Path("/proc/pilot"), too_long):
        with pytest.raises(OutputError):
            run_pilot(tiny(text), place, console=Console(quiet=True))
    assert [path.name for path in occupied.iterdir()] == ["thesis.tex"]


def test_a_damaged_plan_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"version": 1')
    with pytest.raises(OutputError, match="not a plan"):
        run_pilot(tiny(text), tmp_path, console=Console(quiet=True))


def test_a_plan_of_another_version_is_refused_whatever_its_fields_hold(text: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"version": 1, "warnings": ["Two seeds only."]}')
    with pytest.raises(OutputError, match="another version of kvshift"):
        run_pilot(tiny(text), tmp_path, console=Console(quiet=True))


def test_when_every_run_fails_there_is_no_report(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot, "execute", partial(pilot.execute, train="fake_runs:nonesuch"))
    folder = tmp_path / "pilot"
    with pytest.raises(RunsFailedError, match="nothing to compare"):
        run_pilot(tiny(text), folder, console=Console(quiet=True))
    assert not (folder / "report.html").exists()


def command(text: Path, folder: Path) -> list[str]:
    options = (
        "--budget 1h --sizes d16-L1,d24-L1 --seeds 2 --tokens 2000 --sequence-length 32 "
        "--batch-size 4 --device cpu"
    )
    return [sys.executable, "-m", "kvshift", "pilot", str(text), "--out", str(folder), *options.split()]


def test_a_pilot_stopped_again_and_again_gives_the_same_losses_as_one_that_was_not(
    finished: Path, text: Path, tmp_path: Path
) -> None:
    """One that is stopped in every way there is, each time after another run, and then left to its end."""
    folder = tmp_path / "pilot"
    for runs_done, how in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM), start=1):
        stop_after(runs_done, how, text, folder)
        assert not (folder / "report.html").exists()
    run_pilot(tiny(text), folder, console=Console(quiet=True))
    assert losses(folder) == losses(finished)


def stop_after(runs_done: int, how: signal.Signals, text: Path, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(kvshift.__file__).parents[1])}
    process = subprocess.Popen(
        command(text, folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(list(folder.glob("runs/*/status.json"))) < runs_done:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    psutil.wait_procs(family, timeout=10)
    assert not any(child.is_running() for child in family)
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert f"pilot {text} --out {folder} --budget 1h" in errors


def losses(folder: Path) -> dict[str, float]:
    runs = json.loads((folder / "report.json").read_text())["runs"]
    return {run["name"]: run["final_nats_per_token"] for run in runs}
