"""Files of the user: packed, broken, in other encodings."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from kvshift.errors import DataError
from kvshift.tasks.text import files
from kvshift.tasks.text.files import NotText, UnreadableFile, byte_chunks, kind, lines, text_chunks

CONTENT = "".join(f"line {n} of Ünïcödé 日本語 text\n" for n in range(60_000)).encode()
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_packed_files_read_as_what_was_packed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(PACK.get(suffix, bytes)(CONTENT))
    assert b"".join(byte_chunks(path)) == CONTENT
    assert "".join(text_chunks(byte_chunks(path))) == CONTENT.decode()
    assert "".join(lines(path)) == CONTENT.decode()
    assert kind(path) == ".txt"


@pytest.mark.parametrize("suffix", PACK)
def test_archives_of_several_parts_read_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(PACK[suffix](b"first ") + PACK[suffix](b"second"))
    assert b"".join(byte_chunks(path)) == b"first second"


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped"])
def test_broken_archives_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    packed = bytearray(PACK[suffix](CONTENT))
    if damage == "cut":
        packed = packed[: len(packed) * 2 // 3]
    elif damage == "garbage":
        packed = bytearray(b"this is no archive at all")
    elif suffix == ".zst":
        packed[:4] = b"\x28\xb5\x2f\xff"  # zstd checks its content only where asked to, its frame always
    else:
        packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=rf"text\.txt\{suffix} is broken"):
        list(byte_chunks(path))


def test_a_character_cut_by_a_chunk_is_whole_again() -> None:
    data = "日本語のテキスト😀".encode()
    for size in range(1, 9):
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        assert "".join(text_chunks(chunks)) == data.decode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x89PNG\r\n\0\0", "binary"),
        ("日本語".encode("cp932"), "not UTF-8"),
        ("text".encode("utf-16"), "not UTF-8"),
        ("日本".encode()[:-1], "not UTF-8"),
    ],
)
def test_what_is_not_text_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(NotText) as caught:
        list(text_chunks([data]))
    assert caught.value.reason == reason


def test_byte_order_marks_are_dropped_everywhere() -> None:
    assert "".join(text_chunks(["\ufeffone\n\ufefftwo".encode()])) == "one\ntwo"


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeffa\u2028b\x85c\r\nd".encode())
    assert list(lines(path)) == ["a\u2028b\x85c\r\n", "d"]


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not UTF-8"):
        list(lines(path))


def test_a_file_the_system_does_not_let_us_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "open_binary", refuse)
    with pytest.raises(UnreadableFile, match=r"Cannot read .*a\.txt: Permission denied"):
        list(byte_chunks(tmp_path / "a.txt"))
