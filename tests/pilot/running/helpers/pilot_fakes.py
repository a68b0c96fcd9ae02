"""Planning without a text and without a machine: one is only counted, the other only a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvshift.pilot.ladder import size_of, training_flops
from kvshift.pilot.plan import DeviceInfo
from kvshift.training.recipe import Recipe

CPU = DeviceInfo("cpu", "CPU, 2 threads")
GPU = DeviceInfo("cuda", "A GPU", 1, 80 << 30)


@dataclass(frozen=True)
class FakeText:
    """As much of TextData as planning reads."""

    train_tokens: int = 5_000_000
    validation_tokens: int = 500_000
    vocab_size: int = 2000
    folder: Path = Path("/nowhere/0123456789abcdef")

    @property
    def train(self) -> range:
        return range(self.train_tokens)

    @property
    def validation(self) -> range:
        return range(self.validation_tokens)

    def summary(self) -> dict[str, Any]:
        return {"train_bytes": 4 * self.train_tokens, "documents": 10}


def machine(
    flops: float = 3e10,
    layer_seconds: float = 3e-3,
    slower: float = 1.1,
    startup: float = 0.5,
    too_large: int = 10**12,
) -> Callable[[Recipe, float], Any]:
    """A `measure` that knows the speed of every recipe; models above `too_large` parameters do not fit.

    Compiled ones start six seconds later and are twice as fast; the shift costs them nothing.
    """

    def measure(recipe: Recipe, seconds: float) -> Any:
        size = size_of("any", recipe.model)
        if size.parameters > too_large:
            raise RuntimeError("CUDA out of memory")
        step = layer_seconds * size.layers
        step += recipe.step_tokens * training_flops(size, recipe.sequence_length) / flops
        step *= slower if recipe.shift and not recipe.compile else 1.0
        step /= 2.0 if recipe.compile else 1.0
        token = step / recipe.step_tokens
        return SimpleNamespace(
            tokens_per_second=1 / token,
            evaluation_seconds=recipe.evaluation_tokens * token / 3,
            startup_seconds=startup + (6.0 if recipe.compile else 0.0),
        )

    return measure
