"""How attention layers project queries, keys and values, where a shift goes in between, and what follows."""

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

    def raw(self, attention: Any, head_dim: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unshifted queries, keys and values of `(batch, time, hidden)`: `(batch, time, heads, head_dim)`
        each, perhaps views of one tensor."""
        ...

    def key_weight(self, attention: Any) -> Tensor:
        """A weight of the key projection: where the taps live and how wide they are follows from it."""
        ...


@dataclass(frozen=True)
class Rotary:
    """What an attention layer does between projecting and attending, where that is rotary embedding, at
    most with an RMS norm of each head's queries and keys before it: then `fused.py` can run it as one piece.

    Args:
        norm: the class of `q_norm` and `k_norm`, "{}" standing for the family's name; None: there are none.
        unit_offset: the norm multiplies by 1 + its weight.
        interleaved: a channel turns with its neighbour, not with the one half a rotation away.
        keywords: what the layer tells its attention function besides what all of them do.
        applies: whether a layer is of this kind; some families have others too.
    """

    norm: str | None = None
    unit_offset: bool = False
    interleaved: bool = False
    keywords: Callable[[Any], dict[str, Any]] = lambda attention: {}
    applies: Callable[[Any], bool] = lambda attention: True


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

    def raw(self, attention: Any, head_dim: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (getattr(attention, name)(hidden) for name in (self.query, self.key, self.value))
        return _view(q, -1, head_dim), _view(k, -1, head_dim), _view(v, -1, head_dim)

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

    def raw(self, attention: Any, head_dim: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = getattr(attention, self.projection)(hidden)
        queries, keys = self.heads(attention, head_dim)
        if self.grouped:
            groups = _view(rows, keys, queries // keys + 2, head_dim)
            return groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]
        q, k, v = _view(rows, -1, head_dim).split((queries, keys, keys), dim=-2)
        return q, k, v

    def key_weight(self, attention: Any) -> Tensor:
        return getattr(attention, self.projection).weight


def _view(rows: Tensor, *last: int) -> Tensor:
    """The last axis as these. (`unflatten` cannot be compiled under `torch.set_default_device`.)"""
    return rows.view(*rows.shape[:-1], *last)
