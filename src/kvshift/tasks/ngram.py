"""3-gram rules (paper, Fig. 3): two tokens decide the third, by rules that hold in every row.

The rules, `rules` different pairs (x1, x2) with an x3 each, are drawn once from the seed; a model must learn
them by heart. A row is written from left to right:

- after a pair that makes up a rule, that rule's x3 follows, always; these positions are scored;
- elsewhere, with probability `density`, a rule drawn at random begins: its x1 and, unless another rule's pair
  came about, its x2;
- elsewhere a token drawn at random follows.

The paper has about 200 random rules. Decided here: the vocabulary is small (64), so that an x2
belongs to about three rules and cannot replace the pair; and no rule's (x2, x3) is itself the pair of a rule,
so that rules do not run in circles.

**Chance.** Uniform guesses are right once in `vocab_size`. `last_token_ceiling` is what reading x2 alone can
reach: a model counts as having learned 3-grams only above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from torch import Tensor

from kvshift.errors import UsageError
from kvshift.tasks.task import (
    Batch,
    Scores,
    check_range,
    check_size,
    count_groups,
    next_token_batch,
    source,
)


@dataclass(frozen=True)
class NGram:
    """The paper's 3-gram rules."""

    packs: ClassVar[bool] = False

    seed: int = 0
    vocab_size: int = 64
    rules: int = 200
    length: int = 512
    density: float = 0.25
    """How likely a rule begins where no token is decided yet."""

    every_token: bool = False
    """Learn every next token, as a language model would, not only those a rule decides."""

    def __post_init__(self) -> None:
        check_range(self, "seed", 0, 2**63 - 1)
        check_range(self, "vocab_size", 2, 2**16)
        most = self.vocab_size**2 // 4
        check_range(self, "rules", 1, most, "a quarter of all pairs; give more tokens for more rules")
        check_range(self, "length", 3, 2**20)
        if not 0 < self.density <= 1:  # NaN fails this too
            raise UsageError(
                f"NGram.density is {self.density!r}; expected a probability above 0 and at most 1."
            )
        _ = self.table  # refuses rules that cannot be drawn now rather than at the first batch

    @cached_property
    def table(self) -> np.ndarray:
        """The rules, int64 `(rules, 3)`, read-only: x1, x2, x3."""
        rng = source(self.seed, "rules")
        pairs = rng.choice(self.vocab_size**2, self.rules, replace=False)
        firsts, seconds = np.divmod(pairs, self.vocab_size)
        taken: dict[int, list[int]] = {}
        for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
            taken.setdefault(first, []).append(second)
        thirds = np.empty_like(seconds)
        for rule, second in enumerate(seconds.tolist()):
            allowed = np.delete(np.arange(self.vocab_size), taken.get(second, []))
            if not len(allowed):
                raise UsageError(
                    f"NGram cannot draw {self.rules} rules over {self.vocab_size} tokens with seed "
                    f"{self.seed}: every pair that begins with token {second} is one; give fewer rules or "
                    "more tokens."
                )
            thirds[rule] = rng.choice(allowed)
        table = np.stack((firsts, seconds, thirds), axis=1)
        table.setflags(write=False)
        return table

    @property
    def last_token_ceiling(self) -> float:
        """The best accuracy for a model that sees x2 only, every rule being equally frequent."""
        counts = np.zeros((self.vocab_size, self.vocab_size), np.int64)
        np.add.at(counts, (self.table[:, 1], self.table[:, 2]), 1)
        return float(counts.max(axis=1).sum() / self.rules)

    def batch(self, step: int, size: int) -> Batch:
        """`size` rows of `length` tokens; the targets are the next tokens."""
        return self._make(source(self.seed, "train", step), size)

    def test(self, step: int, size: int) -> Batch:
        """The same rules and distribution, other rows."""
        return self._make(source(self.seed, "test", step), size)

    def score(self, predictions: Tensor, batch: Batch) -> Scores:
        """`rules`: wherever the two tokens before make up a rule."""
        (rules,) = count_groups(predictions, batch, 1)
        return {"rules": rules}

    def _make(self, rng: np.random.Generator, size: int) -> Batch:
        check_size(size)
        tokens, decided = self._walk(rng, size)
        return next_token_batch(tokens.T, decided.T.astype(np.int64), self.every_token)

    @cached_property
    def _third_of(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 `(vocab_size,)`, a line for each x1 (line 0 has no rules); int64 `(lines, vocab_size)`, the
        x3 of that x1 and each x2, or -1."""
        firsts, lines = np.unique(self.table[:, 0], return_inverse=True)
        line_of = np.zeros(self.vocab_size, np.int64)
        line_of[firsts] = 1 + np.arange(len(firsts))
        third = np.full((len(firsts) + 1, self.vocab_size), -1)
        third[1 + lines, self.table[:, 1]] = self.table[:, 2]
        return line_of, third

    def _walk(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 tokens and bool, whether a rule decided them; both `(length + 1, size)`."""
        shape = (self.length + 1, size)
        rule = rng.integers(self.rules, size=shape)
        begins = rng.random(shape) < self.density
        fresh = np.where(begins, self.table[rule, 0], rng.integers(self.vocab_size, size=shape))
        second = np.where(begins, self.table[rule, 1], -1)
        line_of, third_of = self._third_of

        tokens = np.empty(shape, np.int64)
        decided = np.zeros(shape, bool)
        tokens[0] = fresh[0]
        planned = second[0]  # the x2 of a rule that has begun
        line = line_of[tokens[0]]  # of the last token but one
        tokens[1] = np.where(planned < 0, fresh[1], planned)
        planned = np.where(planned < 0, second[1], -1)
        for t in range(2, len(tokens)):
            third = third_of[line, tokens[t - 1]]
            line = line_of[tokens[t - 1]]
            decided[t] = third >= 0
            free = ~decided[t] & (planned < 0)
            tokens[t] = np.where(decided[t], third, np.where(free, fresh[t], planned))
            planned = np.where(free, second[t], -1)
        return tokens, decided
