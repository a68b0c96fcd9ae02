"""From what the user named to a stream of documents."""

from __future__ import annotations

import glob
import os
import platform
import re
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvshift.errors import DataError
from kvshift.files import OUTPUT_MARK
from kvshift.tasks.text import tables
from kvshift.tasks.text.files import NotText, byte_chunks, text_chunks
from kvshift.tasks.text.request import TextRequest

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_EXAMPLES = 3
HIDDEN = "hidden"  # why a file is skipped whose name begins with a dot


@dataclass
class Skipped:
    """What was left out: counts by reason, and the first few names of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Counts one file or record."""
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(_printable(name))

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())


@dataclass(frozen=True)
class Document:
    """One document, not read yet.

    Attributes:
        name: for people: a path, or a path and a record number.
        chunks: its text; reading it may raise NotText, UnreadableFile or DataError.
        named: the user named this very file, so that failing to read it is an error, not a skip.
        record: it is a record of a table.
    """

    name: str
    chunks: Iterable[str]
    named: bool = False
    record: bool = False


@dataclass(frozen=True)
class Source:
    """One thing the user named, known to exist.

    Attributes:
        title: its name without the folders above it.
        documents: starts reading; what is left out goes into the argument.
    """

    title: str
    documents: Callable[[Skipped], Iterator[Document]]


def find_sources(request: TextRequest) -> list[Source]:
    """Checks every source without reading it.

    Raises:
        DataError: a path is missing or neither file nor folder, or a glob matches nothing.
    """
    if not request.sources:
        return [_standard_library()]
    seen: set[str] = set()  # a file reached twice is read once
    return [source for name in request.sources for source in _find(name, request.text_column, seen)]


def _find(name: str, column: str | None, seen: set[str]) -> Iterator[Source]:
    path = Path(os.path.expanduser(name))
    if name.startswith("hf:"):
        yield _hub(name.removeprefix("hf:"), column)
    elif os.path.lexists(path):
        yield _local(path, column, seen)
    elif glob.has_magic(name):
        found = sorted(glob.glob(str(path), recursive=True))
        matches = [match for match in found if not _written_by_us(Path(match))]
        if not matches:
            raise DataError(f"No file matches {name!r}; check the pattern, and quote it on the command line.")
        for match in matches:
            yield _local(Path(match), column, seen)
    elif _HUB_NAME.fullmatch(name) and not os.path.lexists(path.parent):
        yield _hub(name, column)
    else:
        raise DataError(f"There is no file or folder {name!r}; check the path.")


def _hub(name: str, column: str | None) -> Source:
    return Source(name, lambda skipped: _records(name, tables.hub_values(name, column), skipped))


def _local(path: Path, column: str | None, seen: set[str]) -> Source:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror}; check the link or its permissions."
        ) from error
    title = _printable(path.name or path.resolve().name or str(path))
    if stat.S_ISREG(mode):
        return Source(title, lambda skipped: _file(path, path.name, column, skipped, seen, named=True))
    if not stat.S_ISDIR(mode):
        raise DataError(f"{path} is neither a file nor a folder; write its content to a file and give that.")
    if tables.is_dataset_folder(path):
        return Source(
            title, lambda skipped: _records(title, tables.dataset_folder_values(path, column), skipped)
        )
    return Source(title, lambda skipped: _folder(path, column, skipped, seen))


def _folder(top: Path, column: str | None, skipped: Skipped, seen: set[str]) -> Iterator[Document]:
    for path in _walk(top, skipped):
        yield from _file(path, str(path.relative_to(top)), column, skipped, seen, named=False)


def _walk(top: Path, skipped: Skipped) -> Iterator[Path]:
    """Regular files below a folder, in name order, however deep. Links are followed, but no folder is read
    twice, and none that kvshift wrote: a pilot in the folder it reads must find the same text later."""
    walked: set[tuple[int, int]] = set()
    waiting = [top]  # the next one last
    while waiting:
        path = waiting.pop()
        if path is not top and path.name.startswith("."):
            skipped.add(HIDDEN, str(path))
            continue
        try:
            status = path.stat()
            inside = sorted(os.listdir(path), reverse=True) if stat.S_ISDIR(status.st_mode) else None
        except OSError:
            skipped.add("unreadable", str(path))
            continue
        if inside is None:
            if stat.S_ISREG(status.st_mode):
                yield path
            else:
                skipped.add("not a regular file", str(path))
        elif (status.st_dev, status.st_ino) in walked:
            skipped.add("folder reached twice", str(path))
        elif OUTPUT_MARK not in inside:
            walked.add((status.st_dev, status.st_ino))
            waiting += [path / name for name in inside]


def _file(
    path: Path, name: str, column: str | None, skipped: Skipped, seen: set[str], *, named: bool
) -> Iterator[Document]:
    identity = os.path.realpath(path)
    if identity in seen:
        return
    seen.add(identity)
    if not tables.is_table(path):
        yield Document(_printable(name), text_chunks(byte_chunks(path)), named)
        return
    try:
        yield from _records(name, tables.values(path, column), skipped)
    except tables.MissingColumn:
        # Folders of code hold tables that are not meant as text; one that was asked for is another matter.
        if named or column is not None:
            raise
        skipped.add("table without a column 'text'", name)


def _printable(name: str) -> str:
    """A file's name that can be written: bytes that are not UTF-8 become "�"."""
    return os.fsencode(name).decode("utf-8", "replace")


def _written_by_us(path: Path) -> bool:
    return any((folder / OUTPUT_MARK).is_file() for folder in (path, *path.parents))


def _records(name: str, values: Iterator[Any], skipped: Skipped) -> Iterator[Document]:
    for number, value in enumerate(values, start=1):
        title = f"{_printable(name)}, record {number}"
        if value is None:
            skipped.add("record without text", title)
        elif not isinstance(value, str):
            skipped.add("record whose text is not a string", title)
        else:
            yield Document(title, _record_text(value), record=True)


def _record_text(value: str) -> Iterator[str]:
    if "\0" in value:
        raise NotText("binary")
    yield value.replace("\ufeff", "")


def _standard_library() -> Source:
    """The running Python's own modules, tests left out: some distributions do not ship those."""
    top = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}

    def documents(skipped: Skipped) -> Iterator[Document]:
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(set(folders) - left_out)
            for name in sorted(files):
                if name.endswith(".py"):
                    path = Path(folder, name)
                    yield Document(str(path.relative_to(top)), text_chunks(byte_chunks(path)))

    return Source(f"Python {platform.python_version()} standard library", documents)
