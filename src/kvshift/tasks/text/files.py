"""Reading files piece by piece: decompression, UTF-8, lines. Nothing here holds a whole file."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from kvshift.errors import DataError

CHUNK = 1 << 20
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotText(Exception):
    """A document is left out and counted; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreadableFile(DataError):
    """The system does not let us read the file."""


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file for reading. The one place where files of the user are opened."""
    return path.open("rb")


def byte_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name ends in .gz, .bz2, .xz or .zst.

    Raises:
        UnreadableFile: it cannot be opened or read.
        DataError: the archive is broken or cut short.
    """
    try:
        with open_binary(path) as file:
            yield from _DECOMPRESS.get(path.suffix.lower(), _plain)(file)
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise DataError(
            f"The archive {path} is broken or cut short ({_first_line(error)}); copy or download it again."
        ) from error
    except OSError as error:
        if path.suffix.lower() == ".bz2" and error.errno is None:
            raise DataError(f"The archive {path} is broken; copy or download it again.") from error
        raise UnreadableFile(
            f"Cannot read {path}: {error.strerror or error}; check its permissions."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _gzip(file: IO[bytes]) -> Iterator[bytes]:
    return _plain(cast(IO[bytes], gzip.open(file)))


def _bzip2(file: IO[bytes]) -> Iterator[bytes]:
    return _plain(bz2.open(file))


def _xz(file: IO[bytes]) -> Iterator[bytes]:
    return _plain(lzma.open(file))


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    # zstandard's stream reader ends silently where a file was cut, so frames are followed here.
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    for compressed in _plain(file):
        rest = compressed
        while rest:
            if frame is None:
                frame = decompressor.decompressobj()
            # Fed in small pieces: one call returns all that its input unpacks to.
            data = frame.decompress(rest[: 1 << 16])
            rest = rest[1 << 16 :]
            if frame.eof:
                rest = frame.unused_data + rest
                frame = None
            if data:
                yield data
    if frame is not None:
        raise EOFError("the last frame is not complete")


_DECOMPRESS: dict[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    ".gz": _gzip,
    ".bz2": _bzip2,
    ".xz": _xz,
    ".zst": _zstd,
}
COMPRESSED = tuple(_DECOMPRESS)


def kind(path: Path) -> str:
    """The suffix that says what a file holds, lower case, without that of its compression: `.jsonl`."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def text_chunks(chunks: Iterable[bytes]) -> Iterator[str]:
    """Decodes UTF-8. Byte order marks, wherever they are, are dropped.

    Raises:
        NotText: binary (it holds a zero byte), or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    first = True
    try:
        for chunk in chunks:
            if first and chunk.startswith(_UTF16_MARKS):
                raise NotText("not UTF-8")
            first = False
            if b"\0" in chunk:
                raise NotText("binary")
            yield decoder.decode(chunk).replace("\ufeff", "")
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise NotText("not UTF-8") from error


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, ends kept. Only a line feed ends a line, as in JSON lines.

    Raises:
        DataError: a line is not UTF-8; file and line are named.
    """
    rest = b""
    number = 0
    for chunk in byte_chunks(path):
        buffer = io.BytesIO(rest + chunk)
        rest = b""
        for line in buffer:
            if not line.endswith(b"\n"):
                rest = line
                break
            number += 1
            yield _decode_line(line, path, number)
    if rest:
        yield _decode_line(rest, path, number + 1)


def _decode_line(line: bytes, path: Path, number: int) -> str:
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file, for example with iconv."
        ) from error
