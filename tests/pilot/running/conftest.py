"""Planning and running without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvshift.pilot.plan import DeviceInfo, make_plan
from kvshift.pilot.settings import PilotSettings, Plan
from kvshift.pilot.state import PilotFolder, PilotState, Stopwatch

HELPERS = str(Path(__file__).parent / "helpers")
if HELPERS not in sys.path:  # the children that runs live in import from there too
    sys.path.insert(0, HELPERS)

from pilot_fakes import CPU, FakeText, machine  # noqa: E402


@pytest.fixture
def plan_for() -> Callable[..., Plan]:
    """`make_plan` on fakes; keywords are settings, but for the first four."""

    def plan(
        data: FakeText | None = None,
        measure: Callable[..., Any] | None = None,
        machine_info: DeviceInfo = CPU,
        spent: float = 5.0,
        **settings: Any,
    ) -> Plan:
        return make_plan(
            PilotSettings(**settings),
            data or FakeText(),
            measure=measure or machine(),
            device_info=machine_info,
            spent_seconds=spent,
        )

    return plan


@dataclass
class Place:
    """A pilot on disk whose runs are the fakes of helpers/fake_runs.py."""

    plan: Plan
    folder: PilotFolder
    state: PilotState
    seen: list[Any]

    def behave(self, **how: str) -> None:
        """Which run (by its name with _ for -) does what; see helpers/fake_runs.py."""
        behaviour = {name.replace("_", "-"): what for name, what in how.items()}
        (self.folder.path / "behaviour.json").write_text(json.dumps(behaviour))

    def execute(self) -> None:
        from kvshift.pilot.execute import execute

        def watch(progress: Any, finished: Any) -> None:
            if finished is not None:
                self.seen.append(finished)

        stopwatch = Stopwatch(self.state)
        execute(self.plan, self.folder, self.state, watch=watch, stopwatch=stopwatch, train="fake_runs:train")

    def trained(self) -> list[str]:
        """Every start of a run, in order, over all calls."""
        log = self.folder.path / "started.txt"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def place(tmp_path: Path, plan_for: Callable[..., Plan]) -> Place:
    plan = plan_for(sizes=("d16-L1", "d32-L1"), seeds=(0, 1), tokens=400_000)
    folder = PilotFolder(tmp_path / "pilot")
    folder.create()
    folder.save_plan(plan)
    return Place(plan, folder, PilotState(), [])


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)
