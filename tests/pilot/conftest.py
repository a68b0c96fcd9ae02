"""Hand-made pilots: a plan and records whose right answers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kvshift.pilot.analyse import analyse
from kvshift.pilot.results import Results
from kvshift.pilot.settings import Arm, PilotSettings, Plan, PlannedRun, Size
from kvshift.shift import KVShiftConfig
from kvshift.training.recipe import Recipe
from kvshift.training.record import EvaluationPoint, Record, TapsPoint

TOKENS = 1_000_000
HIDDEN = {"small": 64, "medium": 128, "large": 256}
LAYERS = {"small": 2, "medium": 3, "large": 5}
VOCABULARY = 2000
Curve = Callable[[float], float]
KVSHIFT = Arm(name="kvshift", shift=KVShiftConfig().to_dict())
VANILLA = Arm(name="vanilla", shift=None)
AGAIN = Arm(name="vanilla-again", shift=None, seed_offset=1000)


def size(name: str) -> Size:
    hidden, layers = HIDDEN[name], LAYERS[name]
    inside = layers * 12 * hidden**2
    return Size(
        name=name,
        model={"model_type": "llama", "num_attention_heads": hidden // 32, "tie_word_embeddings": True},
        parameters=inside + VOCABULARY * hidden,
        non_embedding_parameters=inside,
        layers=layers,
        hidden=hidden,
        kv_heads=hidden // 32,
        head_dim=32,
    )


def power_law(scale: float, *, floor: float = 1.0, exponent: float = 0.25) -> Curve:
    """Loss after t tokens: floor + scale · t^-exponent."""
    return lambda tokens: floor + scale * tokens**-exponent


def ending_at(loss: float) -> Curve:
    """A curve that ends at `loss` after TOKENS."""
    return lambda tokens: loss + 0.5 * (TOKENS / tokens) ** 0.25 - 0.5


@dataclass
class Pilot:
    """A plan with its records, and what to analyse it with."""

    plan: Plan
    records: dict[str, Record]

    def results(self, **changes: Any) -> Results:
        settings = {
            "data_summary": {"documents": 100, "validation_documents": 50, "train_tokens": TOKENS},
            "seconds": 1000.0,
            "peak_memory_bytes": 1 << 30,
            "device": "CPU, 2 threads",
            "created": "2025-01-01T00:00:00Z",
        }
        return analyse(self.plan, self.records, **(settings | changes))

    def change(self, name: str, **changes: Any) -> None:
        """Replace fields of one run's record."""
        self.records[name] = replace(self.records[name], **changes)


def plan_of(
    arms: tuple[Arm, Arm] = (VANILLA, KVSHIFT),
    sizes: tuple[str, ...] = ("small", "medium", "large"),
    seeds: tuple[int, ...] = (0, 1, 2),
    check: tuple[str, float] | None = None,
    **settings: Any,
) -> Plan:
    def run(role: Any, arm: Arm, where: str, seed: int, tokens: int) -> PlannedRun:
        recipe = Recipe(
            data=Path("text"),
            model=size(where).model,
            shift=arm.shift,
            seed=seed,
            tokens=tokens,
            batch_size=4,
        )
        name = f"{where}-{arm.name}-seed{seed}" + ("-check" if role == "check" else "")
        return PlannedRun(
            name=name, role=role, arm=arm.name, size=where, seed=seed, recipe=recipe, expected_seconds=10
        )

    runs = [run("main", arm, where, seed, TOKENS) for where in sizes for seed in seeds for arm in arms]
    if check:
        where, share = check
        runs += [run("check", arms[1], where, seed, int(TOKENS * share)) for seed in seeds]
    return Plan(
        settings=PilotSettings(**settings),
        data=Path("text"),
        device="CPU, 2 threads",
        devices=1,
        arms=arms,
        sizes=tuple(size(name) for name in sizes),
        seeds=seeds,
        tokens=TOKENS,
        check_share=check[1] if check else None,
        runs=tuple(runs),
        expected_seconds=600,
    )


def record_of(run: PlannedRun, curve: Curve, *, evaluations: int = 50, speed: float = 10_000.0) -> Record:
    where = size(run.size)
    shift = run.recipe.shift_config
    rows = [[[0.2, 0.8], [0.9, 0.1]][: where.kv_heads] for _ in range(where.layers)]
    points = [run.recipe.tokens * (i + 1) // evaluations for i in range(evaluations)]
    return Record(
        recipe=run.recipe,
        status="finished",
        device="CPU, 2 threads",
        versions={"torch": "2.13.0"},
        parameters=where.parameters,
        tap_parameters=0 if shift is None else where.layers * where.kv_heads * 4,
        evaluations=[
            EvaluationPoint(i, tokens, curve(tokens), curve(tokens) / 2, tokens / speed)
            for i, tokens in enumerate(points)
        ],
        taps=[] if shift is None else [TapsPoint(0, 0, rows, [[[1.0, 0.0]] * len(row) for row in rows])],
        train_seconds=run.recipe.tokens / speed,
        wall_seconds=run.recipe.tokens / speed + 5,
        tokens_per_second=speed,
        peak_memory_bytes=1 << 28,
    )


@pytest.fixture
def make_pilot() -> Callable[..., Pilot]:
    """make_pilot(curve_of, **plan): `curve_of(run)` gives each planned run its loss curve."""

    def make(curve_of: Callable[[PlannedRun], Curve], **plan: Any) -> Pilot:
        made = plan_of(**plan)
        return Pilot(made, {run.name: record_of(run, curve_of(run)) for run in made.runs})

    return make


@pytest.fixture
def make_pilot_from_gains(make_pilot: Callable[..., Pilot]) -> Callable[..., Pilot]:
    """make_pilot_from_gains({size: [gain of each seed]}, **plan): losses of 4.0 for the baseline, less the
    gain for the candidate."""

    def make(gains: dict[str, list[float]], **plan: Any) -> Pilot:
        seeds = tuple(range(len(next(iter(gains.values())))))

        def curve_of(run: PlannedRun) -> Curve:
            level = 4.0 - 0.2 * list(gains).index(run.size)
            first = plan.get("arms", (VANILLA, KVSHIFT))[0].name
            return ending_at(level if run.arm == first else level - gains[run.size][run.seed])

        return make_pilot(curve_of, sizes=tuple(gains), seeds=seeds, **plan)

    return make
