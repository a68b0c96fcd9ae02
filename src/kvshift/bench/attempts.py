"""One part of a bench may fail; it is reported, and the rest goes on."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from kvshift.bench.schema import Status

T = TypeVar("T")
_LONGEST = 300


@dataclass(frozen=True)
class Failure:
    """Why something has no number."""

    status: Status
    reason: str
    trace: str = ""
    """The traceback, for the file beside the results; empty where nothing is broken."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What an attempt made, or why it made nothing."""

    value: T | None = None
    failure: Failure | None = None


def attempt(call: Callable[[], T]) -> Outcome[T]:
    """Runs `call`; a missing package and any other error become a reason, and memory is given back."""
    try:
        return Outcome(call())
    except ModuleNotFoundError as error:
        failure = Failure("not installed", f"there is no module {error.name}")
    except Exception as error:  # an ImportError too: it is there, and broken
        failure = Failure("failed", _in_one_line(error), traceback.format_exc())
    # Only now, outside of the handler, nothing holds the tensors of the frames that failed.
    release_memory()
    return Outcome(failure=failure)


def release_memory() -> None:
    """Gives the device back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_one_line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
