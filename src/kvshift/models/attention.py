"""KV shifting attention inside any Hugging Face attention layer.

The family's own forward runs, but sees a layer whose projections return shifted rows: right after the
projections, before any norm of the keys and before rotary embedding (paper §1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.cache_utils import Cache

from kvshift.errors import UsageError
from kvshift.kernels import dispatch
from kvshift.models import fused
from kvshift.models.cache import read_state, write_state
from kvshift.models.families import Family
from kvshift.models.layout import Projection
from kvshift.models.starts import Boundaries
from kvshift.shift import ShiftState


class ShiftedAttention:
    """Placed in front of a family's attention class: same weights, same call, shifted keys and values.

    The layer also has `kv_shift`, a `kvshift.shift.KVShift` with its taps.
    """

    family: ClassVar[Family]
    unshifted: ClassVar[Any]
    """The family's attention class."""

    norm_class: ClassVar[Any]
    """Of the heads' norms, where shift, norm and rotation run as one piece; None: there are none."""

    recomputes = False
    """See `recompute_shift`."""

    boundaries: Boundaries | None = None
    """Where the batch's sequences begin and end, if not given as a keyword; see `carrier.py`."""

    def forward(self: Any, *args: Any, boundaries: Boundaries | None = None, **kwargs: Any) -> Any:
        """As the family's layer.

        Args:
            boundaries: where the batch's sequences begin and end.
        """
        boundaries = self.boundaries if boundaries is None else boundaries
        if boundaries is None:
            raise UsageError("A shifted attention layer needs its batch's boundaries; call the whole model.")
        cache = _cache_among((*args, *kwargs.values()))
        taps = self.kv_shift()
        if "hidden_states" in kwargs and (path := fused.path_for(self, taps, kwargs["hidden_states"], cache)):
            return fused.forward(self, path, taps, boundaries, **kwargs)
        before = read_state(cache, self.layer_idx) or ShiftState(None, None)
        raw: dict[str, Tensor | None] = {"k": None, "v": None}
        after: dict[str, Tensor | None] = {"k": None, "v": None}

        def shift(name: str, rows: Tensor) -> Tensor:
            if (weight := taps[name]) is None:
                return rows
            raw[name] = rows
            shifted, after[name] = dispatch.shift(
                rows,
                weight,
                starts=boundaries.starts,
                state=getattr(before, name),
                last=boundaries.last,
                keep_state=cache is not None,
            )
            return shifted

        projections = self.family.layout.shifted(self, self.kv_shift.head_dim, shift)
        output = self.unshifted.forward(_Layer(self, projections), *args, **kwargs)
        if cache is not None:
            write_state(cache, self.layer_idx, ShiftState(**after), ShiftState(**raw))
        return output


def recompute_shift(model: nn.Module, enabled: bool = True) -> None:
    """Trades a little time for memory in training: what is shifted is not kept for the backward.

    The backward reads raw keys and values for the taps' gradient and shifted, rotated ones for attention's.
    Keeping both costs two tensors a layer more than a model without KV shift keeps. Switched on, only the raw
    ones are kept, and the others made again (docs/guides/kernels.md). The gradients are the same.

    It acts where attention runs as one piece (`fused.py`): with the kernels, without a cache, with any
    attention function but the library's eager one. Elsewhere it changes nothing. What attention itself copies
    (repeated heads, where there is a mask) is kept as ever. It is not saved with a model.

    Args:
        model: with KV shift.
        enabled: False switches it off again.

    Raises:
        UsageError: the model has no KV shift.
    """
    layers = [module for module in model.modules() if isinstance(module, ShiftedAttention)]
    if not layers:
        raise UsageError("recompute_shift was given a model without KV shift; convert it first.")
    for layer in layers:
        layer.recomputes = enabled


class _Layer:
    """An attention layer as its family's forward sees it: the same, but for the projections."""

    def __init__(self, layer: Any, projections: Mapping[str, Projection]) -> None:
        self._layer = layer
        for name, projection in projections.items():
            setattr(self, name, projection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _cache_among(values: tuple[Any, ...]) -> Cache | None:
    """By its type: families call it `past_key_values` or `layer_past`."""
    for value in values:
        if isinstance(value, Cache):
            return value
    return None
