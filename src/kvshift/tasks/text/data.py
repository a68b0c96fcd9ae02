"""A prepared text, opened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvshift.errors import DataError
from kvshift.tasks.text.tokens import TokenStore

VERSION = 2
DESCRIPTION = "data.json"
TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"


@dataclass(frozen=True)
class TextData:
    """Tokens of a corpus, split into training and validation.

    Attributes:
        folder: where it lies; its name is a hash of the content and of how it was prepared.
        vocab_size: one more than the largest token id.
        end_token: the token behind every document.
        train, validation: the tokens.
        token_bytes: int32 `(vocab_size,)`: UTF-8 bytes of each token, 0 for special ones. A loss of `n` nats
            over tokens of `b` bytes in all is n / ln 2 / b bits per byte.
    """

    folder: Path
    vocab_size: int
    end_token: int
    train: TokenStore
    validation: TokenStore
    token_bytes: np.ndarray
    _summary: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> TextData:
        """Opens a folder that `prepare` made.

        Raises:
            DataError: it is missing, incomplete, or of another version.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            if description["version"] != VERSION:
                raise ValueError(f"version {description['version']}, expected {VERSION}")
            size = int(description["vocab_size"])
            sizes = np.load(folder / TOKEN_BYTES, allow_pickle=False)
            if sizes.dtype != np.int32 or sizes.shape != (size,):
                raise ValueError(f"{TOKEN_BYTES} does not fit the vocabulary")
            if (folder / TOKENIZER).stat().st_size != description["tokenizer_bytes"]:
                raise ValueError(f"{TOKENIZER} does not have the size it was written with")
            return cls(
                folder=folder,
                vocab_size=size,
                end_token=int(description["end_token"]),
                train=TokenStore.open(folder, "train", description["train"]),
                validation=TokenStore.open(folder, "validation", description["validation"]),
                token_bytes=sizes,
                _summary=description["summary"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder} is not a complete prepared text ({type(error).__name__}: {error}); "
                "prepare it again."
            ) from error

    def summary(self) -> dict[str, Any]:
        """What went in and came out, as JSON: counts, what was skipped and removed, and notes."""
        copy: dict[str, Any] = json.loads(json.dumps(self._summary))
        return copy
