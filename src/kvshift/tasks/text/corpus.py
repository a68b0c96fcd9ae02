"""Which documents, or passages, are trained on and which validate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kvshift.errors import DataError
from kvshift.tasks.text import dedup, passages
from kvshift.tasks.text import split as division
from kvshift.tasks.text.request import TextRequest
from kvshift.tasks.text.shingles import digests
from kvshift.tasks.text.spool import Spool

HINT_BYTES = 200_000  # enough of a text to tell its script


@dataclass(frozen=True)
class Corpus:
    """The split, as spans of the spool.

    Attributes:
        train: int64 `(units, 2)` first byte and length, in the order they were read.
        validation: the same, in an order drawn by content, so that any part of it stands for the whole.
        train_keys: uint64 `(units,)`: random order of the training units.
        documents: how many were read.
        passages: whether long documents were cut; `passage_bytes` is the size aimed at.
        exact_duplicates, near_duplicates: units removed.
        full: reading stopped at the limit.
    """

    spool: Spool
    train: np.ndarray
    validation: np.ndarray
    train_keys: np.ndarray
    documents: int
    passages: bool
    passage_bytes: int
    exact_duplicates: int
    near_duplicates: int
    full: bool

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training part."""
        return int(self.train[:, 1].sum())

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the validation part."""
        return int(self.validation[:, 1].sum())

    def texts(self, name: str, report: Callable[[float], None]) -> Iterator[Iterator[str]]:
        """The documents of `train` or `validation`, each in pieces; reports the share of all bytes read."""
        spans = self.train if name == "train" else self.validation
        done = 0 if name == "train" else self.train_bytes
        for span in spans:
            report(done / (self.train_bytes + self.validation_bytes))
            yield self.spool.pieces(span)
            done += int(span[1])

    def sample(self, limit: int) -> Iterator[str]:
        """Training text of at most about `limit` bytes, drawn at random by whole documents."""
        taken = 0
        for row in np.argsort(self.train_keys, kind="stable"):
            for piece in self.spool.pieces(self.train[row]):
                if taken >= limit:
                    return
                taken += len(piece.encode("utf-8"))
                yield piece


def arrange(spool: Spool, request: TextRequest, report: Callable[[str, float | None], None]) -> Corpus:
    """Cuts into passages where that is needed, drops duplicates and splits.

    Raises:
        DataError: nothing would be left on one side.
    """
    report("Looking for duplicates", None)
    spans = spool.spans()
    documents = len(spans)
    content = digests(spool, spans)
    keep = dedup.first_of_each(content)
    spans, content = spans[keep], content[keep]
    exact = documents - len(spans)
    if documents > 1 and len(spans) == 1 and not _can_be_cut(spans[0, 1]):
        raise DataError(f"All {documents:,} documents are the same text; give documents that differ.")

    owner = np.arange(len(spans))
    size = passages.passage_size(int(spans[:, 1].sum()))
    cut = passages.needs_passages(spans[:, 1]) and bool((spans[:, 1] > 2 * size).any())
    if cut:
        parts = [passages.cut(spool, span, size) if span[1] > 2 * size else span[None] for span in spans]
        owner = np.repeat(owner, [len(part) for part in parts])
        spans = np.concatenate(parts)
        content = digests(spool, spans)
        keep = dedup.first_of_each(content)
        exact += int((~keep).sum())
        spans, content, owner = spans[keep], content[keep], owner[keep]

    order = division.keys(content, request.seed)
    chosen = division.split(spans[:, 1], order, owner, request.validation_share)
    _check_sides(chosen, documents, spans)
    train, validation = spans[~chosen], spans[chosen]
    near = dedup.near_duplicates(spool, train, validation)
    if near.all():
        raise DataError(
            f"All {len(train):,} training documents are nearly the same as some validation document; give "
            "documents that differ."
        )
    return Corpus(
        spool=spool,
        train=train[~near],
        validation=validation[np.argsort(order[chosen], kind="stable")],
        train_keys=order[~chosen][~near],
        documents=documents,
        passages=cut,
        passage_bytes=size,
        exact_duplicates=exact,
        near_duplicates=int(near.sum()),
        full=spool.full,
    )


def _can_be_cut(length: int) -> bool:
    return int(length) > 2 * passages.SMALLEST


def _check_sides(chosen: np.ndarray, documents: int, spans: np.ndarray) -> None:
    if chosen.any() and not chosen.all():
        return
    total = int(spans[:, 1].sum())
    what = "only one document" if documents == 1 else f"only {len(spans)} different passages or documents"
    raise DataError(
        f"There is {what}, {total:,} bytes in all, which cannot be split into training and validation; give "
        "more documents, or one long text with blank lines, from about 20,000 bytes on."
    )
