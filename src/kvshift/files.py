"""Writing files so that a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from kvshift.errors import OutputError

OUTPUT_MARK = ".kvshift"
"""A folder with a file of this name was written by kvshift: it is no text, wherever it lies."""

_OF_THE_USER = {  # what the user can mend; anything else keeps its traceback
    errno.ENOSPC: "the disk is full; free some space and do the same again",
    errno.EDQUOT: "the disk quota is used up; free some space and do the same again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose another folder or change its permissions",
    errno.EPERM: "permission denied; choose another folder or change its permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.ENOENT: "its folder is not there; make it first, or choose another",
    errno.EISDIR: "it is a folder; name a file in it",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns the failures of writing that a user can mend into `OutputError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_USER:
            raise OutputError(f"Cannot write {path}: {_OF_THE_USER[error.errno]}.") from error
        raise
    except SafetensorError as error:  # safetensors reports the system's error as text only
        code = re.search(r"(?:code:|os error) (\d+)", str(error))
        if code is not None and int(code[1]) in _OF_THE_USER:
            raise OutputError(f"Cannot write {path}: {_OF_THE_USER[int(code[1])]}.") from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` by way of a temporary file beside it.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with output_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries (not the files' contents) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Brings a file's contents to the disk."""
    sync_folder(path)


def open_to_others(path: Path) -> None:
    """Gives what was made for its owner alone, as safetensors and tempfile do, a new file's permissions."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder, which exists; the lock of a process that died is free.

    Args:
        what: runs there, for the error: "pilot".

    Raises:
        OutputError: another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with output_errors(folder):
            lock.acquire()
    except Timeout:
        raise OutputError(
            f"Another {what} is running in {folder}; wait for it, or give another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()
