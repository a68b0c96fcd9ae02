"""What text is wanted, and how it is to be prepared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from kvshift.errors import UsageError

SMALLEST_VOCABULARY = 257  # every byte and the end token
LARGEST_VOCABULARY = 1_000_000


@dataclass(frozen=True)
class TextRequest:
    """Where the text comes from and how it becomes tokens.

    Args:
        sources: files, folders, globs, folders written by `datasets`, or Hugging Face dataset names
            (`owner/name`, `owner/name:config`, or `hf:name`). None: the standard library of the running
            Python.
        text_column: the column of tables (.jsonl, .csv, .tsv, .parquet, datasets) that holds the text; None
            takes the column `text`. One that is given where no text comes from a table is refused.
        tokenizer: a tokenizer.json, or a folder that holds one; None trains a byte-level BPE.
        vocab_size: size of the trained vocabulary; None chooses it from the corpus (`vocabulary_size`).
        validation_share: share of the bytes set aside for validation, at most 4 MB, and raised for a small
            corpus to 120 KB or a fifth, whichever is less.
        seed: another seed, another split.
        max_bytes: reading stops, and says so, once this much text has been read.

    Raises:
        UsageError: a value is impossible.
    """

    sources: tuple[str, ...] = ()
    text_column: str | None = None
    tokenizer: Path | None = None
    vocab_size: int | None = None
    validation_share: float = 0.1
    seed: int = 0
    max_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        if isinstance(self.sources, (str, Path)):
            object.__setattr__(self, "sources", (str(self.sources),))
        object.__setattr__(self, "sources", tuple(str(source) for source in self.sources))
        if any(not source.strip() for source in self.sources):
            raise UsageError("A data source is an empty string; give a file, a folder or a dataset name.")
        if self.text_column is not None and not self.text_column.strip():
            raise UsageError("The text column is an empty string; give the name of a column.")
        share = self.validation_share
        if isinstance(share, bool) or not math.isfinite(share) or not 0 < share <= 0.5:
            raise UsageError(
                f"validation_share is {share}; it must be above 0 and at most 0.5, for example 0.1."
            )
        if self.vocab_size is not None:
            if self.tokenizer is not None:
                raise UsageError(
                    "vocab_size cannot be set together with a tokenizer, which has its own; drop one."
                )
            if not SMALLEST_VOCABULARY <= self.vocab_size <= LARGEST_VOCABULARY:
                raise UsageError(
                    f"vocab_size is {self.vocab_size}; it must be from {SMALLEST_VOCABULARY} (all bytes and "
                    f"an end token) to {LARGEST_VOCABULARY:,}."
                )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be a whole number from 0 to 2^63 - 1.")
        if self.max_bytes < 1:
            raise UsageError(f"max_bytes is {self.max_bytes}; it must be at least 1.")
