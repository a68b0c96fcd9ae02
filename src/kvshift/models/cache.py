"""The raw rows that decoding needs, kept beside the keys and values they belong to.

A layer of the Hugging Face cache holds shifted, rotated keys and shifted values. The next token also needs
the last raw rows. They live in the same cache layer (`rows.py`), so whatever moves the batch moves both.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
)

from kvshift.errors import UnsupportedModelError
from kvshift.models.rows import FixedRows, RawRows, RowShapes, with_raw_rows
from kvshift.models.starts import Boundaries
from kvshift.shift import ShiftState

Layout = dict[int, RowShapes]
"""What each attention layer of a model keeps, by the layer's place in the cache."""


def layout_of(model: Any) -> Layout:
    """What a shifted model keeps in its cache: of as many layers as its configuration says now, for assisted
    decoding by early exit runs a model's first layers alone."""
    layout: Layout = {}
    for module in model.modules():
        if hasattr(type(module), "unshifted"):  # attention; what holds its taps may be a wrapper of PEFT's
            attention: Any = module
            if attention.layer_idx < model.config.num_hidden_layers:
                layout[attention.layer_idx] = RowShapes.of(attention.kv_shift)
    return layout


def new_cache(config: PretrainedConfig, layout: Layout) -> Cache:
    """An empty dynamic cache for a shifted model."""
    cache = DynamicCache(config=config)
    for index in layout:
        cache.layers[index] = _like(cache.layers[index])
    return prepare_cache(cache, layout)


def prepare_cache(cache: Any, layout: Layout, batch: int | None = None, owner: str | None = None) -> Cache:
    """Gives every attention layer of a cache its place for raw rows, in the caller's own object.

    Args:
        layout: what the model keeps.
        batch: sequences that will be continued, if known.
        owner: what the model is known by (`fingerprint`), if it will fill the cache.

    Raises:
        UnsupportedModelError: there is no place for raw rows in this kind of cache, or it was filled by
            another model, or for another batch.
    """
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise UnsupportedModelError(
            f"A KV shift model cannot use a {type(cache).__name__} as its cache. Use a DynamicCache, a "
            "StaticCache or another cache of `transformers.cache_utils` for decoders."
        )
    if (layer_class := cache.layer_class_to_replicate) is not None:
        # Made now, not by the first update: assisted decoding switches their recording on before that.
        while len(cache.layers) <= max(layout):
            cache.layers.append(layer_class())
    if len(cache.layers) <= max(layout):
        raise UnsupportedModelError(
            f"This cache has {len(cache.layers)} layers; the model needs {max(layout) + 1}. Make it with the "
            "model's own configuration."
        )
    for index, shapes in layout.items():
        layer = cache.layers[index]
        if not isinstance(layer, RawRows):
            _give_rows(layer, shapes)
        elif not torch.compiler.is_compiling():
            _check_rows(layer, shapes, batch)
    if not torch.compiler.is_compiling():
        _check_owner(cache, owner)
        recurrent = _is_recurrent(cache)
        for index in layout:
            cache.layers[index].recurrent = recurrent
    return cache


def read_state(cache: Cache | None, layer_index: int) -> ShiftState | None:
    """The raw rows that precede the next token of one layer; None at the beginning."""
    return None if cache is None else cache.layers[layer_index].raw_rows


def write_state(cache: Cache, layer_index: int, state: ShiftState, raw: ShiftState) -> None:
    """Keeps the raw rows for the next call.

    Args:
        state: what the shift returned for this call.
        raw: this call's raw rows, `(batch, time, heads, head_dim)` each, None where nothing is shifted.
    """
    cache.layers[layer_index].write(state, raw, getattr(cache, "kv_shift_boundaries", None))


def has_room(cache: Cache) -> bool:
    """Whether a prepared cache is static: allocated for tokens to come."""
    return any(isinstance(layer, FixedRows) for layer in cache.layers)


def set_boundaries(cache: Cache, boundaries: Boundaries, time: int) -> None:
    """Says where sequences begin and end in the call of `time` tokens that comes next.

    Raises:
        UnsupportedModelError: the library's own layers would take padding for tokens.
    """
    if torch.compiler.is_compiling():
        return
    cache.kv_shift_boundaries = boundaries
    if getattr(cache, "kv_shift_ends_in_padding", False) and _takes_padding_for_tokens(cache, time):
        raise UnsupportedModelError(
            "The prompts in this cache were padded on the right, and the library's sliding windows and "
            "recurrent layers count such padding as tokens, with KV shift or without. Pad on the left."
        )
    if (
        time == 1
        and boundaries.last is not None
        and _is_recurrent(cache)
        and bool((boundaries.last < 0).any())
    ):
        raise UnsupportedModelError(
            "A step of one token holds padding, and the library's recurrent layers take it for a token, with "
            "KV shift or without. Run the prompts in one call, or in larger chunks (prefill_chunk_size)."
        )
    if time > 1 and boundaries.last is not None and cache.get_seq_length() == 0:
        ends = boundaries.last
        cache.kv_shift_ends_in_padding = bool(((ends >= 0) & (ends < time - 1)).any())


def _takes_padding_for_tokens(cache: Cache, time: int) -> bool:
    return _is_recurrent(cache) or any(
        getattr(layer, "is_sliding", False) and layer.get_seq_length() + time > layer.get_max_length()
        for layer in cache.layers
    )


def _check_owner(cache: Any, owner: str | None) -> None:
    """Notes who fills a cache, and refuses one that others have filled."""
    if owner is None or getattr(cache, "kv_shift_owner", None) == owner:
        return
    if hasattr(cache, "kv_shift_owner") and int(cache.get_seq_length()) > 0:
        raise UnsupportedModelError(
            f"This cache was filled by another model: by {cache.kv_shift_owner}, and this is {owner} (what "
            "follows @ tells weights apart). Start from an empty cache, or cache.reset()."
        )
    cache.kv_shift_owner = owner


def _is_recurrent(cache: Cache) -> bool:
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def _like(layer: Any) -> RawRows:
    """A new layer of the same kind with raw rows: a compiled graph cannot change a layer's class."""
    settings = ("sliding_window", "number_of_states")
    made = with_raw_rows(type(layer))
    return made(**{name: getattr(layer, name) for name in settings if hasattr(layer, name)})


def _give_rows(layer: Any, shapes: RowShapes) -> None:
    shifted = with_raw_rows(type(layer))
    if torch.compiler.is_compiling():
        raise UnsupportedModelError(
            "A cache cannot be given its place for raw rows in a compiled graph. Run the prompt through the "
            "model before it is compiled, as `generate` does."
        )
    if layer.is_initialized and layer.get_seq_length() > 0:
        raise UnsupportedModelError(
            "This cache holds tokens without the raw rows KV shift needs: an unshifted model filled it, "
            "or it was rebuilt from keys and values. Start from an empty cache."
        )
    layer.__class__ = shifted
    layer.begin(shapes)


def _check_rows(layer: RawRows, shapes: RowShapes, batch: int | None) -> None:
    if layer.stale:
        raise UnsupportedModelError(
            "This cache holds tokens without the raw rows KV shift needs: an unshifted model continued it, "
            "or a forward stopped halfway. Start from an empty cache."
        )
    for rows, shape in zip(layer.raw_rows or (), shapes, strict=False):
        if (rows is None) != (shape is None) or (rows is not None and tuple(rows.shape[1:]) != shape):
            raise UnsupportedModelError(
                "This cache was filled by another model: its raw rows have shape "
                f"{None if rows is None else tuple(rows.shape[1:])}, this model's {shape} (window - 1, "
                "heads, head_dim). Start from an empty cache."
            )
        if rows is not None and batch is not None and len(rows) != batch:
            raise UnsupportedModelError(
                f"This cache holds {len(rows)} sequences and the batch has {batch}. Keep the batch as "
                "it was, change the cache with batch_select_indices or batch_repeat_interleave, or start "
                "from an empty one."
            )
