"""What is said while runs go on."""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import pytest
from rich.console import Console

from kvshift.pilot import display
from kvshift.pilot.execute import Finished, Progress


@pytest.fixture
def told(place: Any, monkeypatch: pytest.MonkeyPatch):
    """The lines of a pilot whose runs take `pace` times as long as planned."""

    def run(pace: float) -> str:
        clock = [0.0]
        monkeypatch.setattr("time.monotonic", lambda: clock[0])
        stream = io.StringIO()
        progress = Progress(place.plan, done_before=0, waiting=deque(place.plan.runs), began=0.0)
        with display.watching(Console(file=stream, width=300)) as watch:
            watch(progress, None)
            for run in place.plan.runs:
                progress.waiting.popleft()
                clock[0] += pace * run.expected_seconds
                ended = Finished(run, "finished", 3.0, pace * run.expected_seconds)
                progress.finished.append(ended)
                watch(progress, ended)
        return stream.getvalue()

    return run


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_plan_is_whole_at_any_width(plan_for: Any, width: int) -> None:
    plan = plan_for(sizes=("d16-L1", "d32-L1"), seeds=(0,), tokens=400_000)
    stream = io.StringIO()
    display.show_plan(plan, Console(file=stream, width=width))
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for size in plan.sizes:
        assert size.name in shown
        assert display.count(size.parameters) in shown
    assert "2 arms × 2 sizes × 1 seed, and 1 shorter run of the candidate that tests" in " ".join(
        shown.replace("│", " ").split()
    )
    assert ("Layers" in shown) == (width > 72)


@pytest.mark.parametrize("pace", [0.5, 1.0, 1.05])
def test_a_pilot_in_time_says_nothing_about_it(told, pace) -> None:
    assert "slower" not in told(pace)


def test_a_late_pilot_says_so_once_with_the_whole_delay(told, place) -> None:
    lines = told(1.5).splitlines()
    (warning,) = [line for line in lines if "slower than when it was measured" in line]
    assert lines.index(warning) == 4  # after the fourth run: a single slow one proves nothing
    delay = display.format_duration(0.5 * place.plan.expected_seconds)
    assert f"about {delay} more than planned" in warning


def test_the_delay_counts_every_device(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = place.plan.model_copy(update={"devices": 2})
    progress = Progress(plan, done_before=0, waiting=deque(plan.runs), began=0.0)
    assert progress.seconds_late(0.0) == pytest.approx(0)
    assert progress.seconds_late(7.0) == pytest.approx(7.0)
