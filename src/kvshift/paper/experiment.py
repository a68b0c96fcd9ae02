"""What an experiment is: a claim of the paper, runs, a measure, a figure, and a rule for the verdict.

One file in `experiments/` describes one. The rule is a sentence and a function that stand there before any
run; whoever changes either, or what a run measures, raises `version`, and older records are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kvshift.paper.place import Place

Scale = Literal["tiny", "small", "gpu"]
"""tiny: minutes on two CPU cores, decides nothing; small: a CPU, within an hour; gpu: one GPU, where an
experiment can use it."""
SCALES: tuple[Scale, ...] = get_args(Scale)
Verdict = Literal["reproduced", "partly", "not", "undecided"]
Settings = dict[str, Any]  # JSON's own types, so that a record's settings compare equal


@dataclass(frozen=True)
class Run:
    """One run; its settings hold everything that its measurement depends on, the seed too."""

    name: str  # a file's name
    settings: Settings


@dataclass(frozen=True)
class Measurement:
    """What a run found."""

    settings: Settings
    measured: dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """The rule applied to measurements."""

    verdict: Verdict
    ours: str  # our numbers, to stand beside the paper's
    finding: str  # what was found, in a sentence or two


@dataclass(frozen=True)
class Experiment:
    """One claim of the paper and how it is checked."""

    name: str
    version: int
    title: str
    claim: str  # the paper's
    paper: str  # its number
    rule: str  # of the verdict, in words
    runs: dict[Scale, tuple[Run, ...]]
    uses_gpu: bool  # at scale gpu
    measure: Callable[[Settings, Place], dict[str, Any]]
    """Does a run, given its settings and where it works; returns what a record can hold as JSON."""
    judge: Callable[[Sequence[Measurement]], Judgement]
    draw: Callable[[Sequence[Measurement], str], bytes]
    """The figure as `png` or `svg`, from measurements alone."""
