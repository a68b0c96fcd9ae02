"""A shifted attention layer as one piece: shift, norm and rotary embedding in one launch, or CPU function.

Only for families that do nothing else between projecting and attending (`Family.rotary`), and only where the
dispatch knows a path. Everywhere else the family's own forward runs over shifted projections
(`attention.py`), and this one is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvshift.kernels import dispatch
from kvshift.models.cache import read_state, write_state
from kvshift.models.rows import is_preallocated
from kvshift.models.starts import Boundaries
from kvshift.shift import ShiftState

Rows = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""

Taps = dict[str, Tensor | None]
"""Of "q", "k" and "v"; None: not shifted."""


def path_for(attention: Any, taps: Taps, hidden_states: Tensor, cache: Cache | None) -> str | None:
    """The dispatch's path by which `forward` does what the layer's own forward would do; None: it cannot."""
    rotary = attention.family.rotary
    if rotary is None or not rotary.applies(attention) or taps["q"] is not None:
        return None
    if rotary.norm is not None and not _has_own_norms(attention):
        return None
    state = read_state(cache, attention.layer_idx) or ()
    return dispatch.fused_path(
        hidden_states,
        [each for each in taps.values() if each is not None],
        [rows for rows in state if rows is not None],
        norms=rotary.norm is not None,
        keeping_bits=attention.kv_shift.config.init == "identity",
    )


def _has_own_norms(attention: Any) -> bool:
    """False if an adapter, say, has taken their place, or offloading their forward's."""
    norms = (attention.q_norm, attention.k_norm)
    return all(type(norm) is attention.norm_class and "forward" not in vars(norm) for norm in norms)


def forward(
    attention: Any,
    path: str,
    taps: Taps,
    boundaries: Boundaries,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As the family's attention layer.

    Args:
        path: as `path_for` found.
        taps: the layer's, under their constraint.
        boundaries: where the batch's sequences begin and end.
    """
    family = attention.family
    raw = family.layout.raw(attention, attention.kv_shift.head_dim, hidden_states)
    how = {
        "k_taps": taps["k"],
        "v_taps": taps["v"],
        "cos": position_embeddings[0],
        "sin": position_embeddings[1],
        "starts": boundaries.starts,
        "interleaved": family.rotary.interleaved,
        **_norms(attention),
    }
    function = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, family.eager_attention
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: Any = attention) -> tuple[Tensor, Tensor | None]:
        dropout = attention.attention_dropout if attention.training else 0.0
        keywords = {"dropout": dropout, "scaling": attention.scaling, **family.rotary.keywords(attention)}
        return function(layer, q, k, v, attention_mask, **keywords, **kwargs)

    kernels = path == "triton"
    rebuilds = kernels and attention.recomputes and function is not family.eager_attention
    if past_key_values is None and rebuilds:
        if function is sdpa_attention_forward and _would_repeat(attention, attention_mask, raw):
            whole = _Repeated(attention)
            attend, how = partial(attend, layer=whole), {**how, "repeats": attention.num_key_value_groups}
        output, weights = _rebuilding(attend, raw, **how), None
    elif kernels and past_key_values is not None and _can_decode(past_key_values, attention, boundaries, raw):
        output, weights = attend(*_decoded(past_key_values.layers[attention.layer_idx], raw, how))
    else:
        output, weights = attend(*_rotated(path, past_key_values, attention, boundaries, raw, how))
    return attention.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def _norms(attention: Any) -> dict[str, Any]:
    rotary = attention.family.rotary
    if rotary.norm is None:
        return {}
    q_norm, k_norm = attention.q_norm, attention.k_norm
    if rotary.unit_offset:  # to be rounded once, after the norm
        return {"q_norm": 1 + q_norm.weight.float(), "k_norm": 1 + k_norm.weight.float(), "eps": k_norm.eps}
    return {"q_norm": q_norm.weight, "k_norm": k_norm.weight, "eps": k_norm.variance_epsilon}


def _rotated(
    path: str, cache: Cache | None, attention: Any, boundaries: Boundaries, raw: Rows, how: dict[str, Any]
) -> Rows:
    """What attention takes, `(batch, heads, time, head_dim)`; the cache keeps keys, values and raw rows."""
    index = attention.layer_idx
    before = read_state(cache, index) or ShiftState(None, None)
    q, k, v = dispatch.shift_rotary(path, *raw, **how, k_state=before.k, v_state=before.v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if cache is None:
        return q, k, v
    k, v = cache.update(k, v, index)
    back = attention.kv_shift.config.window - 1

    def last_rows(rows: Tensor | None, earlier: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        return dispatch.next_state(rows, back, boundaries.starts, earlier, boundaries.last)

    shifted = ShiftState(
        k=None if how["k_taps"] is None else raw[1], v=None if how["v_taps"] is None else raw[2]
    )
    after = ShiftState(k=last_rows(shifted.k, before.k), v=last_rows(shifted.v, before.v))
    write_state(cache, index, after, shifted)
    return q, k, v


def _rebuilding(
    attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]],
    raw: Rows,
    *,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    repeats: int = 1,
    **how: Any,
) -> Tensor:
    """Attention's output; keys and values are kept raw for the backward and rebuilt there.

    With `repeats`, attention takes every head of them so many times.
    """
    from kvshift.kernels.rebuild import rebuilt
    from kvshift.kernels.shift_rotary import rotary, shift_rotary_kv

    how = {"eps": 0.0, **how}  # of its default a compiler for any length makes a symbol, inside a checkpoint
    q = rotary(raw[0], cos, sin, norm=q_norm, **how).transpose(1, 2)

    def build(norm: Tensor | None, starts: Tensor | None, *rows: Any) -> tuple[Tensor, ...]:
        shifted = shift_rotary_kv(*rows, norm=norm, starts=starts, **how)
        return tuple(repeat_kv(x.transpose(1, 2), repeats) for x in shifted)

    kept = (k_norm, starts, raw[1], raw[2], k_taps, v_taps, cos, sin)
    return rebuilt(build, lambda k, v: attend(q, k, v)[0], *kept)


class _Repeated:
    """Stands in for an attention layer whose keys and values have as many heads as its queries already."""

    def __init__(self, attention: Any) -> None:
        self.is_causal = attention.is_causal


def _would_repeat(attention: Any, mask: Any, raw: Rows) -> bool:
    """Whether the library's SDPA would copy keys and values for every head of queries, and keep that."""
    return attention.num_key_value_groups > 1 and not use_gqa_in_sdpa(mask, raw[1], raw[2])


def _can_decode(cache: Any, attention: Any, boundaries: Boundaries, raw: Rows) -> bool:
    """Whether the new rows can be written straight into a static cache."""
    from kvshift.kernels.decode import MOST_TOKENS

    return (
        raw[1].shape[1] <= MOST_TOKENS
        and boundaries.last is None  # padding on the right must not become state
        and is_preallocated(cache.layers[attention.layer_idx])
        and not cache.offloading
        and not torch.is_grad_enabled()
    )


def _decoded(layer: Any, raw: Rows, how: dict[str, Any]) -> Rows:
    """As `_rotated`, for a few tokens and a static cache: one launch also writes what the cache keeps."""
    from kvshift.kernels.decode import decode

    q = decode(
        *raw,
        **how,
        place=layer.cumulative_length.view(1),
        k_state=layer.raw_rows.k,
        v_state=layer.raw_rows.v,
        k_cache=layer.keys,
        v_cache=layer.values,
    )
    layer.cumulative_length.add_(q.shape[1])
    return q.transpose(1, 2), layer.keys, layer.values
