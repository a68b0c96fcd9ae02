"""The raw rows beside the keys and values of a cache layer: `Shifted<Class>` for each class of the library.

Whatever reorders, repeats, selects, crops or resets a layer moves both together. Offloading moves the keys
and values alone: the next step begins with the raw rows, and they are few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, QuantizedLayer, StaticLayer

from kvshift.errors import UnsupportedModelError
from kvshift.models.history import KEPT, History
from kvshift.models.starts import Boundaries
from kvshift.shift import KVShift, ShiftState

_Quantized = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)  # which 5.17 does not have
_SPARSE = (cache_utils.DynamicIndexedLayer, cache_utils.StaticIndexedLayer)


class RowShapes(NamedTuple):
    """What an attention layer keeps of a sequence: `(window - 1, heads, head_dim)`, None if not shifted."""

    k: tuple[int, int, int] | None
    v: tuple[int, int, int] | None
    q: tuple[int, int, int] | None

    @classmethod
    def of(cls, taps: KVShift) -> RowShapes:
        """The shapes for a layer with these taps."""

        def shape(weight: Any) -> tuple[int, int, int] | None:
            return None if weight is None else (taps.config.window - 1, weight.shape[0], taps.head_dim)

        return cls(shape(taps.k_weight), shape(taps.v_weight), shape(taps.q_weight))


class RawRows(CacheLayerMixin):
    """Placed in front of a cache layer class: the same layer with raw rows."""

    raw_rows: ShiftState | None = None
    """The last `window - 1` raw rows of every sequence; None and zeros mean their beginning."""

    stale = False
    """Keys and values were added without their raw rows: by an unshifted model, or by one that failed."""

    recurrent = False
    """Layers of the same cache keep the state of a recurrence."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.stale = True
        return super().update(*args, **kwargs)

    def write(self, state: ShiftState, raw: ShiftState, boundaries: Boundaries | None) -> None:
        """Keeps a call's state for the next one."""
        raise NotImplementedError

    def begin(self: Any, shapes: RowShapes) -> None:
        """Makes a layer that was just given this class ready."""

    def prefetch(self: Any) -> None:
        """As in the library since 5.20; before, it brings back what is still on its way out, now and then."""
        if torch.cuda.is_available() and not torch.compiler.is_compiling():
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())  # the current one prefetches
        super().prefetch()

    def reset(self: Any) -> None:
        super().reset()
        self.stale = False

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._change(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def _change(self, how: Callable[[Tensor], Tensor]) -> None:
        raise NotImplementedError


class GrowingRows(RawRows):
    """For layers that grow: the rows are replaced at each step, and the last ones can be taken back."""

    record_past = False
    history: History | None = None
    """None until something was written."""

    def write(self, state: ShiftState, raw: ShiftState, boundaries: Boundaries | None) -> None:
        self.stale = False
        if torch.compiler.is_compiling() or boundaries is None:
            # A history would be one more length to compile for at every step.
            self.raw_rows, self.history = _copied(state), None
            return
        if self.history is None:
            self.history = History(self.raw_rows)
        self.raw_rows = _copied(state)
        self.history.call(raw, boundaries, self.raw_rows, everything=self.record_past)

    def activate_past_recording(self: Any) -> None:
        self._refuse_if_quantized("recorded, as assisted decoding needs")
        if (further := getattr(super(), "activate_past_recording", None)) is not None:
            further()
        self.record_past = True

    def update(
        self: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As in the library; 5.17, while it records, gives a sliding layer more rows than its mask has."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.record_past and getattr(self, "is_sliding", False):
            seen = self.sliding_window - 1 + key_states.shape[-2]
            return keys[:, :, -seen:], values[:, :, -seen:]
        return keys, values

    def reset(self: Any) -> None:
        super().reset()
        # transformers before 5.23 zeroes the keys and values and keeps their length: an empty layer is meant.
        self.keys = self.values = None
        self.is_initialized = False
        self.raw_rows = self.history = None

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        if _reorders_no_quantized_rows(type(self)):
            self._refuse_if_quantized("reordered, as beam search needs, by this version of transformers")
        super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        self._refuse_if_quantized("repeated")
        super().batch_repeat_interleave(repeats)
        self._change(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        self._refuse_if_quantized("selected from")
        super().batch_select_indices(indices)
        self._change(lambda rows: rows[indices.to(rows.device) if isinstance(indices, Tensor) else indices])

    def crop(self: Any, tokens_to_remove: int) -> None:
        """As in the library: a negative number of tokens; before 5.23 also a positive length to keep.

        Raises:
            UnsupportedModelError: the raw rows before the cut are gone.
        """
        length = self.get_seq_length()
        if tokens_to_remove <= 0:
            removed = min(-tokens_to_remove, length)
        else:
            removed = max(length - tokens_to_remove, 0)
        if removed:
            self._check_can_take_back(removed, length)
        super().crop(tokens_to_remove)
        if removed == length:
            self.raw_rows = self.history = None
        elif removed and self.history is not None:
            self.raw_rows = self.history.take_back(removed)
        if self.history is not None:
            self.history.trim()

    def _check_can_take_back(self: Any, removed: int, length: int) -> None:
        self._refuse_if_quantized("cropped")
        if self.recurrent:
            raise UnsupportedModelError(
                "This cache holds the state of a recurrence, which has no way back: it cannot be "
                "cropped. Copy the cache (copy.deepcopy) before the tokens that may have to go."
            )
        kept = 0 if self.history is None else self.history.columns
        if kept < removed < length:
            raise UnsupportedModelError(
                f"Cropping {removed} tokens needs raw rows that are gone: this cache can go back {kept} (the "
                f"last {KEPT}, those since `cache.activate_past_recording()` or the crop after it, none of a "
                "compiled step). Switch recording on before those tokens, or copy the cache (copy.deepcopy)."
            )

    def _refuse_if_quantized(self, what: str) -> None:
        if isinstance(self, _Quantized):
            raise UnsupportedModelError(
                f"A quantized cache cannot be {what}: its quantized keys and values would stay as they are. "
                "Use a DynamicCache."
            )

    def _change(self, how: Callable[[Tensor], Tensor]) -> None:
        def change(state: ShiftState) -> ShiftState:
            return ShiftState(*(None if rows is None else how(rows) for rows in state))

        if self.raw_rows is not None:
            self.raw_rows = change(self.raw_rows)
            if self.history is not None:
                self.history.change(change, self.raw_rows)


class FixedRows(RawRows):
    """For static layers: the rows stay at their addresses and are overwritten in place."""

    shapes: RowShapes

    def begin(self: Any, shapes: RowShapes) -> None:
        self.shapes = shapes
        if self.is_initialized:  # ahead of time, by `early_initialization`
            self._allocate(self.keys)

    def lazy_initialization(self: Any, *args: Any, **kwargs: Any) -> None:
        super().lazy_initialization(*args, **kwargs)
        if len(args) == 2:  # with keys and values: layers with a recurrence are also called for its state
            self._allocate(args[0])

    def _allocate(self: Any, keys: Tensor) -> None:
        self.raw_rows = ShiftState(
            *(None if shape is None else keys.new_zeros(keys.shape[0], *shape) for shape in self.shapes)
        )
        if not torch.compiler.is_compiling():
            for rows in self.raw_rows:
                if rows is not None:
                    torch._dynamo.mark_static_address(rows)

    def write(self, state: ShiftState, raw: ShiftState, boundaries: Boundaries | None) -> None:
        self.stale = False
        for kept, rows in zip(self.raw_rows or (), state, strict=True):
            if kept is not None and rows is not None:
                kept.copy_(rows)

    def reset(self: Any) -> None:
        super().reset()
        self._change(torch.zeros_like)

    def crop(self, tokens_to_remove: int) -> None:
        raise UnsupportedModelError(
            "A static cache cannot be cropped, with or without KV shift. Use a DynamicCache."
        )

    def _change(self, how: Callable[[Tensor], Tensor]) -> None:
        for rows in self.raw_rows or ():
            if rows is not None:
                rows.copy_(how(rows))


def is_preallocated(layer: CacheLayerMixin) -> bool:
    """Whether a layer has a place for every token to come, in their order, and none is used twice."""
    return layer.is_initialized and type(layer) is _SHIFTED[StaticLayer]


def _copied(state: ShiftState) -> ShiftState:
    # A slice would keep the raw rows of the whole prompt alive.
    return ShiftState(
        *(None if rows is None else rows.clone(memory_format=torch.contiguous_format) for rows in state)
    )


def _reorders_no_quantized_rows(shifted: type) -> bool:
    """Whether only the few rows that are not quantized yet would follow the beams, as in 5.17."""
    own: Any = next(base for base in shifted.__mro__ if not issubclass(base, RawRows))
    return own.reorder_cache is CacheLayerMixin.reorder_cache


_SHIFTED: dict[type, type] = {}


def with_raw_rows(layer_class: type) -> type:
    """The class of the same cache layer with raw rows.

    Raises:
        UnsupportedModelError: its keys and values are not kept token by token, in a way that we know.
    """
    if issubclass(layer_class, RawRows):
        return layer_class
    if layer_class not in _SHIFTED:
        if not issubclass(layer_class, DynamicLayer | StaticLayer) or issubclass(layer_class, _SPARSE):
            raise UnsupportedModelError(
                f"A KV shift model cannot use a cache layer of class {layer_class.__name__}: its raw rows "
                "have no place there. Use a DynamicCache or a StaticCache."
            )
        rows = GrowingRows if issubclass(layer_class, DynamicLayer) else FixedRows
        name = f"Shifted{layer_class.__name__}"
        made = type(
            name,
            (rows, layer_class),
            {
                "__module__": __name__,
                "__doc__": f"A {layer_class.__name__} with raw rows.",
                "_layer_type": None,  # else the library would take it for its own of that type
            },
        )
        globals()[name] = made  # found by its name when pickled
        _SHIFTED[layer_class] = made
    return _SHIFTED[layer_class]


_LIBRARY = [each for each in vars(cache_utils).values() if isinstance(each, type)]
for _class in _LIBRARY:  # made now: a class cannot be made in a compiled graph
    if issubclass(_class, DynamicLayer | StaticLayer) and not issubclass(_class, _SPARSE):
        with_raw_rows(_class)
