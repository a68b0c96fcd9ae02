"""The arms that steps and decoding compare: the same weights, with and without KV shift."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvshift.bench.configurations import twin
from kvshift.kernels import dispatch
from kvshift.models import convert, recompute_shift

BASELINE = "vanilla"


@dataclass(frozen=True)
class Arm:
    """One way of running a model."""

    name: str
    make: Callable[[PreTrainedModel], PreTrainedModel]
    """Makes it of the vanilla model, whose weights it shares."""
    inside: Callable[[torch.device], AbstractContextManager[object]] = nullcontext
    """Everything it runs on a device is run in here."""
    trained: bool = True
    decoded: bool = True


def _shifted(model: PreTrainedModel) -> PreTrainedModel:
    # Started as identity, all arms compute the same, so none takes longer for other numbers.
    return convert(twin(model), init="identity")


def _recomputing(model: PreTrainedModel) -> PreTrainedModel:
    shifted = _shifted(model)
    recompute_shift(shifted)
    return shifted


def _formula(device: torch.device) -> AbstractContextManager[None]:
    return dispatch.forced("definition")


def _fastest(device: torch.device) -> AbstractContextManager[None]:
    """The kernels on a GPU, whether or not models take them there by themselves."""
    return dispatch.forced("triton" if device.type == "cuda" else "auto")


ARMS = (
    Arm(BASELINE, twin),
    Arm("vanilla-again", twin),  # how far from 1 a ratio is by chance
    Arm("formula", _shifted, _formula),
    Arm("kvshift", _shifted, _fastest),
    Arm("kvshift-recomputing", _recomputing, _fastest, decoded=False),
)
