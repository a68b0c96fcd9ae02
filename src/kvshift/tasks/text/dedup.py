"""Duplicates: exact ones anywhere, near ones across the split.

Near duplicates are found by comparing each training document's shingles with those of every validation
document. Validation is small, so no approximation by min-hashes is needed: the Jaccard similarity (shingles
in common ÷ shingles in either) is exact up to the sampling of very large validation sets.
"""

from __future__ import annotations

import math

import numpy as np

from kvshift.tasks.text.shingles import shingles
from kvshift.tasks.text.spool import Spool

SIMILARITY = 0.5
_SCREEN = 0.4  # share of a training document's shingles known from validation that makes it a suspect
_SKETCH = 1 << 20  # about as many shingles are kept of all validation documents together
_LONGEST = 1 << 23  # and of any one training document: both bound memory and time
_OWNERS = 8  # validation documents remembered for one shingle; boilerplate is in thousands


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """bool `(documents,)`: True for the first of the documents with the same 128-bit digest."""
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    first = np.ones(len(digests), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    result = np.zeros(len(digests), bool)
    result[order[first]] = True
    return result


def sampling_for(training: np.ndarray, validation: np.ndarray) -> int:
    """The power of two so that one shingle in that many is few enough; arguments as `near_duplicates`."""
    excess = max(validation[:, 1].sum() / _SKETCH, training[:, 1].max(initial=0) / _LONGEST, 1)
    return 1 << math.ceil(math.log2(excess))


class ValidationShingles:
    """The shingles of all validation documents, to be searched.

    Args:
        spans: int64 `(documents, 2)` in `spool`.
        sampling: as for `shingles`.
    """

    def __init__(self, spool: Spool, spans: np.ndarray, sampling: int) -> None:
        parts = list(shingles(spool, spans, sampling))
        hashes = np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)])
        lengths = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
        owner = np.repeat(np.arange(len(lengths)), lengths)
        order = np.lexsort((owner, hashes))
        owner, hashes = owner[order].astype(np.int32), hashes[order]
        fresh = np.ones(len(hashes), bool)
        fresh[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
        self._owners, owned = owner[fresh], hashes[fresh]
        self._sizes = np.bincount(self._owners, minlength=len(spans))
        self._hashes, self._first, counts = np.unique(owned, return_index=True, return_counts=True)
        self._counts = np.minimum(counts, _OWNERS)
        bits = max(10, int(16 * len(self._hashes)).bit_length())
        self._shift = np.uint64(64 - min(bits, 26))
        self._seen = np.zeros(1 << min(bits, 26), bool)
        self._seen[self._hashes >> self._shift] = True

    def maybe(self, hashes: np.ndarray) -> np.ndarray:
        """bool: False where a hash is certainly not among them."""
        return self._seen[hashes >> self._shift]

    def similarity(self, hashes: np.ndarray) -> float:
        """The largest Jaccard similarity of a document to a validation document.

        Args:
            hashes: the document's sampled shingles, distinct.
        """
        if not len(self._hashes) or not len(hashes):
            return 0.0
        position = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        position = position[self._hashes[position] == hashes]
        counts = self._counts[position]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self._owners[np.repeat(self._first[position], counts) + offsets]
        if not len(owners):
            return 0.0
        documents, common = np.unique(owners, return_counts=True)
        return float((common / (len(hashes) + self._sizes[documents] - common)).max())


def near_duplicates(spool: Spool, training: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Which training documents are near duplicates of some validation document.

    Args:
        training, validation: int64 `(documents, 2)`.

    Returns:
        bool `(training documents,)`.
    """
    sampling = sampling_for(training, validation)
    known = ValidationShingles(spool, validation, sampling)
    result = np.zeros(len(training), bool)
    row = 0
    for hashes, lengths in shingles(spool, training, sampling):
        maybe = np.concatenate(([0], np.cumsum(known.maybe(hashes))))
        ends = np.cumsum(lengths)
        hits = maybe[ends] - maybe[ends - lengths]
        for suspect in np.flatnonzero((hits > 0) & (hits >= _SCREEN * lengths)):
            own = np.unique(hashes[ends[suspect] - lengths[suspect] : ends[suspect]])
            result[row + suspect] = known.similarity(own) >= SIMILARITY
        row += len(lengths)
    return result
