"""A long document as passages, cut at blank lines, for corpora with too few documents to split."""

from __future__ import annotations

import re

import numpy as np

from kvshift.tasks.text.spool import Spool, character_cut

FEW_DOCUMENTS = 5
SMALLEST, LARGEST = 1 << 10, 8 << 10
_WANTED = 64
_LONGEST = 4  # times the passage size: without a blank line for so long, another place is cut
_OTHER_PLACES = (b"\n", b" ", "。".encode())
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n\s*")


def needs_passages(lengths: np.ndarray) -> bool:
    """Whether a split by document would be useless: too few of them, or one is most of the text.

    Args:
        lengths: int64 bytes of each document.
    """
    return len(lengths) < FEW_DOCUMENTS or int(lengths.max()) * 2 > int(lengths.sum())


def passage_size(total: int) -> int:
    """Bytes of a passage for a corpus of `total` bytes.

    Passages are as long as possible, because what lies before a passage is no context for it, but there
    should be some 64 of them; from 1 to 8 KB.
    """
    return min(max(total // _WANTED, SMALLEST), LARGEST)


def cut(spool: Spool, span: np.ndarray, size: int) -> np.ndarray:
    """Cuts a document into passages of at least `size` bytes that end behind a blank line.

    Where no blank line comes for four times as long, behind a line end, else a space, else a Japanese
    full stop, else between two characters. What is left at the end and shorter than half of
    `size` joins the passage before it.
    Passages joined give the document.

    Returns:
        int64 `(passages, 2)`, as `Spool.spans`.
    """
    start, end = int(span[0]), int(span[0] + span[1])
    passages: list[tuple[int, int]] = []
    while start < end:
        window = spool.read(start, min(size * _LONGEST, end - start))
        length = _first_passage(window, size, last=start + len(window) == end)
        passages.append((start, length))
        start += length
    if len(passages) > 1 and passages[-1][1] * 2 < size:
        begin, length = passages[-2]
        passages[-2:] = [(begin, length + passages[-1][1])]
    return np.array(passages, np.int64).reshape(-1, 2)


def _first_passage(window: bytes, size: int, *, last: bool) -> int:
    if len(window) <= size:
        return len(window)
    blank = _BLANK_LINE.search(window, size)
    # A match that touches the window's end may go on behind it.
    if blank is not None and (blank.end() < len(window) or last):
        return blank.end()
    if last and len(window) < size * _LONGEST:
        return len(window)
    for mark in _OTHER_PLACES:
        position = window.find(mark, size)
        if position >= 0:
            return position + len(mark)
    return character_cut(window, size)
