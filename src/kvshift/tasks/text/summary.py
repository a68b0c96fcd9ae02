"""What was prepared, in numbers and in plain words."""

from __future__ import annotations

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
    summary["notes"] = list(_notes(summary, request, counted_bytes / true_bytes, str(skipped)))
    return summary


def _listing(titles: list[str]) -> str:
    shown = ", ".join(titles[:5])
    return shown if len(titles) <= 5 else f"{shown} and {len(titles) - 5:,} more"


def _notes(summary: dict[str, Any], request: TextRequest, byte_ratio: float, skipped: str) -> list[str]:
    notes = []
    if summary["passages"]:
        notes.append(
            "There are too few documents to split, so long ones were cut, at blank lines where there are "
            f"any, into passages of about {summary['passage_bytes']:,} bytes. Each passage counts as a "
            "document; runs of neighbouring passages, spread over the text, were set aside for validation."
        )
    removed = summary["duplicates_removed"]
    if removed["exact"]:
        notes.append(f"{removed['exact']:,} exact copies of other documents were left out.")
    if removed["near"]:
        notes.append(
            f"{removed['near']:,} training documents were left out because they are nearly the same as a "
            "validation document."
        )
    if skipped:
        notes.append(f"Skipped: {skipped}.")
    if summary["truncated"]:
        notes.append(f"Reading stopped after {request.max_bytes:,} bytes of text; the rest was not used.")
    share = summary["validation_bytes"] / (summary["train_bytes"] + summary["validation_bytes"])
    if not 0.5 <= share / request.validation_share <= 1.6:
        notes.append(
            f"{share:.1%} of the text validates, where {request.validation_share:.1%} was asked for: it is "
            "kept between what makes the loss certain enough and what is worth its time, in whole documents."
        )
    if abs(byte_ratio - 1) > 1e-3:
        notes.append(
            "The tokenizer changes text, so bits per byte are approximate: its tokens account for "
            f"{byte_ratio:.1%} of the bytes."
        )
    return notes
