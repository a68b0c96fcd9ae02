"""How attention layers project queries, keys and values, and where a shift goes in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Shift = Callable[[str, Tensor], Tensor]
"""`("q", "k" or "v", rows)` to the rows to be used instead, both `(batch, time, heads, head_dim)`."""

Projection = Callable[[Tensor], Tensor]
"""`(batch, time, hidden)` to `(batch, time, features)`, as the layer's own module."""


class Layout(Protocol):
    """The projections of one attention layer; `attention` is the layer, `head_dim` the size of a head."""

    @property
    def gated(self) -> bool:
        """Whether what gives the queries gives gates too: then queries alone cannot be shifted."""
        ...

    def heads(self, attention: Any, head_dim: int) -> tuple[int, int]:
        """Query heads and KV heads."""
        ...

    def shifted(self, attention: Any, head_dim: int, shift: Shift) -> dict[str, Projection]:
        """What stands in for the layer's projections, by name. The layer's modules are looked up now, so
        that adapters put around or into them are shifted too."""
        ...

    def key_weight(self, attention: Any) -> Tensor:
        """A weight of the key projection: where the taps live and how wide they are follows from it."""
        ...


@dataclass(frozen=True)
class Separate:
    """Three modules.

    Args:
        query, key, value: their names in the layer.
        gated: the first gives each query head a gate too, as wide as its query.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    gated: bool = False

    def heads(self, attention: Any, head_dim: int) -> tuple[int, int]:
        query, key = getattr(attention, self.query), getattr(attention, self.key)
        return query.out_features // head_dim // (2 if self.gated else 1), key.out_features // head_dim

    def shifted(self, attention: Any, head_dim: int, shift: Shift) -> dict[str, Projection]:
        def through(name: str, module: str) -> Projection:
            projection = getattr(attention, module)

            def project(hidden: Tensor) -> Tensor:
                rows = _view(projection(hidden), -1, head_dim)
                return shift(name, rows).flatten(-2)

            return project

        return {
            self.query: through("q", self.query),
            self.key: through("k", self.key),
            self.value: through("v", self.value),
        }

    def key_weight(self, attention: Any) -> Tensor:
        return getattr(attention, self.key).weight


@dataclass(frozen=True)
class Fused:
    """One module.

    Args:
        projection: its name in the layer.
        query_heads, kv_heads: how a layer tells them.
        grouped: its output holds, KV head after KV head, that head's queries, its key and its value; else
            all queries, then all keys, then all values.
    """

    projection: str
    query_heads: Callable[[Any], int]
    kv_heads: Callable[[Any], int]
    grouped: bool = False
    gated: ClassVar[bool] = False

    def heads(self, attention: Any, head_dim: int) -> tuple[int, int]:
        return self.query_heads(attention), self.kv_heads(attention)

    def shifted(self, attention: Any, head_dim: int, shift: Shift) -> dict[str, Projection]:
        projection = getattr(attention, self.projection)
        queries, keys = self.heads(attention, head_dim)

        def by_kind(hidden: Tensor) -> Tensor:
            rows = _view(projection(hidden), -1, head_dim)
            q, k, v = rows.split((queries, keys, keys), dim=-2)
            return torch.cat((shift("q", q), shift("k", k), shift("v", v)), dim=-2).flatten(-2)

        def by_group(hidden: Tensor) -> Tensor:
            rows = _view(projection(hidden), keys, queries // keys + 2, head_dim)
            q = shift("q", rows[..., :-2, :].flatten(-3, -2))
            q = q.view(*q.shape[:-2], keys, queries // keys, head_dim)
            k, v = shift("k", rows[..., -2, :]), shift("v", rows[..., -1, :])
            return torch.cat((q, k.unsqueeze(-2), v.unsqueeze(-2)), dim=-2).flatten(-3)

        return {self.projection: by_group if self.grouped else by_kind}

    def key_weight(self, attention: Any) -> Tensor:
        return getattr(attention, self.projection).weight


def _view(rows: Tensor, *last: int) -> Tensor:
    """The last axis as these. (`unflatten` cannot be compiled under `torch.set_default_device`.)"""
    return rows.view(*rows.shape[:-1], *last)
