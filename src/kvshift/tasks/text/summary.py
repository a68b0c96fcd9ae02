"""What was prepared, in numbers and notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvshift.tasks.text.corpus import HINT_BYTES, Corpus
from kvshift.tasks.text.request import TextRequest
from kvshift.tasks.text.scripts import language
from kvshift.tasks.text.sources import Skipped


def summarise(
    request: TextRequest,
    titles: list[str],
    corpus: Corpus,
    skipped: Skipped,
    stores: dict[str, dict[str, Any]],
    vocab_size: int,
    counted_bytes: int,
) -> dict[str, Any]:
    """The summary that `TextData.summary` returns.

    Args:
        counted_bytes: bytes of all tokens by `token_bytes`; compared with the true number.
    """
    true_bytes = corpus.train_bytes + corpus.validation_bytes
    summary: dict[str, Any] = {
        "source": _listing(titles),
        "documents": corpus.documents,
        "train_documents": stores["train"]["documents"],
        "validation_documents": stores["validation"]["documents"],
        "train_tokens": stores["train"]["tokens"],
        "validation_tokens": stores["validation"]["tokens"],
        "train_bytes": corpus.train_bytes,
        "validation_bytes": corpus.validation_bytes,
        "vocab_size": vocab_size,
        "tokenizer": "trained" if request.tokenizer is None else str(request.tokenizer),
        "token_bytes_exact": counted_bytes == true_bytes,
        "skipped": dict(skipped.counts),
        "skipped_examples": skipped.examples,
        "duplicates_removed": {"exact": corpus.exact_duplicates, "near": corpus.near_duplicates},
        "passages": corpus.passages,
        "passage_bytes": corpus.passage_bytes if corpus.passages else None,
        "language_hint": language(corpus.sample(HINT_BYTES)),
        "truncated": corpus.full,
    }
    summary["notes"] = list(_notes(summary, request, counted_bytes / true_bytes))
    return summary


def _listing(titles: list[str]) -> str:
    shown = ", ".join(titles[:5])
    return shown if len(titles) <= 5 else f"{shown} and {len(titles) - 5:,} more"


def _notes(summary: dict[str, Any], request: TextRequest, byte_ratio: float) -> Iterator[dict[str, Any]]:
    """What is worth saying, as keys and values; whoever shows them has the words."""
    if summary["passages"]:
        yield _note("cut_into_passages", bytes=summary["passage_bytes"])
    removed = summary["duplicates_removed"]
    if removed["exact"]:
        yield _note("exact_copies", copies=removed["exact"])
    if removed["near"]:
        yield _note("near_copies", copies=removed["near"])
    if summary["skipped"]:
        yield _note("skipped", reasons=summary["skipped"])
    if summary["truncated"]:
        yield _note("reading_stopped", bytes=request.max_bytes)
    share = summary["validation_bytes"] / (summary["train_bytes"] + summary["validation_bytes"])
    if not 0.5 <= share / request.validation_share <= 1.6:
        yield _note("validation_share", share=share, asked=request.validation_share)
    if abs(byte_ratio - 1) > 1e-3:
        yield _note("bytes_approximate", share=byte_ratio)


def _note(key: str, **values: Any) -> dict[str, Any]:
    return {"key": key, "values": values}
