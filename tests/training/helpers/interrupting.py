"""Runs on texts that end before they are done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from kvshift.training.trainer import RunTrainer


@contextlib.contextmanager
def stopped_after(steps: int, error: BaseException | None = None) -> Iterator[None]:
    """A run inside is stopped once `steps` steps and what belongs to them are done: by Ctrl-C, or `error`."""
    raised, original = KeyboardInterrupt() if error is None else error, RunTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == steps:
            raise raised
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", training_step)
        with pytest.raises(type(raised)):
            yield
