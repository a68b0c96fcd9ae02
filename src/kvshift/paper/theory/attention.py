"""One attention head with ALiBi, with or without KV shift: what the theorems' constructions are made of."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kvshift.errors import UsageError
from kvshift.shift import kv_shift

Mask = Literal["causal", "not_first", "before", "between"]
"""Which positions s (from 1) a query at t may read:

    causal      s ≤ t          what every language model uses
    not_first   1 < s ≤ t
    before      s < t          a token does not read itself
    between     1 < s < t      what IH's sum runs over
"""
MASKS: tuple[Mask, ...] = get_args(Mask)
Taps = tuple[tuple[float, float], tuple[float, float]]  # (α1, α2), (β1, β2): current, previous
INDUCTION: Taps = ((0.0, 1.0), (1.0, 0.0))  # the previous token's key, the current token's value


def allowed(mask: Mask, length: int) -> Tensor:
    """`(length, length)` bool: True where the query of that row may read the key of that column.

    Raises:
        UsageError: no such mask.
    """
    if mask not in MASKS:
        raise UsageError(f"mask {mask!r}: expected one of {', '.join(MASKS)}.")
    of_self = mask in ("causal", "not_first")
    table = torch.ones(length, length, dtype=torch.bool).tril(0 if of_self else -1)
    if mask in ("not_first", "between"):
        table[:, :1] = False
    return table


def linear(matrix: Tensor) -> nn.Linear:
    """A projection by `matrix`, `(out, in)`, without bias, in its dtype."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=matrix.dtype)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer


class Head(nn.Module):
    """Attention of one head, its output alone: no residual, no norm.

    score[t, s] = scale · q[t]·k̂[s] − slope · (t − s), a softmax over the positions that the mask allows, and
    a sum of v̂. A row that may read nothing is zero.

    Args:
        slope: ALiBi's, m ≥ 0; 0 leaves positions out.
        scale: of the scores, 1/σ.
        mask: see `Mask`.
        taps: KV shift's; None leaves keys and values as they are.
        query, key, value, output: projections; None is the identity.
    """

    def __init__(
        self,
        *,
        slope: float,
        scale: float,
        mask: Mask,
        taps: Taps | None = None,
        query: nn.Module | None = None,
        key: nn.Module | None = None,
        value: nn.Module | None = None,
        output: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.slope, self.scale, self.mask, self.taps = slope, scale, mask, taps
        self.query, self.key = query or nn.Identity(), key or nn.Identity()
        self.value, self.output = value or nn.Identity(), output or nn.Identity()

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights, `(batch, length, length)`, of inputs `(batch, length, width)`."""
        return self._attend(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, length, width)` to `(batch, length, output width)`."""
        weights, values = self._attend(x)
        return self.output(weights @ values)

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.key(x), self.value(x)
        if self.taps is not None:
            k_weight, v_weight = (x.new_tensor([taps]) for taps in self.taps)
            k_hat, v_hat, _ = kv_shift(keys[:, :, None], values[:, :, None], k_weight, v_weight)
            keys, values = k_hat[:, :, 0], v_hat[:, :, 0]
        scores = self.query(x) @ keys.transpose(1, 2) * self.scale
        steps = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        scores = scores - self.slope * (steps[:, None] - steps)
        forbidden = ~allowed(self.mask, x.shape[1]).to(x.device)
        weights = scores.masked_fill(forbidden, -math.inf).softmax(-1)
        return weights.masked_fill(forbidden, 0), values  # a row that may read nothing would be NaN
