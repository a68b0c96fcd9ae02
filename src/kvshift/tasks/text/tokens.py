"""Tokens on disk: documents one after another, each closed by the end token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100  # the target that no loss counts


class TokenStore:
    """One side of the split.

    Attributes:
        tokens: uint16 or uint32 `(n,)`, a read-only memory map.
        document_starts: int64, ascending offsets; the first is 0.
    """

    def __init__(self, tokens: np.ndarray, document_starts: np.ndarray) -> None:
        self.tokens = tokens
        self.document_starts = document_starts

    def __len__(self) -> int:
        return len(self.tokens)

    def window_count(self, length: int) -> int:
        """How many windows of `length` tokens there are, side by side."""
        if length < 1:
            raise ValueError(f"a window has at least one token, not {length}")
        return len(self.tokens) // length

    def window(self, index: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `index`-th window.

        Returns:
            inputs: int64 `(length,)`.
            targets: int64 `(length,)`: the next tokens; -100 at a document's last token, since what follows
                is another document.
            starts: bool `(length,)`: True at the window's first token and wherever a document begins.
        """
        if not 0 <= index < self.window_count(length):
            raise IndexError(f"window {index} of {self.window_count(length)}")
        begin = index * length
        end = begin + length
        inputs = self.tokens[begin:end].astype(np.int64)
        targets = np.full(length, IGNORED, np.int64)
        following = self.tokens[begin + 1 : end + 1]
        targets[: len(following)] = following
        # Document starts in (begin, end]: the token before each is a document's last.
        low, high = np.searchsorted(self.document_starts, (begin + 1, end + 1))
        boundaries = self.document_starts[low:high] - begin
        targets[boundaries - 1] = IGNORED
        starts = np.zeros(length, bool)
        starts[0] = True
        starts[boundaries[boundaries < length]] = True
        return inputs, targets, starts

    @classmethod
    def open(cls, folder: Path, name: str, description: dict[str, Any]) -> TokenStore:
        """Opens what `write` wrote and described.

        Raises:
            OSError, ValueError: a file is missing or does not fit its description.
        """
        dtype = np.dtype(description["dtype"])
        count = int(description["tokens"])
        path = folder / f"{name}.tokens"
        if dtype.name not in ("uint16", "uint32") or path.stat().st_size != count * dtype.itemsize:
            raise ValueError(f"{path.name} does not hold {count} tokens of type {dtype}")
        starts = np.load(folder / f"{name}.starts.npy", allow_pickle=False)
        if starts.dtype != np.int64 or starts.shape != (int(description["documents"]),):
            raise ValueError(f"{name}.starts.npy does not hold {description['documents']} documents")
        return cls(np.memmap(path, dtype, mode="r", shape=(count,)), starts)


def write(
    folder: Path, name: str, pieces: Iterable[tuple[np.ndarray, bool]], dtype: np.dtype, vocab_size: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Writes one side of the split.

    Args:
        pieces: as `tokenizer.encode` yields them.

    Returns:
        What `TokenStore.open` needs, and int64 `(vocab_size,)`: how often each token occurs.
    """
    starts = array("q")
    counts = np.zeros(vocab_size, np.int64)
    size = 0
    begins = True
    with (folder / f"{name}.tokens").open("wb") as file:
        for tokens, last in pieces:
            if begins:
                starts.append(size)
            begins = last
            file.write(tokens.tobytes())
            counts += np.bincount(tokens, minlength=vocab_size)
            size += len(tokens)
    np.save(folder / f"{name}.starts.npy", np.array(starts, np.int64), allow_pickle=False)
    return {"dtype": dtype.name, "tokens": size, "documents": len(starts)}, counts
