"""Training and validation, by document. The same text and seed give the same split, in any file order."""

from __future__ import annotations

import numpy as np

from kvshift.tasks.text.passages import FEW_DOCUMENTS
from kvshift.tasks.text.shingles import mix

MOST_VALIDATION = 4_000_000  # bytes: about a million tokens, more than any evaluation reads
LEAST_VALIDATION = 120_000  # bytes: about 40,000 tokens; less makes the loss uncertain
_BLOCKS = 20
_BLOCK_PASSAGES = 4


def validation_bytes(total: int, share: float) -> int:
    """How much of a corpus of `total` bytes to set aside."""
    return int(max(min(share * total, MOST_VALIDATION), min(LEAST_VALIDATION, total / 5)))


def keys(digests: np.ndarray, seed: int) -> np.ndarray:
    """uint64 `(documents,)`: numbers as good as random, of a document's content and the seed only."""
    return mix(digests[:, 0] ^ mix(digests[:, 1] + mix(np.array([seed], np.uint64) + np.uint64(1))))


def split(sizes: np.ndarray, keys: np.ndarray, document: np.ndarray, share: float) -> np.ndarray:
    """Chooses the validation units.

    Whole documents are drawn in the order of their keys. Of a document that was cut into passages, some
    runs of neighbouring passages are taken, spread evenly over it, so that few validation passages have a
    training passage just before or behind them.

    Args:
        sizes: int64 bytes of each unit.
        keys: uint64, from `keys`.
        document: int64, ascending: the document each unit belongs to; more than one unit: its passages.

    Returns:
        bool `(units,)`: True for validation. Neither side is empty unless there are too few units.
    """
    _, group, count = np.unique(document, return_inverse=True, return_counts=True)
    whole = np.flatnonzero(count[group] == 1)
    groups = [np.flatnonzero(group == number) for number in np.flatnonzero(count > 1)]
    # A few whole documents beside one that was cut stay in training: their draw would be all or nothing.
    drawn = not groups or len(whole) >= FEW_DOCUMENTS
    eligible = sizes.sum() if drawn else sum(sizes[units].sum() for units in groups)
    rate = validation_bytes(int(sizes.sum()), share) / eligible
    chosen = np.zeros(len(sizes), bool)
    if drawn and len(whole):
        chosen[whole[_draw(sizes[whole], keys[whole], rate * sizes[whole].sum())]] = True
    for units in groups:
        chosen[units[_blocks(sizes[units], keys[units], rate * sizes[units].sum())]] = True
    return chosen


def _draw(sizes: np.ndarray, keys: np.ndarray, target: float) -> np.ndarray:
    """Indices of documents of about `target` bytes together: at least one, never all."""
    taken: list[int] = []
    total = 0
    for index in np.argsort(keys, kind="stable"):
        if total >= target or len(taken) == len(sizes) - 1:
            break
        if total + sizes[index] <= 1.5 * target:
            taken.append(int(index))
            total += int(sizes[index])
    if not taken and len(sizes) > 1:
        taken = [int(np.lexsort((keys, sizes))[0])]  # every document is larger: the smallest
    return np.array(taken, np.int64)


def _blocks(sizes: np.ndarray, keys: np.ndarray, target: float) -> np.ndarray:
    """Indices of passages of about `target` bytes together, in runs spread over the document."""
    wanted = target / sizes.mean()
    blocks = min(max(round(wanted / _BLOCK_PASSAGES), 1), _BLOCKS)
    run = max(round(wanted / blocks), 1)
    taken = []
    for stratum in np.array_split(np.arange(len(sizes)), blocks):
        length = min(run, len(stratum) - 1)
        if length > 0:
            offset = int(keys[stratum[0]] % np.uint64(len(stratum) - length + 1))
            taken.append(stratum[offset : offset + length])
    return np.concatenate(taken) if taken else np.empty(0, np.int64)
