"""Theorem 3 against the real thing: random embeddings of finite dimension through attention with `kv_shift`.

Orthonormal embeddings (d ≥ T) must give the formulas to rounding: they use nothing but orthogonality. Random
ones have inner products of size 1/√d, which enter scores and logits alike, so a sequence's logits are off by
O(1/√d) and the mean over sequences by less. A slip in a row of the formulas stays, however large d is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvshift.errors import UsageError
from kvshift.paper.theory.attention import Head
from kvshift.paper.theory.logits import CLASSES, SLIPS, Counts, logits, loss

Embeddings = Literal["orthonormal", "unit", "gaussian"]


def draw(kind: Embeddings, count: int, tokens: int, dim: int, generator: torch.Generator) -> Tensor:
    """Embeddings `(count, tokens, dim)`, float64: orthonormal, random of length 1, or N(0, 1/dim) numbers.

    Raises:
        UsageError: no such kind, or more orthonormal tokens than dimensions.
    """
    drawn = torch.randn(count, tokens, dim, generator=generator, dtype=torch.float64)
    if kind == "gaussian":
        return drawn / math.sqrt(dim)
    if kind == "unit":
        return drawn / drawn.norm(dim=-1, keepdim=True)
    if kind != "orthonormal":
        raise UsageError(f"embeddings {kind!r}: expected orthonormal, unit or gaussian.")
    if dim < tokens:
        raise UsageError(
            f"{tokens} orthonormal tokens of dimension {dim}: expected {tokens} or more dimensions."
        )
    return torch.linalg.qr(drawn.transpose(1, 2)).Q.transpose(1, 2)


@dataclass(frozen=True)
class Simulated:
    """Logits and losses of random sequences."""

    logits: Tensor  # (count, tokens), of the tokens in the order of the sequence
    repeated: Tensor  # (count,), the place of i, from 0
    losses: Tensor  # (count,)

    def by_class(self) -> dict[str, Tensor]:
        """Each class's logits, `(count,)`, and `(count, tokens − 4)` of the others."""
        rows, last = torch.arange(len(self.repeated)), self.logits.shape[1] - 1
        places = {"i-1": self.repeated - 1, "i": self.repeated, "i+1": self.repeated + 1}
        places["T"] = torch.full_like(self.repeated, last)
        special = torch.zeros_like(self.logits, dtype=torch.bool)
        for place in places.values():
            special[rows, place] = True
        found = {name: self.logits[rows, place] for name, place in places.items()}
        return {**found, "others": self.logits[~special].reshape(len(rows), -1)}


@torch.no_grad()
def simulate(
    taps: tuple[float, float, float, float],
    *,
    tokens: int,
    dim: int,
    count: int,
    embeddings: Embeddings = "unit",
    seed: int = 0,
) -> Simulated:
    """Runs `count` sequences of `tokens` different tokens and one of them again (2 ≤ i ≤ T − 2, at random).

    Args:
        taps: α1, α2, β1, β2.

    Raises:
        UsageError: fewer than four tokens, or see `draw`.
    """
    Counts.exact(tokens)
    generator = torch.Generator().manual_seed(seed)
    embedded = draw(embeddings, count, tokens, dim, generator)
    repeated = torch.randint(1, tokens - 2, (count,), generator=generator)
    again = embedded[torch.arange(count), repeated][:, None]
    alpha1, alpha2, beta1, beta2 = taps
    head = Head(slope=0.0, scale=1.0, mask="causal", taps=((alpha1, alpha2), (beta1, beta2)))
    out = head(torch.cat((embedded, again), dim=1))[:, -1]
    found = torch.einsum("bd,btd->bt", out, embedded)
    answer = found[torch.arange(count), repeated + 1]
    return Simulated(logits=found, repeated=repeated, losses=found.logsumexp(-1) - answer)


@dataclass(frozen=True)
class Convergence:
    """The simulation's distance to the formulas at each dimension."""

    embeddings: str
    taps: tuple[float, float, float, float]
    tokens: int
    count: int
    dims: list[int]
    logit_errors: dict[str, list[float]]  # class → root mean square over sequences, at each dimension
    loss_errors: list[float]  # the same of the loss
    mean_loss_errors: list[float]  # |mean loss − formula|
    logit_rates: dict[str, float]  # slope of log error over log d; theory: −1/2
    loss_rate: float


def converge(
    dims: Sequence[int],
    taps: tuple[float, float, float, float] = (0.2, 0.8, 0.7, 0.3),
    *,
    tokens: int = 16,
    count: int = 256,
    embeddings: Embeddings = "unit",
    seed: int = 0,
) -> Convergence:
    """Measures the distance at each of `dims` and its rate. The default taps tell every row from every other.

    Raises:
        UsageError: fewer than two dimensions.
    """
    if len(dims) < 2:
        raise UsageError(f"{len(dims)} dimensions: expected two or more to see a rate.")
    numbers, counts = torch.tensor(taps, dtype=torch.float64), Counts.exact(tokens)
    wanted = dict(zip(CLASSES, logits(numbers, counts).tolist(), strict=True))
    wanted_loss = float(loss(numbers, counts))
    errors: dict[str, list[float]] = {name: [] for name in CLASSES}
    loss_errors, mean_loss_errors = [], []
    for dim in dims:
        found = simulate(taps, tokens=tokens, dim=dim, count=count, embeddings=embeddings, seed=seed)
        for name, values in found.by_class().items():
            errors[name].append(_root_mean_square(values - wanted[name]))
        loss_errors.append(_root_mean_square(found.losses - wanted_loss))
        mean_loss_errors.append(abs(float(found.losses.mean()) - wanted_loss))
    return Convergence(
        embeddings=embeddings,
        taps=taps,
        tokens=tokens,
        count=count,
        dims=list(dims),
        logit_errors=errors,
        loss_errors=loss_errors,
        mean_loss_errors=mean_loss_errors,
        logit_rates={name: _rate(dims, values) for name, values in errors.items()},
        loss_rate=_rate(dims, loss_errors),
    )


@dataclass(frozen=True)
class Row:
    """One row of the table of logits against orthonormal embeddings."""

    name: str
    derived: float  # largest |simulated − derived|
    slipped: float | None  # the same with e^α2 written for e^α1; None where no e^α1 stands in the row

    def confirmed(self, rounding: float = 1e-12) -> bool:
        """Whether the derived row is right to rounding and the other, if there is one, is not."""
        return self.derived <= rounding and (self.slipped is None or self.slipped > 1000 * rounding)


def check_rows(
    taps: tuple[float, float, float, float] = (0.2, 0.8, 0.7, 0.3),
    *,
    tokens: int = 16,
    dim: int = 64,
    count: int = 64,
    seed: int = 0,
) -> list[Row]:
    """Every row of the table against orthonormal embeddings.

    The paper's printed table has α2 for α1 in two rows. Each row in which e^α1 stands besides S (i−1, i, T)
    is therefore also tried with e^α2 in its place.
    """
    numbers, counts = torch.tensor(taps, dtype=torch.float64), Counts.exact(tokens)
    found = simulate(
        taps, tokens=tokens, dim=dim, count=count, embeddings="orthonormal", seed=seed
    ).by_class()
    derived = dict(zip(CLASSES, logits(numbers, counts).tolist(), strict=True))
    slipped = dict(zip(CLASSES, logits(numbers, counts, slipped=SLIPS).tolist(), strict=True))
    return [
        Row(
            name=name,
            derived=float((found[name] - derived[name]).abs().max()),
            slipped=float((found[name] - slipped[name]).abs().max()) if name in SLIPS else None,
        )
        for name in CLASSES
    ]


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _rate(dims: Sequence[int], errors: Sequence[float]) -> float:
    return float(np.polyfit(np.log(dims), np.log(errors), 1)[0])
