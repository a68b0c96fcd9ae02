"""Theorem 2: one layer of KV shifting attention, one head of width d, equals IH.

With W_q = W_k = W_v = W_o = I, α = (0, 1) and β = (1, 0) the keys are k̂_s = x_{s−1} (zero for s = 1) and the
values v̂_s = x_s, so the score of s at the last token is x_L·x_{s−1}/σ − m(L−s): IH's, term by term. What is
left is the set of positions. IH runs over s = 2 … L−1. A causal softmax has two more:

    s = 1 has nothing before it: a zero key, hence the score −m(L−1), and the value x_1;
    s = L is the last token itself: the score x_L·x_{L−1}/σ at distance 0, and the value x_L.

If the causal softmax gives them the weights p_1 and p_L, the rest is 1 − p_1 − p_L times IH's softmax, so

    model − IH = p_1 (x_1 − IH) + p_L (x_L − IH)                                              (exactly)

and only the mask 1 < s < t gives IH itself. p_1 falls like e^(−m(L−1)). p_L does not: where the answer lies D
tokens back it is about e^(mD − 1/σ): small only if the match, 1/σ, outweighs ALiBi's price of the distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvshift.paper.theory.attention import INDUCTION, MASKS, Head, Mask, linear
from kvshift.paper.theory.induction_head import induction_head, induction_tokens


def one_layer(dim: int, *, slope: float, sigma: float, mask: Mask = "between") -> Head:
    """The theorem's construction, in float64."""
    identity = torch.eye(dim, dtype=torch.float64)
    return Head(
        slope=slope,
        scale=1 / sigma,
        mask=mask,
        taps=INDUCTION,
        query=linear(identity),
        key=linear(identity),
        value=linear(identity),
        output=linear(identity),
    )


@torch.no_grad()
def ends(x: Tensor, *, slope: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The weights p_1 and p_L, each `(batch,)`, that a causal softmax gives the first and the last token."""
    weights = one_layer(x.shape[-1], slope=slope, sigma=sigma, mask="causal").weights(x)[:, -1]
    return weights[:, 0], weights[:, -1]


@dataclass(frozen=True)
class OneLayerCheck:
    """The construction against IH at the last token of random sequences."""

    sigma: float
    slope: float
    errors: dict[Mask, float]  # mask → largest distance ‖model − IH‖; tokens have length 1
    first_weight: float  # p_1, mean over sequences
    last_weight: float  # p_L, mean
    unexplained: float  # largest ‖(model − IH) − p_1(x_1 − IH) − p_L(x_L − IH)‖ of the causal mask

    def exact_masks(self, rounding: float = 1e-12) -> tuple[Mask, ...]:
        """The masks under which the model is IH to rounding."""
        return tuple(mask for mask, error in self.errors.items() if error <= rounding)


@torch.no_grad()
def check_one_layer(
    *, sigma: float, slope: float, dim: int = 64, tokens: int = 32, sequences: int = 64, seed: int = 0
) -> OneLayerCheck:
    """Measures the construction under every mask, on `tokens` random tokens of which the last repeats one."""
    x = induction_tokens(sequences, tokens=tokens, dim=dim, seed=seed)
    wanted = induction_head(x, slope=slope, sigma=sigma)[:, -1]
    off = {
        mask: one_layer(dim, slope=slope, sigma=sigma, mask=mask)(x)[:, -1] - wanted for mask in MASKS
    }  # (batch, dim)
    first, last = ends(x, slope=slope, sigma=sigma)
    explained = first[:, None] * (x[:, 0] - wanted) + last[:, None] * (x[:, -1] - wanted)
    return OneLayerCheck(
        sigma=sigma,
        slope=slope,
        errors={mask: float(difference.norm(dim=-1).max()) for mask, difference in off.items()},
        first_weight=float(first.mean()),
        last_weight=float(last.mean()),
        unexplained=float((off["causal"] - explained).norm(dim=-1).max()),
    )
