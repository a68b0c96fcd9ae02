"""The learned taps of one attention layer, their start and their constraint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kvshift.shift.config import KVShiftConfig


class KVShift(nn.Module):
    """The taps of one attention layer.

    Parameters `k_weight`, `v_weight` (and `q_weight`), each `(heads, window)`, or `(heads, head_dim,
    window)` per channel; column 0 is the current token. With `constraint="gate"` the last axis holds the
    one number `a` of sigmoid(a). What is not shifted has no parameter. They stay float32 (or float64)
    whatever dtype the model is cast to: in bfloat16 a step of the optimizer would round away.

    Args:
        config: what is shifted and how.
        kv_heads, query_heads, head_dim: the layer's shape.
    """

    def __init__(self, config: KVShiftConfig, *, kv_heads: int, query_heads: int, head_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head_dim = head_dim
        for name, heads, wanted in (
            ("k_weight", kv_heads, config.shift_keys),
            ("v_weight", kv_heads, config.shift_values),
            ("q_weight", query_heads, config.shift_queries),
        ):
            columns = 1 if config.constraint == "gate" else config.window
            shape = (heads, head_dim, columns) if config.per_channel else (heads, columns)
            parameter = nn.Parameter(torch.empty(shape, dtype=torch.float32)) if wanted else None
            self.register_parameter(name, parameter)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Starts the taps afresh as `config.init` says; `generator` (CPU) feeds the paper's draw."""
        for name in ("k_weight", "v_weight", "q_weight"):
            parameter = getattr(self, name)
            if parameter is not None:
                start = _START[self.config.init](name, parameter.shape[0], self.config.window)
                taps = (
                    start
                    if start is not None
                    else _paper_draw(parameter.shape, self.config.window, generator)
                )
                if taps.dim() < parameter.dim():
                    taps = taps[:, None, :].expand(*parameter.shape[:-1], -1)
                gated = self.config.constraint == "gate"
                parameter.copy_(torch.logit(taps[..., :1], eps=1e-6) if gated else taps)

    def taps(self, name: str) -> Tensor | None:
        """What `k_weight`, `v_weight` or `q_weight` amount to under the constraint; None if not shifted."""
        parameter: Tensor | None = getattr(self, name)
        if parameter is None or self.config.constraint == "free":
            return parameter
        if self.config.constraint == "clamp":
            return parameter.clamp(0, 1)
        current = torch.sigmoid(parameter)
        return torch.cat((current, 1 - current), dim=-1)

    def forward(self) -> dict[str, Tensor | None]:
        """All taps, by a call that offloading and sharding can hook onto: what models use."""
        return {name: self.taps(f"{name}_weight") for name in "qkv"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and torch.finfo(moved.dtype).bits < 32
            return tensor.to(moved.device) if narrow else moved

        return super()._apply(at_least_float32, recurse)

    def extra_repr(self) -> str:
        return (
            f"window={self.config.window}, constraint={self.config.constraint!r}, init={self.config.init!r}"
        )


def _paper_draw(shape: torch.Size, window: int, generator: torch.Generator | None) -> Tensor:
    """α1, … ~ U(0, 1), the last tap 1 minus their sum (paper §1 and §2)."""
    # On the CPU and in float32 whatever the defaults are while a model is built: the same draw everywhere.
    drawn = torch.rand(*shape[:-1], window - 1, generator=generator, device="cpu", dtype=torch.float32)
    return torch.cat((drawn, 1 - drawn.sum(-1, keepdim=True)), dim=-1)


def _identity(name: str, heads: int, window: int) -> Tensor:
    """The current row alone: the unshifted model."""
    taps = torch.zeros(heads, window, device="cpu", dtype=torch.float32)
    taps[:, 0] = 1
    return taps


def _at_corners(name: str, heads: int, window: int, *, every: int, mirrored: bool = True) -> Tensor:
    """One of `every` heads at the induction corner α=(0, 1), β=(1, 0), the next at its mirror, if any is."""
    taps = _identity(name, heads, window)
    if name == "k_weight":
        taps[::every, 0], taps[::every, 1] = 0, 1
    elif name == "v_weight" and mirrored:
        taps[1::every, 0], taps[1::every, 1] = 0, 1
    return taps


_START: dict[str, Callable[[str, int, int], Tensor | None]] = {
    "paper": lambda name, heads, window: None,
    "identity": _identity,
    "structured": partial(_at_corners, every=4),
    "alternating": partial(_at_corners, every=2),
    "half_induction": partial(_at_corners, every=2, mirrored=False),
    "induction": partial(_at_corners, every=1, mirrored=False),
}
