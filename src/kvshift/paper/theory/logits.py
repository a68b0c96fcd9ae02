"""Theorem 3: the logits of one KV shifting head on a repeated token, and the loss.

Tokens 1 … T are all different and the last, at place T + 1, is token i again; the answer is i + 1. Embeddings
are orthonormal (what random ones become as d → ∞), all weights the identity, scores have no scale, positions
play no part. The query is e_i and the key of place s is α1 e_s + α2 e_(s−1), so the scores are

    place i: α1      place i+1: α2      place T+1 (token i again): α1      the other T − 2 places: 0

With S = 2e^α1 + e^α2 + (T − 2), a1 = e^α1/S and a2 = e^α2/S the attention is a1, a2, a1 and 1/S. The value of
place s is β1 e_s + β2 e_(s−1): token j gets β1 times the attention to its own place, β2 times the next one's.

    token    own place       next place         logit
    i−1      1/S             i: a1              β1/S + β2·a1
    i        i, T+1: 2·a1    i+1: a2            2β1·a1 + β2·a2
    i+1      a2              i+2: 1/S           β1·a2 + β2/S          the answer
    T        1/S             T+1: a1            β1/S + β2·a1
    others   1/S             1/S                (β1 + β2)/S           T − 4 tokens

The loss is −log softmax at i+1 over the vocabulary: these T tokens, and any that the sequence lacks, at 0.

**What O(T) is.** Two numbers: T − 2 places in S and T − 4 tokens in the loss. The paper writes O(T) for both;
as T grows the difference does not matter. Its O(T) = 0 belongs to no sequence: five classes need T ≥ 4, where
S has 2.

**Which i.** 2 ≤ i ≤ T−2. For i = 1 there is no token i−1; for i = T−1 the answer is token T, its logit
β1·a2 + β2·a1; for i = T the last two tokens are alike and the last key scores α1 + α2.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from kvshift.errors import UsageError

CLASSES = ("i-1", "i", "i+1", "T", "others")
ANSWER = CLASSES.index("i+1")
SLIPS = ("i-1", "i", "T")  # the rows with e^α1 besides S


@dataclass(frozen=True)
class Counts:
    """How many places and tokens beside the special ones; not whole numbers only, for the paper's O(T)."""

    places: float  # that score 0, in S
    tokens: float  # of the class "others", in the loss
    absent: float = 0.0  # tokens of the vocabulary that the sequence lacks

    @staticmethod
    def exact(distinct: int, vocabulary: int | None = None) -> Counts:
        """Of a sequence of T = `distinct` tokens; without `vocabulary` there are no others.

        Raises:
            UsageError: fewer than four distinct tokens, or a vocabulary smaller than that.
        """
        if distinct < 4:
            raise UsageError(f"{distinct} distinct tokens: expected 4 or more, i−1, i, i+1 and T.")
        if vocabulary is not None and vocabulary < distinct:
            raise UsageError(f"A vocabulary of {vocabulary}: expected {distinct} or more.")
        return Counts(distinct - 2, distinct - 4, 0 if vocabulary is None else vocabulary - distinct)

    @staticmethod
    def paper(order: float) -> Counts:
        """The paper's form: one number, O(T), for both.

        Raises:
            UsageError: below 0.
        """
        if not 0 <= order < math.inf:
            raise UsageError(f"O(T) = {order}: expected 0 or more.")
        return Counts(order, order)


def logits(taps: Tensor, counts: Counts, slipped: Collection[str] = ()) -> Tensor:
    """The five logits of `CLASSES`, `(..., 5)`, of taps α1, α2, β1, β2 `(..., 4)`.

    Args:
        taps: any leading shape.
        counts: the sequence's, or the paper's O(T).
        slipped: rows of `SLIPS` in which to write e^α2 for e^α1, as the paper's printed table does in two.

    Raises:
        UsageError: `slipped` names a row without e^α1.
    """
    if unknown := set(slipped) - set(SLIPS):
        raise UsageError(f"{min(unknown)!r} is no row with e^α1: expected some of {', '.join(SLIPS)}.")
    alpha1, alpha2, beta1, beta2 = taps.unbind(-1)
    e1, e2 = alpha1.exp(), alpha2.exp()
    total = 2 * e1 + e2 + counts.places
    a1, a2, rest = e1 / total, e2 / total, 1 / total
    before_a1, repeated_a1, last_a1 = (a2 if row in slipped else a1 for row in SLIPS)
    before = beta1 * rest + beta2 * before_a1
    repeated = 2 * beta1 * repeated_a1 + beta2 * a2
    answer = beta1 * a2 + beta2 * rest
    last = beta1 * rest + beta2 * last_a1
    others = (beta1 + beta2) * rest
    return torch.stack((before, repeated, answer, last, others), dim=-1)


def loss(taps: Tensor, counts: Counts, slipped: Collection[str] = ()) -> Tensor:
    """−log softmax at the answer in nats, `(...)`; arguments and errors as of `logits`."""
    five = logits(taps, counts, slipped)
    absent = torch.zeros_like(five[..., :1])  # the logit of a token that is not there
    sizes = five.new_tensor([1, 1, 1, 1, counts.tokens, counts.absent])
    every = torch.cat((five, absent), dim=-1) + sizes.log()  # log 0 = −∞ leaves an empty class out
    return every.logsumexp(-1) - five[..., ANSWER]
