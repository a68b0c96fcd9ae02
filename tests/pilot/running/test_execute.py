from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvshift.errors import OutputError
from kvshift.pilot.execute import Progress, records, unfinished
from kvshift.pilot.state import PilotState


def names(place: Any) -> list[str]:
    return [run.name for run in place.plan.runs]


def test_every_run_is_trained_in_order_and_a_second_start_does_nothing(place: Any) -> None:
    place.execute()
    assert place.trained() == names(place)
    assert unfinished(place.plan, place.folder) == []
    place.execute()
    assert place.trained() == names(place)
    assert {record.status for record in records(place.plan, place.folder, place.state).values()} == {
        "finished"
    }


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "SIGKILL"),
        ("exit", "code 3"),
        ("raise", "ValueError: something odd"),
        ("data", "the text is gone"),
    ],
)
def test_a_run_that_dies_costs_only_itself_and_is_retried_at_the_next_start(
    place: Any, how: str, said: str
) -> None:
    victim = "d16-L1-kvshift-seed0"
    place.behave(**{victim.replace("-", "_"): how})
    place.execute()
    found = records(place.plan, place.folder, place.state)
    assert found[victim].status == "failed"
    assert said in (found[victim].error or "")
    assert "log.txt" in (found[victim].error or "")
    assert all(record.status == "finished" for name, record in found.items() if name != victim)
    assert victim in place.folder.load_state().failures

    place.behave()
    place.execute()
    assert place.trained() == [*names(place), victim]
    assert place.folder.load_state().failures == {}
    assert records(place.plan, place.folder, place.state)[victim].status == "finished"


def test_a_diverged_run_is_a_result_and_not_repeated(place: Any) -> None:
    place.behave(d16_L1_vanilla_seed0="diverge")
    place.execute()
    place.execute()
    assert place.trained() == names(place)
    assert records(place.plan, place.folder, place.state)["d16-L1-vanilla-seed0"].status == "diverged"
    assert place.folder.load_state().failures == {}


@pytest.mark.parametrize("how", ["full", "oserror"])
def test_a_full_disk_stops_the_pilot_and_the_rest_is_done_later(place: Any, how: str) -> None:
    place.behave(d32_L1_vanilla_seed0=how)
    with pytest.raises(OutputError, match="disk is full"):
        place.execute()
    assert len(place.trained()) == 3
    place.behave()
    place.execute()
    assert unfinished(place.plan, place.folder) == []
    assert place.trained() == [*names(place)[:3], *names(place)[2:]]


def test_ctrl_c_ends_the_children_and_leaves_a_state_that_goes_on(place: Any) -> None:
    place.behave(d16_L1_kvshift_seed0="hang")
    hanging = place.folder.path / "hanging.txt"

    def interrupt() -> None:
        while not hanging.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        place.execute()
    assert not psutil.pid_exists(int(hanging.read_text()))
    assert len(unfinished(place.plan, place.folder)) == len(place.plan.runs) - 1
    assert place.folder.load_state().elapsed_seconds > 0
    place.behave()
    place.execute()
    assert unfinished(place.plan, place.folder) == []
    assert place.trained().count("d16-L1-vanilla-seed0") == 1


PARENT = """
import sys
sys.path.insert(0, {helpers!r})
from pathlib import Path
from kvshift.pilot.execute import execute
from kvshift.pilot.state import PilotFolder, Stopwatch
if __name__ == "__main__":
    folder = PilotFolder(Path({folder!r}))
    state = folder.load_state()
    execute(folder.load_plan(), folder, state, watch=lambda *_: None, stopwatch=Stopwatch(state),
            train="fake_runs:train")
"""


def test_a_pilot_killed_outright_goes_on_with_what_is_missing(place: Any, tmp_path: Path) -> None:
    place.behave(d32_L1_vanilla_seed0="hang")
    script = tmp_path / "parent.py"
    helpers = str(Path(__file__).parent / "helpers")
    script.write_text(PARENT.format(helpers=helpers, folder=str(place.folder.path)))
    parent = subprocess.Popen([sys.executable, str(script)])
    hanging = place.folder.path / "hanging.txt"
    while not (hanging.exists() and hanging.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int(hanging.read_text()))
    parent.kill()
    parent.wait()
    child.wait(timeout=10)
    place.behave()
    place.execute()
    assert unfinished(place.plan, place.folder) == []
    assert place.trained() == [*names(place)[:3], *names(place)[2:]]


@pytest.mark.parametrize("visible", [None, "2,5"])
def test_several_devices_each_train_one_run_at_a_time(
    place: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runs = tuple(
        run.model_copy(update={"recipe": run.recipe.model_copy(update={"device": "cuda"})})
        for run in place.plan.runs
    )
    place.plan = place.plan.model_copy(update={"devices": 2, "runs": runs})
    place.behave(**{name.replace("-", "_"): "gpu" for name in names(place)})
    place.execute()
    seen = [(place.folder.path / f"gpu-{name}").read_text() for name in names(place)]
    assert set(seen) == ({"0", "1"} if visible is None else {"2", "5"})
    assert unfinished(place.plan, place.folder) == []


def test_what_libraries_print_does_not_reach_the_terminal(
    place: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    place.execute()
    assert "library" not in capfd.readouterr().out
    assert "library" in place.folder.log_file(names(place)[0]).read_text()


def test_time_and_memory_are_summed_over_starts(place: Any) -> None:
    place.execute()
    first = place.folder.load_state()
    assert first.elapsed_seconds > 0
    assert first.peak_memory_bytes > 10_000_000
    (place.folder.run_folder(names(place)[0]) / "status.json").unlink()
    place.state = first.model_copy()
    place.execute()
    assert place.folder.load_state().elapsed_seconds > first.elapsed_seconds


def test_time_left_shrinks_as_runs_end(place: Any) -> None:
    left: list[float] = []
    for done in range(len(place.plan.runs) + 1):
        progress = Progress(place.plan, done_before=done, waiting=deque(place.plan.runs[done:]))
        left.append(progress.seconds_left(0.0))
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(place.plan.expected_seconds)
    assert left[-1] == 0


def test_a_damaged_state_file_only_loses_the_time(place: Any) -> None:
    (place.folder.path / "pilot.json").write_text("{broken")
    assert place.folder.load_state().elapsed_seconds == 0
    assert json.loads(PilotState().model_dump_json())["starts"] == 0
