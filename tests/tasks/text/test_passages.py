"""One long document, cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshift.tasks.text.passages import LARGEST, SMALLEST, cut, needs_passages, passage_size
from kvshift.tasks.text.spool import Spool, character_cut


class Memory:
    """A spool of one document, in memory."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()

    def read(self, start: int, length: int) -> bytes:
        return self.data[start : start + length]

    def passages(self, size: int) -> list[bytes]:
        spans = cut(self, np.array([0, len(self.data)]), size)  # type: ignore[arg-type]
        return [self.read(start, length) for start, length in spans]


@given(st.text(alphabet=st.sampled_from("a\n\r 日é😀\t"), min_size=1, max_size=400), st.integers(4, 60))
def test_passages_joined_give_the_text_and_each_is_text(text: str, size: int) -> None:
    passages = Memory(text).passages(size)
    assert b"".join(passages) == text.encode()
    assert all(passages)
    for passage in passages:
        passage.decode()
        assert len(passage) <= 4 * size + size


def test_cuts_are_behind_blank_lines_where_there_are_any() -> None:
    text = "".join(f"paragraph {n} " + "word " * (n % 7) + "\r\n \r\n" for n in range(200))
    passages = Memory(text).passages(200)
    assert len(passages) > 10
    assert all(passage.endswith(b"\r\n \r\n") and 200 <= len(passage) < 300 for passage in passages[:-1])


@pytest.mark.parametrize(("joint", "end"), [("\n", b"\n"), (" ", b" "), ("。", "。".encode())])
def test_without_blank_lines_a_line_end_or_a_space_is_taken(joint: str, end: bytes) -> None:
    passages = Memory(joint.join(["words"] * 1000)).passages(100)
    assert all(passage.endswith(end) and 100 <= len(passage) < 112 for passage in passages[:-1])


def test_text_without_any_place_to_cut_is_cut_between_characters() -> None:
    passages = Memory("字" * 1000).passages(100)
    assert {len(passage) for passage in passages[:-1]} == {99}


def test_when_passages_are_needed() -> None:
    assert needs_passages(np.array([1000]))
    assert needs_passages(np.array([1000] * 4))
    assert not needs_passages(np.array([1000] * 5))
    assert needs_passages(np.array([100] * 20 + [2001]))


def test_passages_are_long_and_many() -> None:
    assert passage_size(10**9) == LARGEST
    assert passage_size(100) == SMALLEST
    assert 200_000 // passage_size(200_000) >= 50


@given(st.text(min_size=1, max_size=20))
def test_no_character_is_cut_in_two(text: str) -> None:
    data = text.encode()
    for position in range(1, len(data) + 1):
        data[: character_cut(data, position)].decode()
        data[: character_cut(data[:position], position)].decode()
    assert character_cut(data, len(data)) == len(data)


@given(st.text(min_size=1, max_size=100), st.integers(8, 20))
def test_pieces_of_a_spooled_document_give_its_text(text: str, size: int) -> None:
    spool = Spool.__new__(Spool)
    data = text.encode()
    spool.read = lambda start, length: data[start : start + length]  # type: ignore[method-assign]
    assert "".join(spool.pieces(np.array([0, len(data)]), size)) == text


def test_a_failed_document_leaves_nothing(spooled: Callable[[list[str]], Spool]) -> None:
    def breaks() -> object:
        yield "half of a document"
        raise RuntimeError("gone")

    spool = spooled(["one", "two"])
    before = spool.content_hash()
    for chunks in (breaks(), ["good", "\ud800 lone surrogate"], [" \n", "\t"], []):
        with pytest.raises(Exception):  # noqa: B017 - whatever it is, nothing must stay
            spool.add(chunks)  # type: ignore[arg-type]
    assert (len(spool), spool.size, spool.content_hash()) == (2, 6, before)
    spool.add(["three"])
    assert ["".join(spool.pieces(span)) for span in spool.spans()] == ["one", "two", "three"]
