from __future__ import annotations

import dataclasses
import json
import os
import time

import pytest

from kvshift.durations import format_duration
from kvshift.paper.measure import measured
from kvshift.paper.place import Texts
from kvshift.paper.progress import Progress, Task, share_done
from kvshift.paper.records import ResultsFolder
from kvshift.paper.reproduce import reproduce


def write(file, *points, end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps(point) for point in points) + end)


@pytest.mark.parametrize(
    ("settings", "points", "share"),
    [
        ({"steps": 400}, [{"event": "start"}, {"event": "evaluation", "step": 100}], 0.25),
        ({"tokens": 1000}, [{"event": "step", "step": 3, "tokens": 750}, {"event": "taps"}], 0.75),
        ({"steps": 400}, [{"event": "start", "step": 0}], 0.0),
        ({"steps": 400}, [{"event": "start"}], 0.0),
        ({"number": 2}, [{"event": "evaluation", "step": 100}], 0.0),
        ({"tokens": 1000}, [{"tokens": 1024}], 1.0),  # the last batch may go past the end
    ],
)
def test_the_last_point_tells_how_far_a_run_is(tmp_path, settings, points, share) -> None:
    write(tmp_path / "record.jsonl", *points)
    assert share_done(tmp_path / "record.jsonl", settings) == share


def test_a_line_that_is_being_written_is_not_read(tmp_path) -> None:
    write(tmp_path / "record.jsonl", {"step": 100}, {"step": 200}, end="")
    assert share_done(tmp_path / "record.jsonl", {"steps": 400}) == 0.25


def test_the_end_of_a_long_record_suffices(tmp_path) -> None:
    write(tmp_path / "record.jsonl", *({"step": step, "scores": "x" * 500} for step in range(1, 401)))
    assert share_done(tmp_path / "record.jsonl", {"steps": 400}) == 1.0


@pytest.fixture
def progress(make_experiment, tmp_path):
    """Of three runs, whose records say how many of 100 steps are done."""
    experiment = make_experiment()
    folder = ResultsFolder(tmp_path, "small")
    folder.open()
    for run in experiment.runs["small"]:
        run.settings["steps"] = 100
    return Progress([Task(experiment, run) for run in experiment.runs["small"]], folder, lambda line: None)


def test_runs_under_way_are_told_with_the_time_that_is_left(progress) -> None:
    first, second, third = progress.open
    progress.measured(first, measured(*first, progress.folder, Texts()))
    assert progress.line().startswith("1 of 3 runs done, about ")
    progress.began = time.monotonic() - 150
    for task, step in ((second, 25), (third, 25)):
        write(progress.folder.run_folder(*task) / "record.jsonl", {"step": step})
    # 1.5 runs took 150 s, and as much is left.
    left = format_duration(150)
    assert (
        progress.line() == f"1 of 3 runs done, squares square-3 25%, squares square-4 25%, about {left} left"
    )


def test_what_an_interrupted_reproduction_left_is_not_under_way(progress) -> None:
    file = progress.folder.run_folder(*progress.open[0]) / "record.jsonl"
    write(file, {"step": 25})
    os.utime(file, (progress.began_at - 10, progress.began_at - 10))
    assert progress.line() == "0 of 3 runs done"


def test_it_is_shown_while_runs_go_on_and_never_after(make_experiment, counter, tmp_path) -> None:
    quick = counter.measure

    def slow(settings, place):
        write(place.folder / "record.jsonl", {"step": 30})
        time.sleep(0.3)
        return quick(settings, place)

    experiment = dataclasses.replace(make_experiment(), measure=slow)
    for run in experiment.runs["small"]:
        run.settings["steps"] = 100
    shown: list[str] = []
    reproduce([experiment], "small", tmp_path / "out", print, show=shown.append, show_every=0.05)
    assert any("squares square-2 30%" in line for line in shown)
    assert any(line.startswith("2 of 3 runs done, squares square-4 30%, about ") for line in shown)
    count = len(shown)
    time.sleep(0.2)
    assert len(shown) == count
