"""Toy induction (paper, Fig. 1): a token seen before is followed by what followed it.

**The sequence.** Each row draws `candidates` different tokens out of the vocabulary. Then, again and again,
one of them is drawn at random, never the one just written:

- seen for the first time, it is written and becomes the *recorded successor* of the token before it, in place
  of an earlier one;
- seen before, it is written and, after it, its recorded successor. If it has none, nothing follows by itself
  and the next draw comes at once. (It has none as long as no new token has come right after it; what
  happens then is not described in the paper.)

**What is determined when.** Position t is *determined* if its token was not drawn but written as the recorded
successor of token t-1. Nothing else can be predicted better than by guessing among the candidates, and no
other position is scored. The recorded successor is always among the *observed* ones, the tokens that followed
token t-1 earlier in the row. But they may be several: a written successor is followed by a free draw of its
own, and a token that gets a new recorded successor was followed by the old one. So a determined position is

- *unambiguous* if everything that followed an earlier token t-1 is one and the same token, which then is
  the answer;
- *ambiguous* if different tokens followed it: a head that looks for token t-1 finds several answers. (The
  rule still picks one: of the successors that were new to the row when they appeared, the latest.)

The *first* determined position of a row, the paper's score, is always unambiguous: no token before it was
followed by two different ones.

**Chance.** Uniform guesses are right once in `vocab_size`. Whoever guesses among the tokens that have been a
successor already, n of them, is right once in n at the first position: 5.5% of the time with the paper's 512
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from kvshift.tasks.task import (
    Batch,
    Scores,
    check_range,
    check_size,
    count_groups,
    next_token_batch,
    source,
)

FIRST, UNAMBIGUOUS, AMBIGUOUS = 1, 2, 3  # groups; the first position counts as unambiguous, too
_NONE, _SEVERAL = -1, -2
_BLOCK = 512  # rows made at once: what they need fits the processor's cache


@dataclass(frozen=True)
class Induction:
    """The paper's toy induction."""

    packs: ClassVar[bool] = False

    seed: int = 0
    vocab_size: int = 8000
    candidates: int = 512
    """How many different tokens a row is made of."""

    length: int = 512
    every_token: bool = False
    """Learn every next token, as a language model would, not only the determined ones."""

    def __post_init__(self) -> None:
        check_range(self, "seed", 0, 2**63 - 1)
        check_range(self, "vocab_size", 3, 2**31 - 1)
        check_range(
            self, "candidates", 3, self.vocab_size, "a row's tokens differ, and vocab_size has no more"
        )
        check_range(self, "length", 2, 2**20)

    def batch(self, step: int, size: int) -> Batch:
        """`size` rows of `length` tokens; the targets are the next tokens."""
        return self._make(source(self.seed, "train", step), size)

    def test(self, step: int, size: int) -> Batch:
        """The same distribution, other rows."""
        return self._make(source(self.seed, "test", step), size)

    def score(self, predictions: Tensor, batch: Batch) -> Scores:
        """`first`: the paper's score. `unambiguous`, `ambiguous`, and `determined` for both together."""
        first, later, ambiguous = count_groups(predictions, batch, AMBIGUOUS)
        unambiguous = first + later
        return {
            "first": first,
            "unambiguous": unambiguous,
            "ambiguous": ambiguous,
            "determined": unambiguous + ambiguous,
        }

    def _make(self, rng: np.random.Generator, size: int) -> Batch:
        check_size(size)
        tokens = np.empty((size, self.length + 1), np.int32)
        groups = np.empty(tokens.shape, np.int64)
        for begin in range(0, size, _BLOCK):
            block = slice(begin, min(begin + _BLOCK, size))
            rows = block.stop - begin
            labels, found = _walk(rng, rows, self.length + 1, self.candidates)
            names = different_tokens(rng, rows, int(labels.max()) + 1, self.vocab_size)
            tokens[block] = np.take_along_axis(names, labels, 0).T
            groups[block] = found.T
        return next_token_batch(tokens, groups, self.every_token)


def _walk(rng: np.random.Generator, size: int, time: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of labels, which number a row's tokens from 0 in the order of their first appearance.

    All candidates not seen yet are alike: drawing any of them writes the next label. So of the numbers below
    `candidates`, those below `seen` stand for the token with that label and the others for a new one.

    Returns:
        int64 `(time, size)` labels and their groups, 0 where a token is not determined.
    """
    draws = rng.integers(candidates - 1, size=(time, size))  # one fewer: the token before is left out
    labels = np.zeros((time, size), np.int64)
    groups = np.zeros((time, size), np.int64)
    row = np.arange(size) * min(time, candidates)
    recorded = np.full(size * min(time, candidates), _NONE)  # by row and label
    observed = recorded.copy()
    seen = np.ones(size, np.int64)
    forced = np.full(size, _NONE)  # what must follow the token just written
    before = np.zeros(size, np.int64)
    for t in range(1, time):
        draw = draws[t] + (draws[t] >= before)
        free = forced < 0
        new = free & (draw >= seen)
        token = np.where(free, np.minimum(draw, seen), forced)

        at = row + before
        known = observed.take(at)
        observed[at] = np.where((known == _NONE) | (known == token), token, _SEVERAL)
        groups[t] = np.where(free, 0, np.where(known == _SEVERAL, AMBIGUOUS, UNAMBIGUOUS))
        recorded[at[new]] = token[new]

        forced = np.where(free, recorded.take(row + token), _NONE)
        seen += new
        labels[t] = before = token
    determined = groups > 0
    first = determined.argmax(0), np.arange(size)
    groups[first] = np.where(determined[first], FIRST, 0)
    return labels, groups


def different_tokens(rng: np.random.Generator, size: int, count: int, vocab_size: int) -> np.ndarray:
    """`count` different tokens for each of `size` rows, every choice and order equally likely.

    Returns:
        int32 `(count, size)`.
    """
    # The first steps of a Fisher-Yates shuffle, for all rows side by side.
    pool = np.tile(np.arange(vocab_size, dtype=np.int32), size)
    row = np.arange(size) * vocab_size
    picks = row + rng.integers(np.arange(count)[:, None], vocab_size, size=(count, size))
    chosen = np.empty((count, size), np.int32)
    for step, pick in enumerate(picks):
        chosen[step] = pool[pick]
        pool[pick] = pool[row + step]
    return chosen
