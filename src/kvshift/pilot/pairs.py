"""The pairs of a pilot: two runs of the same size and seed, one an arm, and what became of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from kvshift.pilot.settings import Plan, Size
from kvshift.training.record import EvaluationPoint, Record


@dataclass(frozen=True)
class Pair:
    """Both runs of one size and seed; None where a run left nothing."""

    size: str
    seed: int
    baseline: Record | None
    candidate: Record | None

    @property
    def complete(self) -> bool:
        """Whether both runs ended with a finite loss."""
        return end(self.baseline) is not None and end(self.candidate) is not None

    @property
    def finished(self) -> tuple[Record, Record]:
        """Baseline and candidate of a complete pair."""
        if self.baseline is None or self.candidate is None:
            raise ValueError(f"the pair {self.size}, seed {self.seed} is not complete")
        return self.baseline, self.candidate

    @property
    def ends(self) -> tuple[EvaluationPoint, EvaluationPoint]:
        """The last evaluations of a complete pair."""
        baseline, candidate = end(self.baseline), end(self.candidate)
        if baseline is None or candidate is None:
            raise ValueError(f"the pair {self.size}, seed {self.seed} is not complete")
        return baseline, candidate

    @property
    def gain(self) -> float:
        """Baseline's final validation loss minus the candidate's, nats a token."""
        baseline, candidate = self.ends
        return baseline.nats_per_token - candidate.nats_per_token


def end(record: Record | None) -> EvaluationPoint | None:
    """The last evaluation of a run that finished with a finite loss, else None."""
    if record is None or record.status != "finished" or not record.evaluations:
        return None
    last = record.evaluations[-1]
    return last if math.isfinite(last.nats_per_token) else None


def diverged(record: Record | None) -> bool:
    """Whether the loss left the finite numbers, by the run's own word or by its last evaluation."""
    if record is None:
        return False
    return record.status == "diverged" or (record.status == "finished" and end(record) is None)


def curve(record: Record) -> list[EvaluationPoint]:
    """The finite evaluations up to the first that is not, in the order of tokens."""
    points = []
    for point in record.evaluations:
        if not math.isfinite(point.nats_per_token):
            break
        points.append(point)
    return points


@dataclass(frozen=True)
class Pairs:
    """Every planned pair, by size in the plan's order."""

    plan: Plan
    by_size: dict[str, list[Pair]]

    @classmethod
    def of(cls, plan: Plan, records: dict[str, Record]) -> Pairs:
        """Group the main runs; a run without a record is None in its pair."""
        baseline, candidate = (arm.name for arm in plan.arms)
        found = {
            (run.size, run.seed, run.arm): records.get(run.name) for run in plan.runs if run.role == "main"
        }
        return cls(
            plan,
            {
                size.name: [
                    Pair(
                        size.name,
                        seed,
                        found.get((size.name, seed, baseline)),
                        found.get((size.name, seed, candidate)),
                    )
                    for seed in plan.seeds
                ]
                for size in plan.sizes
            },
        )

    def __iter__(self) -> Iterator[Pair]:
        return (pair for pairs in self.by_size.values() for pair in pairs)

    @property
    def top(self) -> Size:
        """The ladder's largest size."""
        return self.plan.sizes[-1]

    def complete(self, size: str) -> list[Pair]:
        """The complete pairs of one size, in the order of seeds."""
        return [pair for pair in self.by_size[size] if pair.complete]

    def seeds_complete_at(self, sizes: list[str]) -> list[int]:
        """Seeds whose pair is complete at every one of `sizes`."""
        present = [{pair.seed for pair in self.complete(size)} for size in sizes]
        return [seed for seed in self.plan.seeds if all(seed in seeds for seeds in present)]

    def at(self, size: str, seed: int) -> Pair:
        """The pair of one size and seed."""
        return next(pair for pair in self.by_size[size] if pair.seed == seed)

    def diverged_alone(self) -> tuple[int, int]:
        """Pairs in which only the baseline, and only the candidate, diverged while the other finished."""
        baseline = sum(diverged(pair.baseline) and end(pair.candidate) is not None for pair in self)
        candidate = sum(diverged(pair.candidate) and end(pair.baseline) is not None for pair in self)
        return baseline, candidate
