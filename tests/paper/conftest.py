from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kvshift.cli import main
from kvshift.paper import reproduce
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run
from kvshift.paper.place import Place

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


class Counter:
    """An experiment whose runs square a number; it counts them, and can be told to stop."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.stop_at: int | None = None
        self.broken: float | None = None

    def measure(self, settings: dict[str, Any], place: Place) -> dict[str, Any]:
        if settings["number"] == self.stop_at:
            place.folder.mkdir(parents=True)
            (place.folder / "checkpoint").write_text("half")
            raise KeyboardInterrupt
        self.done.append(settings["number"])
        return {"square": self.broken if self.broken is not None else settings["number"] ** 2}


def judge(measurements: Sequence[Measurement]) -> Judgement:
    right = [each.measured["square"] == each.settings["number"] ** 2 for each in measurements]
    verdict = "reproduced" if all(right) else "partly" if any(right) else "not"
    return Judgement(verdict, f"{sum(right)} of {len(right)} squares", "Squares were <taken>.")


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    return json.dumps([kind, *[each.measured["square"] for each in measurements]]).encode()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A results folder made by the command itself, once for all workers; leave its records alone."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    out = shared / "tiny"
    with FileLock(shared / "tiny.lock"):
        if not (out / "report.html").exists():
            assert main(["reproduce", "all", "--scale", "tiny", "--out", str(out), "--report"]) == 0
    return out


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def make_experiment(counter) -> Callable[..., Experiment]:
    def make(
        name: str = "squares", version: int = 1, uses_gpu: bool = False, numbers=(2, 3, 4)
    ) -> Experiment:
        runs = tuple(Run(f"square-{number}", {"number": number}) for number in numbers)
        return Experiment(
            name=name,
            version=version,
            title="Squares",
            claim="Squares are squares & more.",
            paper="n²",
            rule="Reproduced if all are.",
            runs={"tiny": runs[:1], "small": runs, "gpu": runs},
            uses_gpu=uses_gpu,
            measure=counter.measure,
            judge=judge,
            draw=draw,
        )

    return make


@pytest.fixture
def only() -> Iterator[Callable[..., None]]:
    """Makes these the experiments that there are."""
    before = dict(reproduce.EXPERIMENTS)

    def install(*experiments: Experiment) -> None:
        reproduce.EXPERIMENTS.clear()
        reproduce.EXPERIMENTS.update({experiment.name: experiment for experiment in experiments})

    yield install
    install(*before.values())  # in their order
