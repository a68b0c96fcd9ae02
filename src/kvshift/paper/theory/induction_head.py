"""The induction-head map IH, what Theorems 1 and 2 are about.

    IH(x) = Σ_{s=2}^{L−1} softmax_s( x_L·x_{s−1}/σ − m·|L−s| ) x_s

The last token looks for tokens like itself among those before and returns what followed them. The softmax
runs over the same positions as the sum, s = 2 … L−1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def induction_head(x: Tensor, *, slope: float, sigma: float) -> Tensor:
    """IH of every prefix.

    Args:
        x: tokens, `(batch, length, dim)`.
        slope: m.
        sigma: σ.

    Returns:
        `(batch, length, dim)`; row t is IH of the first t tokens, zero for t = 1 and 2, whose sums are empty.
    """
    rows = torch.zeros_like(x)
    for t in range(3, x.shape[1] + 1):
        prefix = x[:, :t]
        found = (prefix[:, -1:] @ prefix[:, : t - 2].transpose(1, 2)).squeeze(1) / sigma  # of s − 1 = 1 … t−2
        distance = torch.arange(t - 2, 0, -1, dtype=x.dtype, device=x.device)  # of s = 2 … t−1
        weights = (found - slope * distance).softmax(-1)
        rows[:, t - 1] = (weights[:, None] @ prefix[:, 1 : t - 1]).squeeze(1)
    return rows


def induction_tokens(
    count: int, *, tokens: int, dim: int, seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Sequences with something to find: `tokens` random unit vectors, one of them once more at the end.

    The last token repeats one at places 2 to `tokens` − 2, drawn at random. `(count, tokens + 1, dim)`.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, tokens, dim, generator=generator, dtype=dtype)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    repeated = torch.randint(1, tokens - 2, (count,), generator=generator)
    return torch.cat((drawn, drawn[torch.arange(count), repeated][:, None]), dim=1)
