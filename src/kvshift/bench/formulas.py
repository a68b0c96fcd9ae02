"""What the operators compute, step by step in PyTorch: the plain formula, and the exact results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kvshift.shift import definition

EPSILON = 1e-6


def shift(
    k: Tensor, v: Tensor, k_taps: Tensor, v_taps: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values shifted."""
    k_hat, v_hat, _ = definition.kv_shift(k, v, k_taps, v_taps, starts=starts)
    return k_hat, v_hat


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Hugging Face's rotary embedding of `(batch, time, heads, head_dim)`."""
    q, k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    return q, k


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """The RMS norm of Qwen3's heads: in float32 or wider, rounded before the weight."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return weight * wide.to(x.dtype)


def shift_rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor,
    v_taps: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values shifted, queries and keys rotated."""
    k, v = shift(k, v, k_taps, v_taps, starts)
    return *rotated(q, k, cos, sin), v


def shift_norm_rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor,
    v_taps: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values shifted, queries and keys normed and rotated."""
    k, v = shift(k, v, k_taps, v_taps, starts)
    return *rotated(normed(q, q_norm), normed(k, k_norm), cos, sin), v


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor,
    v_taps: Tensor,
    cos: Tensor,
    sin: Tensor,
    place: Tensor,
    k_state: Tensor,
    v_state: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """One new token: shifted, rotated, written into the caches; the raw rows become the state."""
    k_hat, v_hat, state = definition.kv_shift(k, v, k_taps, v_taps, state=(k_state, v_state))
    q, k_hat = rotated(q, k_hat, cos, sin)
    k_cache.index_copy_(2, place, k_hat.transpose(1, 2))
    v_cache.index_copy_(2, place, v_hat.transpose(1, 2))
    k_state.copy_(state.k)  # type: ignore[arg-type]
    v_state.copy_(state.v)  # type: ignore[arg-type]
    return q


_compilations: dict[Any, Any] = {}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under `torch.compile`, for one shape at a time, in one graph or not at all."""
    if function not in _compilations:
        _compilations[function] = torch.compile(function, fullgraph=True, dynamic=False)
    return _compilations[function]


def forget_compilations() -> None:
    """Before another shape: the compiler gives up, silently in part, on what it compiled too often."""
    _compilations.clear()
    torch.compiler.reset()
