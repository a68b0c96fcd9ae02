"""Multi-hop induction (paper, Fig. 9; the task of Sanford et al. 2024).

A row draws `characters` letters out of {a, b, c, d}, each different from the one before it, and a number of
hops k, uniform from 0 to `most_hops`. Then, with positions i counted from the first letter,

    prev(i)   the latest j < i with X_j = X_i
    find¹(i)  prev(i) + 1, or ⊥ where there is no such j
    findᵏ     find¹ ∘ findᵏ⁻¹, where ⊥ stays ⊥; find⁰ is the identity
    hopₖ(i)   X at findᵏ(i), or ⊥

The input is k followed by all letters but the last two, the target BLANK followed by hopₖ at those letters:
**at the same position**, not one further. Cross-entropy counts every position; the score is the token error
over targets that are neither ⊥ nor BLANK.

**Chance.** Uniform guesses among the four letters are wrong 3/4 of the time. Whoever knows X_i and k alone
does better where there are few hops: the answer of one hop is never X_i, which leaves three; of two hops it
is X_i half of the time, of three 12%, of four 35%, and of twelve or more 25% ± 1%.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kvshift.tasks.task import Batch, Count, Scores, check_range, check_size, count_groups, source

LETTERS = 4
FIRST_LETTER, NOWHERE, BLANK = 17, 21, 22  # ids 0 to 16 are the numbers of hops; NOWHERE is ⊥
_UNUSED = 2  # letters drawn last that are not shown


@dataclass(frozen=True)
class Hops:
    """The paper's multi-hop task."""

    vocab_size: ClassVar[int] = 30
    """As the reference model has it; ids from 23 on do not occur."""

    packs: ClassVar[bool] = False

    seed: int = 0
    most_hops: int = 16
    characters: int = 100

    def __post_init__(self) -> None:
        check_range(self, "seed", 0, 2**63 - 1)
        check_range(self, "most_hops", 0, 16, "hops have the token ids 0 to 16")
        check_range(self, "characters", _UNUSED + 1, 2**20, "the last two are not shown")

    @property
    def length(self) -> int:
        """Positions in a row: the number of hops and the letters that are shown."""
        return self.characters - _UNUSED + 1

    def batch(self, step: int, size: int) -> Batch:
        """`size` rows, each with a number of hops of its own."""
        rng = source(self.seed, "train", step)
        check_size(size)
        return self._make(rng, rng.integers(self.most_hops + 1, size=size))

    def test(self, step: int, size: int) -> Batch:
        """Other rows; 0 to `most_hops` hops take turns, so 17 · 100 rows are the paper's 100 for each."""
        check_size(size)
        return self._make(source(self.seed, "test", step), np.arange(size) % (self.most_hops + 1))

    def score(self, predictions: Tensor, batch: Batch) -> Scores:
        """`hops=0` to `hops=16`, and `all` of them; the paper gives their `error`."""
        counts = count_groups(predictions, batch, self.most_hops + 1)
        scores = {f"hops={k}": count for k, count in enumerate(counts)}
        return {**scores, "all": sum(counts, Count(0, 0))}

    def _make(self, rng: np.random.Generator, hops: np.ndarray) -> Batch:
        letters = _draw_letters(rng, len(hops), self.characters)[:, :-_UNUSED]
        place = _follow(find_once(letters), hops)
        answer = np.where(place < 0, NOWHERE, FIRST_LETTER + np.take_along_axis(letters, place, 1))
        starts = np.zeros((len(hops), self.length), bool)
        starts[:, 0] = True
        return Batch(
            inputs=_with_first(hops, FIRST_LETTER + letters),
            targets=_with_first(np.full(len(hops), BLANK), answer),
            starts=torch.from_numpy(starts),
            groups=_with_first(np.zeros(len(hops), np.int64), np.where(place < 0, 0, 1 + hops[:, None])),
        )


def _draw_letters(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """int64 `(size, count)` in 0..3: the first uniform, each other one uniform over the three that differ."""
    steps = rng.integers(1, LETTERS, size=(size, count))
    steps[:, 0] = rng.integers(LETTERS, size=size)
    return steps.cumsum(axis=1) % LETTERS


def find_once(letters: np.ndarray) -> np.ndarray:
    """find¹ at every position: int64 like `letters`, `(rows, time)`; -1 for ⊥."""
    time = np.arange(letters.shape[1])
    found = np.zeros_like(letters)
    for letter in range(LETTERS):
        here = letters == letter
        latest = np.maximum.accumulate(np.where(here, time + 1, 0), axis=1)  # one past the latest, 0 for none
        found[:, 1:] += np.where(here[:, 1:], latest[:, :-1], 0)
    return np.where(found == 0, -1, found)


def _follow(once: np.ndarray, hops: np.ndarray) -> np.ndarray:
    """findᵏ at every position, with k from `hops`, `(rows,)`; -1 for ⊥.

    The powers of two that add up to k are applied one after another: they commute.
    """
    rows, time = once.shape
    # A last column that leads to itself keeps ⊥ at ⊥.
    power = np.concatenate((np.where(once < 0, time, once), np.full((rows, 1), time)), axis=1)
    place = np.broadcast_to(np.arange(time + 1), power.shape)
    for bit in range(int(hops.max()).bit_length()):
        if bit:
            power = np.take_along_axis(power, power, 1)
        chosen = (hops >> bit & 1 == 1)[:, None]
        place = np.where(chosen, np.take_along_axis(power, place, 1), place)
    return np.where(place == time, -1, place)[:, :-1]


def _with_first(first: np.ndarray, rest: np.ndarray) -> Tensor:
    """int64 `(rows, 1 + n)` of a column and what follows it."""
    return torch.from_numpy(np.concatenate((first[:, None], rest), axis=1).astype(np.int64, copy=False))
