"""Copies and near copies are found, different texts are not taken for copies."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshift.tasks.text.dedup import ValidationShingles, first_of_each, near_duplicates, sampling_for
from kvshift.tasks.text.shingles import WIDTH, digests, normalise, shingle_hashes
from kvshift.tasks.text.spool import Spool

Writer = Callable[[random.Random, int], str]


def edited(text: str, rng: random.Random, every: int) -> str:
    """The text with a character replaced about every so many."""
    characters = list(text)
    for position in range(rng.randrange(every), len(characters), every):
        characters[position] = rng.choice("xyz")
    return "".join(characters)


@pytest.mark.parametrize("language", ["english", "japanese", "code"])
@pytest.mark.parametrize("size", [300, 8000])
def test_planted_near_copies_are_found_and_nothing_else(
    language: str, size: int, writers: dict[str, Writer], spooled: Callable[[list[str]], Spool]
) -> None:
    rng = random.Random(size)
    write = writers[language]
    validation = [write(rng, size) for _ in range(20)]
    unrelated = [write(rng, size) for _ in range(60)]
    copies = [edited(text, rng, 80) for text in validation]
    moved = [f"An introduction.\n{text.upper()}\nAnd an end." for text in validation]
    spans = (spool := spooled(validation + unrelated + copies + moved)).spans()
    found = near_duplicates(spool, spans[20:], spans[:20])
    assert not found[:60].any()
    assert found[60:].all()


def test_the_similarity_is_jaccards(
    spooled: Callable[[list[str]], Spool], writers: dict[str, Writer]
) -> None:
    rng = random.Random(3)
    one, two, three = (writers["english"](rng, 2000) for _ in range(3))
    validation = [one + two, one + three, two]
    spool = spooled([*validation, one])
    spans = spool.spans()
    known = ValidationShingles(spool, spans[:3], 1)

    def shingle_set(text: str) -> set[bytes]:
        data = normalise(text)
        return {data[i : i + WIDTH] for i in range(len(data) - WIDTH + 1)}

    own = shingle_set(one)
    expected = max(len(own & shingle_set(v)) / len(own | shingle_set(v)) for v in validation)
    assert known.similarity(np.unique(shingle_hashes(normalise(one)))) == pytest.approx(expected)


def test_a_large_validation_part_is_sampled_and_still_finds_copies(
    monkeypatch: pytest.MonkeyPatch, spooled: Callable[[list[str]], Spool], writers: dict[str, Writer]
) -> None:
    monkeypatch.setattr("kvshift.tasks.text.dedup._SKETCH", 4000)
    rng = random.Random(5)
    validation = [writers["english"](rng, 4000) for _ in range(8)]
    spool = spooled([*validation, edited(validation[3], rng, 80), writers["english"](rng, 4000)])
    spans = spool.spans()
    assert sampling_for(spans[8:], spans[:8]) >= 8
    assert near_duplicates(spool, spans[8:], spans[:8]).tolist() == [True, False]


def test_shared_boilerplate_does_not_make_copies(
    spooled: Callable[[list[str]], Spool], writers: dict[str, Writer]
) -> None:
    rng = random.Random(9)
    header = writers["english"](rng, 600)
    texts = [header + writers["code"](rng, 2000) for _ in range(60)]
    spool = spooled(texts)
    assert not near_duplicates(spool, spool.spans()[30:], spool.spans()[:30]).any()


def test_documents_too_short_for_shingles_are_no_near_copies(spooled: Callable[[list[str]], Spool]) -> None:
    spool = spooled(["short", "shorter", "a"])
    assert not near_duplicates(spool, spool.spans()[1:], spool.spans()[:1]).any()


def test_documents_that_differ_in_case_and_spacing_are_the_same(
    spooled: Callable[[list[str]], Spool],
) -> None:
    spool = spooled(
        ["One text,  in two\r\nlines.", "another", "one TEXT, in two lines.\n", "One text in two lines."]
    )
    assert first_of_each(digests(spool, spool.spans())).tolist() == [True, True, False, True]


def test_a_document_of_several_pieces_is_hashed_as_one(
    monkeypatch: pytest.MonkeyPatch, spooled: Callable[[list[str]], Spool], writers: dict[str, Writer]
) -> None:
    text = writers["english"](random.Random(1), 5000)
    spool = spooled([text, text.replace("\n", " \n ")])
    whole = digests(spool, spool.spans())
    pieces = Spool.pieces
    monkeypatch.setattr(Spool, "pieces", lambda self, span: pieces(self, span, 700))
    assert (digests(spool, spool.spans()) == whole).all()
    assert (whole[0] == whole[1]).all()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_first_of_each_keeps_the_first(rows: list[tuple[int, int]]) -> None:
    kept = first_of_each(np.array(rows, np.uint64).reshape(-1, 2))
    assert kept.tolist() == [row not in rows[:index] for index, row in enumerate(rows)]


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_equal_shingles_and_only_those_hash_alike(one: bytes, two: bytes) -> None:
    data = one + two + one
    shingles = [data[i : i + WIDTH] for i in range(len(data) - WIDTH + 1)]
    hashes = shingle_hashes(data).tolist()
    assert len(hashes) == len(shingles)
    assert len(set(zip(shingles, hashes, strict=True))) == len(set(shingles)) == len(set(hashes))
