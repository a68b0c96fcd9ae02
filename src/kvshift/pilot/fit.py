"""Fitting a pilot into its budget: how long runs take on this machine, and which ladder and length fit.

The written rule. Take the largest ladder (three neighbouring rungs) whose top sees at least
`TOKENS_PER_PARAMETER` training tokens for each of its parameters outside the embeddings; if none does, the
smallest three; if those do not reach `LEAST_STEPS` optimizer steps, the smallest two; if neither do they, the
budget is too small. Every size trains on as many tokens as fit the budget, at most `MOST_EPOCHS` passes over
the text. Where the text is the limit, the rest of the budget buys more seeds.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvshift.pilot.ladder import training_flops
from kvshift.pilot.settings import Arm, Size
from kvshift.pilot.worker import JobFailedError

TOKENS_PER_PARAMETER = 0.8
LEAST_STEPS = 300
MOST_EPOCHS = 4.0
RESERVE = {"cpu": 0.12, "cuda": 0.06}  # of the budget: what measuring did not see, above all other programs
CHECK_SHARE = 0.5
MOST_SEEDS = 6  # where seeds are chosen for the user

# Compiled decoder layers on an H100, models of 8 and 34 million parameters (docs/results/pilot.md):
COMPILE_GAIN = 0.4  # of the training time; 0.22 to 0.57 there, 0.29 to 0.53 of recorded steps on an H200
COMPILE_SECONDS = 18.0  # of each size and arm, the first time; 16 to 25 there
COMPILE_AGAIN_SECONDS = 6.0  # of every later start, from the cache; 5 there

_EVALUATED_SHARE = 0.3  # of the trained tokens, over all evaluations; a tenth of the training time
_UNMEASURED_CAUTION = 1.2
_RATE = {
    "cpu": 4e10,
    "cuda": 6e13,
}  # a first guess of FLOP/s; only ratios between sizes survive a measurement
_LAYER_SECONDS = {"cpu": 4e-3, "cuda": 5e-3}  # of one step, whatever the width


class ModelTooLargeError(MemoryError):
    """A model that the machine's memory cannot hold; both in bytes."""

    def __init__(self, needed: int, there: int) -> None:
        super().__init__(
            f"weights, gradients and the optimizer's state take {needed / 1e9:,.1f} GB of memory, and "
            f"{there / 1e9:,.1f} GB are there"
        )
        self.needed, self.there = needed, there


class MeasuredSpeed(Protocol):
    """What planning needs of `kvshift.training.speed.Speed`."""

    @property
    def tokens_per_second(self) -> float: ...
    @property
    def evaluation_seconds(self) -> float: ...
    @property
    def startup_seconds(self) -> float: ...


@dataclass(frozen=True)
class Pace:
    """One size and arm on this machine, in seconds."""

    token: float  # training, a token
    evaluation_token: float
    startup: float

    @property
    def tokens_per_second(self) -> float:
        return 1.0 / self.token


@dataclass(frozen=True)
class Length:
    """How long every main run is."""

    tokens: int
    evaluations: int
    evaluation_tokens: int


@dataclass(frozen=True)
class Choice:
    """A ladder that fits."""

    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    length: Length
    limited_by_text: bool


@dataclass
class Machine:
    """Speeds, measured where that was worth the time and estimated from a neighbouring size elsewhere."""

    kind: str  # "cpu" or "cuda"
    sequence_length: int
    step_tokens: int
    measure: Callable[
        [Size, Arm, float], tuple[MeasuredSpeed, int]
    ]  # size, arm, seconds → speed, evaluated tokens
    seconds_each: float  # of one measurement
    seconds_allowed: float  # for all of them
    seconds_used: float = 0.0
    uncompiled: Machine | None = None  # set where models are compiled: what estimates start from
    paces: dict[tuple[str, str], Pace] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)  # size → why it cannot be trained here

    def known(self, size: Size, arms: Sequence[Arm]) -> bool:
        """Whether every arm of a size was measured, or was found to be impossible."""
        return size.name in self.failures or all((size.name, arm.name) in self.paces for arm in arms)

    def learn(self, size: Size, arms: Sequence[Arm]) -> None:
        """Measures every arm at one size. Arms that are the same model share one measurement."""
        started = time.monotonic()
        done: list[tuple[Arm, Pace]] = []
        for arm in arms:
            pace = next((pace for other, pace in done if other.shift == arm.shift), None)
            if pace is None:
                try:
                    speed, evaluated = self.measure(size, arm, self.seconds_each)
                except (JobFailedError, MemoryError, RuntimeError) as error:
                    # Out of memory, or a crash: this size is out of reach, not the pilot.
                    self.failures[size.name] = error
                    break
                startup = speed.startup_seconds
                if self.uncompiled is not None:  # measuring has filled the cache that runs start from
                    startup = self.uncompiled.pace(size, arm).startup + COMPILE_AGAIN_SECONDS
                pace = Pace(
                    token=1.0 / max(speed.tokens_per_second, 1e-9),
                    evaluation_token=speed.evaluation_seconds / max(evaluated, 1),
                    startup=startup,
                )
            done.append((arm, pace))
            self.paces[size.name, arm.name] = pace
        self.sizes[size.name] = size
        self.seconds_used += time.monotonic() - started

    def pace(self, size: Size, arm: Arm) -> Pace:
        """Measured, or scaled from the measured size nearest in arithmetic, or from the uncompiled model."""
        if (size.name, arm.name) in self.paces:
            return self.paces[size.name, arm.name]
        guess = self._guess(size)
        known = [self.sizes[name] for name, of_arm in self.paces if of_arm == arm.name]
        if not known and self.uncompiled is not None:
            pace, left = self.uncompiled.pace(size, arm), 1 - COMPILE_GAIN
            return Pace(pace.token * left, pace.evaluation_token * left, pace.startup + COMPILE_AGAIN_SECONDS)
        if not known:
            return Pace(token=guess, evaluation_token=guess / 3, startup=1.0)
        nearest = min(known, key=lambda other: abs(self._distance(other, size)))
        pace = self.paces[nearest.name, arm.name]
        scale = guess / self._guess(nearest) * _UNMEASURED_CAUTION
        return Pace(pace.token * scale, pace.evaluation_token * scale, pace.startup * max(1.0, scale**0.5))

    def _guess(self, size: Size) -> float:
        overhead = _LAYER_SECONDS[self.kind] * size.layers / self.step_tokens
        return overhead + training_flops(size, self.sequence_length) / _RATE[self.kind]

    def _distance(self, one: Size, other: Size) -> float:
        ratio = training_flops(one, self.sequence_length) / training_flops(other, self.sequence_length)
        return ratio if ratio >= 1 else 1 / ratio


@dataclass(frozen=True)
class Limits:
    """What a choice must respect."""

    seconds: float  # for all runs
    devices: int
    seeds: tuple[int, ...] | None  # None: choose
    tokens: int | None  # None: choose
    train_tokens: int
    validation_tokens: int
    top_is_given: bool  # the user named the sizes or the model: take them if they fit at all


def length_for(tokens: int, step_tokens: int, validation_tokens: int) -> Length:
    """Evaluations frequent enough for a curve, and short enough not to eat the training time."""
    evaluations = 20 if tokens >= 2_000_000 else 12
    share = int(_EVALUATED_SHARE * tokens / evaluations)
    evaluation_tokens = min(validation_tokens, max(8_192, min(262_144, share)))
    steps = max(1, -(-tokens // step_tokens))
    return Length(tokens, min(evaluations, steps), evaluation_tokens)


def run_seconds(pace: Pace, length: Length, share: float = 1.0) -> float:
    """One run, from fork to end."""
    evaluation = length.evaluations * length.evaluation_tokens * pace.evaluation_token
    return pace.startup + length.tokens * share * pace.token + evaluation


def total_seconds(durations: Sequence[float], devices: int) -> float:
    """Wall time of runs taken in order by the device that is free first."""
    free_at = [0.0] * max(1, devices)
    for duration in durations:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def pilot_seconds(
    machine: Machine, sizes: Sequence[Size], arms: Sequence[Arm], seeds: int, length: Length, devices: int
) -> float:
    """All main and check runs."""
    one_seed = [run_seconds(machine.pace(size, arm), length) for size in sizes for arm in arms]
    one_seed.append(run_seconds(machine.pace(sizes[-1], arms[-1]), length, CHECK_SHARE))
    return total_seconds(one_seed * seeds, devices)


def choose(
    machine: Machine, groups: Sequence[Sequence[Size]], arms: Sequence[Arm], limits: Limits
) -> Choice | None:
    """The first of `groups` (largest first) that the rule admits; None if nothing fits."""
    fitting = []
    for sizes in groups:
        if any(size.name in machine.failures for size in sizes):
            continue
        choice = _fit(machine, sizes, arms, limits)
        if choice is None:
            continue
        enough = TOKENS_PER_PARAMETER * sizes[-1].non_embedding_parameters
        if limits.top_is_given or choice.length.tokens >= enough:
            return choice
        fitting.append(choice)
    return max(fitting, key=lambda choice: (len(choice.sizes), -choice.sizes[-1].parameters), default=None)


def _fit(machine: Machine, sizes: Sequence[Size], arms: Sequence[Arm], limits: Limits) -> Choice | None:
    """The longest runs of these sizes that fit, or None."""
    seeds = limits.seeds or (0, 1, 2)

    def length(steps: int) -> Length:
        return length_for(steps * machine.step_tokens, machine.step_tokens, limits.validation_tokens)

    def fits(steps: int, seed_count: int) -> bool:
        seconds = pilot_seconds(machine, sizes, arms, seed_count, length(steps), limits.devices)
        return seconds <= limits.seconds

    if limits.tokens is not None:
        steps = -(-limits.tokens // machine.step_tokens)
        return Choice(tuple(sizes), seeds, length(steps), False) if fits(steps, len(seeds)) else None
    most = int(MOST_EPOCHS * limits.train_tokens) // machine.step_tokens
    if most < LEAST_STEPS or not fits(LEAST_STEPS, len(seeds)):
        return None
    low, high = LEAST_STEPS, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle, len(seeds)) else (low, middle - 1)
    if limits.seeds is None and low == most:
        while len(seeds) < MOST_SEEDS and fits(low, len(seeds) + 1):
            seeds = (*seeds, len(seeds))
    return Choice(tuple(sizes), seeds, length(low), low == most)


def choose_measured(
    machine: Machine, groups: Sequence[Sequence[Size]], arms: Sequence[Arm], limits: Limits
) -> Choice | None:
    """`choose`, measuring what it picks until it picks only what was measured or the time for it is up."""
    for _ in range(2 * len(groups) + 4):
        choice = choose(machine, groups, arms, limits)
        wanted = choice.sizes if choice is not None else _least(groups, machine)
        unknown = [size for size in wanted if not machine.known(size, arms)]
        if not unknown or (machine.seconds_used >= machine.seconds_allowed and machine.paces):
            return choice
        machine.learn(unknown[-1], arms)  # the largest costs the most, so it decides
    return choose(machine, groups, arms, limits)


def _least(groups: Sequence[Sequence[Size]], machine: Machine) -> Sequence[Size]:
    possible = [group for group in groups if not any(size.name in machine.failures for size in group)]
    return min(possible, key=lambda sizes: (len(sizes), sizes[-1].parameters), default=())


def least_seconds(
    machine: Machine, groups: Sequence[Sequence[Size]], arms: Sequence[Arm], limits: Limits
) -> tuple[float, Sequence[Size]]:
    """Time of all runs of the least pilot, and its sizes; none if no size can be trained here."""
    sizes = _least(groups, machine)
    if not sizes:
        return math.inf, ()
    steps = LEAST_STEPS if limits.tokens is None else -(-limits.tokens // machine.step_tokens)
    length = length_for(steps * machine.step_tokens, machine.step_tokens, limits.validation_tokens)
    seeds = len(limits.seeds or (0, 1, 2))
    return pilot_seconds(machine, sizes, arms, seeds, length, limits.devices), sizes
