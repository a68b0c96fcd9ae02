"""Attention layers with the shift, with and without rebuilding, and what each keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from kernel_checks import angles, rotated
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from kvshift.kernels.shift_rotary import rotary, shift_rotary_kv
from kvshift.shift import shift as definition

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
EPS = 1e-5


@dataclass
class Inputs:
    """Of one layer; what learns first."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_taps: Tensor
    v_taps: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    cos: Tensor
    sin: Tensor
    starts: Tensor | None

    def learned(self) -> list[Tensor]:
        return [x for x in self.all() if x is not None and x.requires_grad]

    def all(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]


def inputs(
    device: str, time: int = 8, norm: bool = False, starts: bool = False, fused: bool = False
) -> Inputs:
    """Four query heads for two of keys and values; `fused`: all are views of one projection's rows."""
    torch.manual_seed(time)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # which a fused attention takes there
    rows = torch.randn(2, time, 8, 32, device=device, dtype=dtype)
    q, k, v = rows.split((4, 2, 2), dim=2)
    q, k, v = (x.requires_grad_() if fused else x.clone().requires_grad_() for x in (q, k, v))
    taps = [torch.randn(2, 2, device=device).requires_grad_() for _ in range(2)]
    norms = [torch.randn(32, device=device).requires_grad_() if norm else None for _ in range(2)]
    angle = angles(1, time, 32, interleaved=False, device=device)
    begins = torch.rand(2, time, device=device) < 0.3 if starts else None
    return Inputs(q, k, v, *taps, *norms, angle.cos().to(dtype), angle.sin().to(dtype), begins)


def by_kernels(given: Inputs) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]], list[Tensor | None]]:
    """Rotated queries, and what makes keys and values of which tensors."""

    def build(k, v, k_taps, v_taps, norm, cos, sin, starts):
        made = shift_rotary_kv(k, v, k_taps, v_taps, cos, sin, norm=norm, eps=EPS, starts=starts)
        return tuple(x.transpose(1, 2) for x in made)

    q = rotary(given.q, given.cos, given.sin, norm=given.q_norm, eps=EPS)
    return q.transpose(1, 2), build, _read(given)


def by_definition(given: Inputs) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]], list[Tensor | None]]:
    """The same in plain PyTorch."""

    def build(k, v, k_taps, v_taps, norm, cos, sin, starts):
        k, _ = definition(k, k_taps, starts=starts)
        v, _ = definition(v, v_taps, starts=starts)
        return _rotated(k, norm, cos, sin), v.transpose(1, 2)

    return _rotated(given.q, given.q_norm, given.cos, given.sin), build, _read(given)


WAYS = {"kernels": by_kernels, "definition": by_definition}


def unshifted(given: Inputs, attention: Attention) -> Tensor:
    """The layer without shift, in plain PyTorch."""
    q, k = (
        _rotated(x, norm, given.cos, given.sin)
        for x, norm in ((given.q, given.q_norm), (given.k, given.k_norm))
    )
    return attention(q, k, given.v.transpose(1, 2)).transpose(1, 2)


def layer(run: Callable[..., Tensor], given: Inputs, way: str, attention: Attention) -> Tensor:
    """The layer with shift; `run` is `rebuilt` or `plainly`."""
    q, build, tensors = WAYS[way](given)
    return run(build, lambda k, v: attention(q, k, v).transpose(1, 2), *tensors)


def plainly(build: Callable[..., tuple[Tensor, ...]], attend: Callable[..., Tensor], *tensors: Any) -> Tensor:
    return attend(*build(*tensors))


def _read(given: Inputs) -> list[Tensor | None]:
    return [
        given.k, given.v, given.k_taps, given.v_taps, given.k_norm, given.cos, given.sin, given.starts,
    ]  # fmt: skip


def _rotated(x: Tensor, norm: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(x, norm, cos, sin, eps=EPS, interleaved=False).transpose(1, 2)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def gradients(out: Tensor, given: Inputs) -> list[Tensor]:
    """The result, and the gradient of everything that learns."""
    return [out, *torch.autograd.grad(out.square().sum(), given.learned())]


def kept_by(run: Callable[[], Tensor]) -> dict[int, int]:
    """What autograd keeps for `run`'s backward: the memory, and its bytes."""
    memories: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        memories[memory._cdata] = memory.nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        run()
    return memories
