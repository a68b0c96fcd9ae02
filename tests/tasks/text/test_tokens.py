"""Windows against a literal reading of the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshift.tasks.text.tokens import TokenStore, write

END = 0


def store_of(documents: list[list[int]]) -> TokenStore:
    """Documents, each closed by END, in memory."""
    closed = [[*document, END] for document in documents]
    starts = np.cumsum([0, *map(len, closed)])[:-1].astype(np.int64)
    return TokenStore(np.concatenate(closed).astype(np.uint16), starts)


@given(st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=12), st.integers(1, 12))
def test_windows_read_literally(documents: list[list[int]], length: int) -> None:
    store = store_of(documents)
    flat = [
        (token, document, place)
        for document, tokens in enumerate(documents)
        for place, token in enumerate([*tokens, END])
    ]
    assert len(store) == len(flat)
    assert store.window_count(length) == len(flat) // length
    for index in range(store.window_count(length)):
        inputs, targets, starts = store.window(index, length)
        assert (inputs.dtype, targets.dtype, starts.dtype) == (np.int64, np.int64, np.bool_)
        for offset in range(length):
            position = index * length + offset
            token, document, place = flat[position]
            same = position + 1 < len(flat) and flat[position + 1][1] == document
            assert inputs[offset] == token
            assert targets[offset] == (flat[position + 1][0] if same else -100)
            assert starts[offset] == (offset == 0 or place == 0)


def test_windows_outside_are_refused() -> None:
    store = store_of([[1, 2, 3]])
    with pytest.raises(IndexError):
        store.window(1, 4)
    with pytest.raises(IndexError):
        store.window(-1, 2)
    with pytest.raises(ValueError, match="at least one token"):
        store.window_count(0)
    assert store.window_count(5) == 0


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_written_and_opened(tmp_path: Path, dtype: str) -> None:
    pieces = [([5, 6], False), ([7, END], True), ([END], True), ([8, 9, END], True)]
    described, counts = write(
        tmp_path, "train", ((np.array(t, dtype), last) for t, last in pieces), np.dtype(dtype), 12
    )
    store = TokenStore.open(tmp_path, "train", described)
    assert store.tokens.tolist() == [5, 6, 7, 0, 0, 8, 9, 0]
    assert store.document_starts.tolist() == [0, 4, 5]
    assert counts.tolist() == [3, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert isinstance(store.tokens, np.memmap)
    with pytest.raises(ValueError):
        store.tokens[0] = 1
    (tmp_path / "train.tokens").write_bytes(b"short")
    with pytest.raises(ValueError, match="does not hold 8 tokens"):
        TokenStore.open(tmp_path, "train", described)
