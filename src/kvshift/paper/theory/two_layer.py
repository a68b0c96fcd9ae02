"""Theorem 1: two plain layers with ALiBi, of width D = 2d, come within a constant times e^(−p) of IH.

The stream is (x_t, 0), d numbers each. **The first layer copies.** It has no content scores (W_q = W_k = 0),
only a steep slope p, and writes the first half of what it reads into the second half:

    z_t = Σ_{j≥1} w_j x_{t−j},   w_j = e^(−p(j−1)) (1 − e^(−p)) / (1 − e^(−p(t−1))),   t ≥ 2

so z_t is x_{t−1} but for a share Σ_{j≥2} w_j ≤ e^(−p). **The second layer matches:** query x_L (first half),
key z_s (second half), value x_s (first half), slope m, scale 1/σ, over 1 < s < L. With z_s = x_{s−1} it would
be IH.

**The constant.** The scores are off by δ_s = x_L·(z_s − x_{s−1})/σ; tokens no longer than R give
|δ_s| ≤ 2R²/σ · e^(−p). As scores move by δ, their weighted mean Σ a_s x_s moves at the rate
Σ a_s (δ_s − δ̄) x_s, which is no longer than max|δ_s| · R whatever the weights are. All the way from IH's
scores to the model's:

    ‖model − IH‖ ≤ 2R³/σ · e^(−p)      for every p > 0

The constant depends on σ and the tokens' length alone: not on d, the length L or the slope m. To first order
the error is C·e^(−p), C = ‖Σ a_s (c_s − c̄) x_s‖ with IH's weights a and c_s = x_L·(x_{s−2} − x_{s−1})/σ (0
for s = 2).

**Which mask.** Above, the first layer reads s < t. Under the causal mask of language models the steep slope
picks the token itself, not the one before, which has e^(−p) times its weight. The construction then needs the
second layer's key to take the token away again: k = e^p/(1−e^(−p)) · z_t − e^p · x_t. That is
x_{t−1} + O(e^(−p)) too, but with weights of size e^p, which rounding and weight decay do not forgive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kvshift.errors import UsageError
from kvshift.paper.theory.attention import Head, linear
from kvshift.paper.theory.induction_head import induction_head, induction_tokens

FirstMask = Literal["before", "causal"]


class TwoLayers(nn.Module):
    """The construction, in float64.

    Args:
        dim: d; the model is 2d wide.
        steepness: p, the first layer's slope.
        slope, sigma: IH's m and σ, of the second layer.
        first_mask: what the first layer may read; `causal` needs large weights, see above.
    """

    def __init__(
        self,
        dim: int,
        *,
        steepness: float,
        slope: float,
        sigma: float,
        first_mask: FirstMask = "before",
    ) -> None:
        super().__init__()
        nothing, identity = torch.zeros(dim, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
        first_half = torch.cat((identity, nothing), dim=1)  # (d, 2d)
        second_half = torch.cat((nothing, identity), dim=1)
        if first_mask == "before":
            key = second_half
        else:
            key = math.exp(steepness) * (second_half / -math.expm1(-steepness) - first_half)
        no_content = linear(torch.zeros(dim, 2 * dim, dtype=torch.float64))
        self.first = Head(
            slope=steepness,
            scale=1.0,
            mask=first_mask,
            query=no_content,
            key=no_content,
            value=linear(first_half),
            output=linear(second_half.T),
        )
        self.second = Head(
            slope=slope,
            scale=1 / sigma,
            mask="between",
            query=linear(first_half),
            key=linear(key),
            value=linear(first_half),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, length, d)` to the second layer's output, `(batch, length, d)`."""
        stream = torch.cat((x, torch.zeros_like(x)), dim=-1)
        return self.second(stream + self.first(stream))


@torch.no_grad()
def first_order(x: Tensor, *, slope: float, sigma: float) -> Tensor:
    """C of each sequence's last token, `(batch,)`: the error of the construction is C·e^(−p) + O(e^(−2p))."""
    last, before = x[:, -1], x[:, :-2]  # x_L, and x_1 … x_{L−2}: the tokens before s = 2 … L−1
    coefficients = torch.einsum("bd,bsd->bs", last, _previous(before) - before) / sigma
    coefficients[:, 0] = 0  # s = 2: the first layer has one token to read and copies it exactly
    distance = torch.arange(before.shape[1], 0, -1, dtype=x.dtype, device=x.device)
    weights = (torch.einsum("bd,bsd->bs", last, before) / sigma - slope * distance).softmax(-1)
    away = coefficients - (weights * coefficients).sum(-1, keepdim=True)
    return torch.einsum("bs,bsd->bd", weights * away, x[:, 1:-1]).norm(dim=-1)


def _previous(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


@dataclass(frozen=True)
class ErrorCurve:
    """‖model − IH‖ against p, at the last token of random sequences of unit tokens."""

    sigma: float
    slope: float
    dim: int
    tokens: int
    first_mask: FirstMask
    steepness: list[float]
    mean: list[float]  # over sequences
    largest: list[float]
    fitted_over: tuple[float, float]  # the p of the next two numbers
    rate: float  # slope of log(mean) over p by least squares; theory: −1
    constant: float  # mean · e^p at the largest fitted p
    predicted_constant: (
        float | None
    )  # mean of C; None for the causal first layer, for which it is not derived
    bound: float | None  # 2/σ: no sequence's error · e^p is larger; None as above

    def within_bound(self) -> bool | None:
        """Whether no sequence at any p came out above the bound."""
        if self.bound is None:
            return None
        measured = zip(self.steepness, self.largest, strict=True)
        return all(error <= self.bound * math.exp(-p) + ROUNDING for p, error in measured)


ROUNDING = 1e-14
"""What float64 leaves of sums of some dozens of numbers of size 1."""


@torch.no_grad()
def measure_errors(
    steepness: Sequence[float],
    *,
    sigma: float,
    slope: float,
    dim: int = 32,
    tokens: int = 32,
    sequences: int = 64,
    seed: int = 0,
    first_mask: FirstMask = "before",
    fit_over: tuple[float, float] = (4.0, 12.0),
) -> ErrorCurve:
    """The construction's error at each p, and its rate.

    The rate is fitted over p of `fit_over` alone: below, e^(−2p) still counts; above, rounding does, in the
    causal construction soon.

    Raises:
        UsageError: fewer than two p to fit.
    """
    fitted = [place for place, p in enumerate(steepness) if fit_over[0] <= p <= fit_over[1]]
    if len(fitted) < 2:
        raise UsageError(f"{len(fitted)} of the p lie in {fit_over}: expected two or more to fit a rate.")
    x = induction_tokens(sequences, tokens=tokens, dim=dim, seed=seed)
    wanted = induction_head(x, slope=slope, sigma=sigma)[:, -1]
    errors = []
    for p in steepness:
        model = TwoLayers(dim, steepness=p, slope=slope, sigma=sigma, first_mask=first_mask)
        errors.append((model(x)[:, -1] - wanted).norm(dim=-1))
    mean = [float(error.mean()) for error in errors]
    rate, _ = np.polyfit([steepness[place] for place in fitted], np.log([mean[place] for place in fitted]), 1)
    derived = first_mask == "before"
    return ErrorCurve(
        sigma=sigma,
        slope=slope,
        dim=dim,
        tokens=tokens,
        first_mask=first_mask,
        steepness=list(steepness),
        mean=mean,
        largest=[float(error.max()) for error in errors],
        fitted_over=fit_over,
        rate=float(rate),
        constant=mean[fitted[-1]] * math.exp(steepness[fitted[-1]]),
        predicted_constant=float(first_order(x, slope=slope, sigma=sigma).mean()) if derived else None,
        bound=2 / sigma if derived else None,
    )
