"""The raw rows that decoding needs, kept beside the keys and values they belong to.

A layer of the Hugging Face cache holds shifted, rotated keys and shifted values. The next token also needs
the last raw rows. They live in the same cache layer, so whatever reorders, repeats, selects or resets the
batch moves both together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from kvshift.errors import UnsupportedModelError
from kvshift.shift import ShiftState

WHAT_WORKS = (
    "Greedy decoding, sampling and beam search work with the dynamic cache (`DynamicCache`, the default)."
)


class _RawRows(CacheLayerMixin):
    """Placed in front of a cache layer class: the same layer with raw rows."""

    raw_rows: ShiftState | None = None

    def reset(self: Any) -> None:
        super().reset()
        # transformers before 5.23 zeroes the keys and values and keeps their length: an empty layer is meant.
        self.keys = self.values = None
        self.is_initialized = False
        self.raw_rows = None

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._each_row(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each_row(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._each_row(lambda rows: rows[indices, ...])

    def crop(self: Any, tokens_to_remove: int) -> None:
        raise UnsupportedModelError(
            "A KV shift model's cache cannot be cropped yet: the raw rows before the cut are gone. "
            f"{WHAT_WORKS}"
        )

    def activate_past_recording(self: Any) -> None:
        self.crop(0)

    def offload(self: Any) -> None:
        raise UnsupportedModelError(f"A KV shift model's cache cannot be offloaded yet. {WHAT_WORKS}")

    def prefetch(self: Any) -> None:
        self.offload()

    def _each_row(self, change: Any) -> None:
        if self.raw_rows is not None:
            self.raw_rows = ShiftState(*(None if rows is None else change(rows) for rows in self.raw_rows))


class ShiftedDynamicLayer(_RawRows, DynamicLayer):
    """A growing cache layer with raw rows."""


class ShiftedSlidingWindowLayer(_RawRows, DynamicSlidingWindowLayer):
    """A sliding-window cache layer with raw rows."""


_WITH_RAW_ROWS: dict[type, type] = {
    DynamicLayer: ShiftedDynamicLayer,
    DynamicSlidingWindowLayer: ShiftedSlidingWindowLayer,
}


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty dynamic cache for a shifted model."""
    cache = DynamicCache(config=config)
    cache.layers = [
        ShiftedSlidingWindowLayer(layer.sliding_window) if layer.is_sliding else ShiftedDynamicLayer()
        for layer in cache.layers
    ]
    return cache


def prepare_cache(cache: Cache) -> Cache:
    """Gives every layer of a cache its place for raw rows, in the caller's own object.

    Raises:
        UnsupportedModelError: this kind of cache is not exactly right yet, or an unshifted model filled it.
    """
    if type(cache) is not DynamicCache:
        raise UnsupportedModelError(
            f"A KV shift model cannot generate with a {type(cache).__name__} yet. {WHAT_WORKS}"
        )
    if cache.offloading:
        raise UnsupportedModelError(f"A KV shift model's cache cannot be offloaded yet. {WHAT_WORKS}")
    for layer in cache.layers:
        if isinstance(layer, _RawRows):
            continue
        if type(layer) not in _WITH_RAW_ROWS:
            raise UnsupportedModelError(
                f"A KV shift model cannot use a cache layer of class {type(layer).__name__} yet. {WHAT_WORKS}"
            )
        if layer.get_seq_length() > 0:
            raise UnsupportedModelError(
                "This cache holds tokens without the raw rows KV shift needs: an unshifted model filled it, "
                "or it was rebuilt from keys and values. Start from an empty DynamicCache."
            )
        if getattr(layer, "record_past", False):
            raise UnsupportedModelError(f"A KV shift model's cache cannot record its past yet. {WHAT_WORKS}")
        layer.__class__ = _WITH_RAW_ROWS[type(layer)]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = ShiftedDynamicLayer
    return cache


def read_state(cache: Cache | None, layer_index: int) -> ShiftState | None:
    """The raw rows that precede the next token of one layer; None at the beginning."""
    if cache is None or layer_index >= len(cache.layers):
        return None
    return cache.layers[layer_index].raw_rows


def write_state(cache: Cache, layer_index: int, state: ShiftState) -> None:
    """Keeps the raw rows for the next call."""
    # Copied: a slice would keep the raw rows of the whole prompt alive.
    cache.layers[layer_index].raw_rows = ShiftState(
        *(None if rows is None else rows.clone(memory_format=torch.contiguous_format) for rows in state)
    )
