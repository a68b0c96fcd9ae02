"""Failures of writing that a user can mend become one sentence; others keep their traceback."""

from __future__ import annotations

import errno
import os

import pytest
from safetensors import SafetensorError

from kvshift.errors import OutputError
from kvshift.files import open_to_others, output_errors, write_atomically


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "" }'
        ),
        SafetensorError(
            'Error while serializing: I/O error: No space left on device (os error 28) at path "x"'
        ),
    ],
    ids=["system", "safetensors 0.5", "safetensors 0.6"],
)
def test_a_full_disk(tmp_path, error) -> None:
    with pytest.raises(OutputError, match="the disk is full; free some space"), output_errors(tmp_path):
        raise error


@pytest.mark.parametrize(
    "error", [SafetensorError("something else"), OSError(errno.EIO, "Input/output error")]
)
def test_what_no_user_can_mend_keeps_its_traceback(tmp_path, error) -> None:
    with pytest.raises(type(error)) as raised, output_errors(tmp_path):
        raise error
    assert raised.value is error


def test_where_nothing_can_be_written(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    for place, said in (
        ("not/there", "its folder is not there; make it first"),
        ("file/in it", "a part of the path is a file"),
        ("folder", "it is a folder; name a file in it"),
    ):
        with pytest.raises(OutputError, match=said):
            write_atomically(tmp_path / place, b"new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_permissions_of_a_new_file(tmp_path) -> None:
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    for path in (ordinary, ours):
        path.touch()
    ours.chmod(0o600)
    open_to_others(ours)
    assert ours.stat().st_mode == ordinary.stat().st_mode
