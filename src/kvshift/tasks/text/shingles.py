"""Documents as hashes: of the whole, and of all their short runs of bytes."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

import numpy as np

from kvshift.tasks.text.spool import Spool

WIDTH = 12  # bytes of a shingle: about two English words, or four Japanese characters
_BATCH = 1 << 21


def normalise(text: str) -> bytes:
    """Text without what does not make it another text: case, spacing, and how accents are composed."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.lower().split()).encode("utf-8")


def normalised_pieces(spool: Spool, span: np.ndarray) -> Iterator[bytes]:
    """The normalised document in pieces that, joined by spaces, give the whole."""
    return (piece for text in spool.pieces(span) if (piece := normalise(text)))


def digests(spool: Spool, spans: np.ndarray) -> np.ndarray:
    """uint64 `(documents, 2)`: 128 bits of each normalised document."""
    result = np.empty((len(spans), 2), np.uint64)
    for row, span in enumerate(spans):
        digest = hashlib.blake2b(digest_size=16)
        for number, piece in enumerate(normalised_pieces(spool, span)):
            digest.update(b" " + piece if number else piece)
        result[row] = np.frombuffer(digest.digest(), "<u8")
    return result


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 scrambled so that every bit depends on every bit (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingle_hashes(data: bytes) -> np.ndarray:
    """uint64 hash of the WIDTH bytes from each byte on; shorter by WIDTH - 1 than `data`."""
    count = len(data) - WIDTH + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    # Every byte starts an unaligned 64-bit number; two of them cover a shingle.
    words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    return mix(words[:count] ^ mix(words[WIDTH - 8 : WIDTH - 8 + count] + np.uint64(0x9E3779B97F4A7C15)))


def shingles(spool: Spool, spans: np.ndarray, sampling: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shingle hashes of many documents, some megabytes of text at a time; none spans two documents.

    Args:
        spans: `(documents, 2)`.
        sampling: only hashes divisible by this power of two are kept, the same ones in every document.

    Yields:
        hashes: uint64, of several whole documents.
        lengths: int64, how many of them belong to each of those documents, in order.
    """
    hashes: list[np.ndarray] = []
    lengths: list[int] = []
    waiting = 0
    for span in spans:
        length = 0
        for piece in normalised_pieces(spool, span):
            found = shingle_hashes(piece)
            if sampling > 1:
                found = found[(found & np.uint64(sampling - 1)) == 0]
            hashes.append(found)
            length += len(found)
            waiting += len(piece)
        lengths.append(length)
        if waiting >= _BATCH:
            yield np.concatenate(hashes), np.array(lengths, np.int64)
            hashes, lengths, waiting = [], [], 0
    if hashes:
        yield np.concatenate(hashes), np.array(lengths, np.int64)
