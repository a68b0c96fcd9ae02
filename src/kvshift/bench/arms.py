"""The arms that steps and decoding compare: the same weights, with and without KV shift."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from transformers import PreTrainedModel

from kvshift.bench.configurations import twin
from kvshift.kernels import dispatch
from kvshift.models import convert

BASELINE = "vanilla"


@dataclass(frozen=True)
class Arm:
    """One way of running a model."""

    name: str
    make: Callable[[PreTrainedModel], PreTrainedModel]
    """Makes it of the vanilla model, whose weights it shares."""
    inside: Callable[[], AbstractContextManager[None]] = nullcontext
    """Everything it runs is run in here."""
    trained: bool = True
    decoded: bool = True


def _shifted(model: PreTrainedModel) -> PreTrainedModel:
    # Started as identity, all arms compute the same, so none takes longer for other numbers.
    return convert(twin(model), init="identity")


def _forced(backend: str) -> Callable[[], AbstractContextManager[None]]:
    return lambda: dispatch.forced(backend)


ARMS = (
    Arm(BASELINE, twin),
    Arm("vanilla-again", twin),  # how far from 1 a ratio is by chance
    Arm("formula", _shifted, _forced("definition")),
    Arm("kvshift", _shifted, _forced("auto")),
)
