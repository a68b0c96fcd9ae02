"""How kernels are compared with the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

ON_GPU = torch.cuda.is_available()
TIMES = [1, 2, 3, 15, 16, 17, 33, 127, 129, 4097] if ON_GPU else [1, 2, 3, 16, 17, 33]
HEAD_DIMS = [32, 64, 80, 96, 128, 256] if ON_GPU else [32, 80, 96]

in_parts = pytest.mark.parametrize("part", range(15 if ON_GPU else 1))
"""Runs a random grid's examples by so many processes where there are some: nearly all compile something."""


def random_examples(interpreted: int, on_gpu: int) -> settings:
    """So many in each part; without shrinking, which takes the interpreter minutes."""
    return settings(
        max_examples=on_gpu if ON_GPU else interpreted,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )


def relative_error(found: Tensor, exact: Tensor, size: Tensor | None = None) -> float:
    """Of the norms; `size` instead of the exact result's."""
    assert not found.isnan().any()
    assert found.shape == exact.shape
    return (
        (found.double() - exact).norm() / (exact.norm() if size is None else size).clamp_min(1e-30)
    ).item()


def error_in_type(typed: Tensor, exact: Tensor, size: Tensor | None = None) -> float:
    """Of the definition in a narrow type. Where it overflows there (a norm of nearly nothing in float16), a
    kernel, which computes in float32, is still held to one in a hundred."""
    return relative_error(typed, exact, size) if bool(typed.isfinite().all()) else 0.005


def allowed(dtype: torch.dtype, of_the_definition: float) -> float:
    """The relative error that a result may have where the definition in the same type has that one."""
    if dtype == torch.float32:
        return max(1e-6, 2 * of_the_definition)  # a tap's gradient is a sum that may cancel, in any order
    if dtype == torch.bfloat16 and not ON_GPU:
        return 2**-7  # the interpreter cuts bfloat16 off where a GPU rounds
    return 2 * of_the_definition + 1e-6


def rows(batch: int, time: int, heads: int, head_dim: int, fused: bool, device: str) -> Tensor:
    """Float64; `fused`: a view into wider rows, as a fused projection of queries, keys and values gives."""
    wide = torch.randn(batch, time, heads + 2 * fused, head_dim, dtype=torch.float64, device=device)
    return wide[:, :, fused : fused + heads]


def angles(*shape: int, interleaved: bool, device: str) -> Tensor:
    """`(batch, time, rotary_dim)`, the two channels that turn with each other by the same angle."""
    half = torch.randn(*shape[:-1], shape[-1] // 2, device=device)
    return half.repeat_interleave(2, dim=-1) if interleaved else torch.cat((half, half), dim=-1)


def in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers and strides in another type, as a leaf."""
    typed = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=x.device)
    return typed.copy_(x).requires_grad_()


def rotated(
    x: Tensor, norm: Tensor | None, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool
) -> Tensor:
    """RMS norm, if there is one, and rotary embedding of the first channels, as transformers' models do."""
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm.to(x.dtype)
    size = cos.shape[-1]
    first, rest = x[..., :size], x[..., size:]
    if interleaved:
        other = torch.stack((-first[..., 1::2], first[..., ::2]), dim=-1).flatten(-2)
    else:
        other = torch.cat((-first[..., size // 2 :], first[..., : size // 2]), dim=-1)
    return torch.cat((first * cos[:, :, None] + other * sin[:, :, None], rest), dim=-1)
