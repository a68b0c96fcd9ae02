"""The documents of a corpus in one file, so that it need not fit in memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from kvshift.tasks.text.files import NotText

PIECE = 1 << 20


class Spool:
    """Documents one after another as UTF-8, and where each lies.

    Args:
        path: the file, written anew.
        limit: once that many bytes are there, the document being added ends and the spool is full.

    Attributes:
        size: bytes of all documents.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._limit = limit
        self._file = path.open("w+b")
        self._starts = array("q")
        self._lengths = array("q")
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.size >= self._limit

    def add(self, chunks: Iterable[str]) -> None:
        """Appends one document; if reading it fails, nothing of it stays.

        Raises:
            NotText: empty, or not text after all.
        """
        start = self.size
        digest = hashlib.sha256()
        blank = True
        try:
            for chunk in chunks:
                data = chunk.encode("utf-8")
                blank = blank and not chunk.strip()
                digest.update(data)
                self._file.write(data)
                self.size += len(data)
                if self.full:
                    break
            if blank:
                raise NotText("empty")
        except BaseException as error:
            self.size = start
            self._file.seek(start)
            self._file.truncate()
            if isinstance(error, UnicodeEncodeError):
                raise NotText("not valid Unicode") from error
            raise
        self._starts.append(start)
        self._lengths.append(self.size - start)
        self._digest.update(digest.digest())

    def content_hash(self) -> bytes:
        """Of all documents and where they end."""
        return self._digest.digest()

    def spans(self) -> np.ndarray:
        """int64 `(documents, 2)`: first byte and number of bytes."""
        return np.stack((np.array(self._starts, np.int64), np.array(self._lengths, np.int64)), axis=1)

    def read(self, start: int, length: int) -> bytes:
        """Some of the bytes."""
        self._file.seek(start)
        return self._file.read(length)

    def pieces(self, span: np.ndarray, size: int = PIECE) -> Iterator[str]:
        """A document's text in pieces of about `size` bytes, cut behind a line end where there is one."""
        start, end = int(span[0]), int(span[0] + span[1])
        while start < end:
            data = self.read(start, min(size, end - start))
            if start + len(data) < end:
                cut = data.rfind(b"\n") + 1
                data = data[: cut or character_cut(data, len(data))]
            yield data.decode("utf-8")
            start += len(data)


def character_cut(data: bytes, position: int) -> int:
    """The largest place up to `position` where no UTF-8 character is cut in two."""
    if position >= len(data):
        # The last character may lack bytes: step back to where it begins unless it is whole.
        begin = len(data) - 1
        while begin > 0 and data[begin] & 0xC0 == 0x80:
            begin -= 1
        lead = data[begin]
        width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        return len(data) if begin + width <= len(data) else begin
    while position > 0 and data[position] & 0xC0 == 0x80:
        position -= 1
    return position
