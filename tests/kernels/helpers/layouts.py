"""Rows as projections give them."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("own", "fused", "grouped", "heads first")


def rows_of(layout: str, batch: int, time: int, heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Of their own, out of a fused projection, or heads before time."""
    if layout == "fused":
        return torch.randn(batch, time, heads + 2, head_dim, dtype=dtype)[:, :, 1:-1]
    if layout == "grouped":
        return torch.randn(batch, time, heads, 3, head_dim, dtype=dtype)[:, :, :, 1]
    if layout == "heads first":
        return torch.randn(batch, heads, time, head_dim, dtype=dtype).transpose(1, 2)
    return torch.randn(batch, time, heads, head_dim, dtype=dtype)
