"""What a model sees and when: decided by the seed before the run begins, the same for both arms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kvshift.errors import DataError
from kvshift.tasks.text import TextData, TokenStore
from kvshift.training.recipe import Recipe

Batch = dict[str, Tensor]
IGNORED = -100  # the target of a token whose successor belongs to another document


class TrainingWindows(Dataset[Batch]):
    """The run's windows in the order they are learned from: item i depends on the seed and on i alone.

    A batch has `position_ids` only if some document begins inside a row: it is known here, and need not be
    asked of the device.

    Every epoch is a permutation of all windows, so continuing a run only means to skip.
    """

    def __init__(self, store: TokenStore, recipe: Recipe) -> None:
        self._store = store
        self._length = recipe.sequence_length
        self._items = recipe.steps * recipe.batch_size
        self._windows = store.window_count(recipe.sequence_length)
        self._order = lru_cache(maxsize=2)(  # the last epoch's and this one's
            lambda epoch: np.random.default_rng((recipe.seed, epoch)).permutation(self._windows)
        )

    def __len__(self) -> int:
        return self._items

    def window_index(self, item: int) -> int:
        """Which window of the store item `item` of the run is."""
        epoch, place = divmod(item, self._windows)
        return int(self._order(epoch)[place])

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[int]) -> Batch:
        """The batch of these items; torch's loader asks for a whole batch at once."""
        batch = make_batch(self._store, [self.window_index(item) for item in items], self._length)
        if bool((batch["position_ids"].diff(dim=1) == 1).all()):
            del batch["position_ids"]
        return batch


def make_batch(store: TokenStore, windows: list[int], length: int) -> Batch:
    """`input_ids`, `position_ids` and `labels`, each `(len(windows), length)` int64.

    Positions restart at 0 with every document, which is how packed documents are told apart. `labels` are
    the next tokens (already shifted), `IGNORED` where there is none.
    """
    inputs, targets, starts = zip(*(store.window(window, length) for window in windows), strict=True)
    return {
        "input_ids": torch.from_numpy(np.stack(inputs)),
        "position_ids": torch.from_numpy(positions(np.stack(starts))),
        "labels": torch.from_numpy(np.stack(targets)),
    }


def positions(starts: np.ndarray) -> np.ndarray:
    """Steps since the last start: int64 like `starts`, `(batch, time)` bool with True in the first column."""
    time = np.arange(starts.shape[1], dtype=np.int64)
    return time - np.maximum.accumulate(np.where(starts, time, 0), axis=1)


class EvaluationWindows:
    """The validation windows, always the same: at most `evaluation_tokens`, spread over the whole store.

    Attributes:
        batches: each `batch_size` windows; the last is filled up with windows that score nothing, so that
            every batch has one shape.
        token_bytes: `(vocab_size,)` int64, a token's length in bytes; 0 for special tokens.
    """

    def __init__(self, data: TextData, recipe: Recipe, batch_size: int) -> None:
        length = recipe.sequence_length
        available = data.validation.window_count(length)
        count = min(max(recipe.evaluation_tokens // length, 1), available)
        self.windows = [i * available // count for i in range(count)]
        self.token_bytes = torch.from_numpy(np.asarray(data.token_bytes).astype(np.int64))
        self.batches: list[Batch] = []
        for first in range(0, count, batch_size):
            real = self.windows[first : first + batch_size]
            batch = make_batch(data.validation, real + real[:1] * (batch_size - len(real)), length)
            batch["labels"][len(real) :] = IGNORED
            self.batches.append(batch)

    def to(self, device: torch.device) -> EvaluationWindows:
        """Moves everything to `device`, in place."""
        self.batches = [{name: x.to(device) for name, x in batch.items()} for batch in self.batches]
        self.token_bytes = self.token_bytes.to(device)
        return self


def check_enough(data: TextData, recipe: Recipe) -> None:
    """Raises DataError unless both parts of the text fill a window."""
    for name, store in (("training", data.train), ("validation", data.validation)):
        if store.window_count(recipe.sequence_length) < 1:
            raise DataError(
                f"The {name} text has {len(store):,} tokens; expected at least one window of "
                f"{recipe.sequence_length:,}. Give more text or a smaller sequence length."
            )
