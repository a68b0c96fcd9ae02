"""The split: by document, the same for the same text, never one-sided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshift.tasks.text.split import LEAST_VALIDATION, MOST_VALIDATION, keys, split, validation_bytes


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Keys of that many different documents."""
    return keys(np.random.default_rng(0).integers(0, 2**63, (count, 2)).astype(np.uint64), seed)


@given(
    st.lists(st.integers(1, 10**7), min_size=2, max_size=80),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
)
def test_both_sides_have_documents(sizes: list[int], share: float, seed: int) -> None:
    array = np.array(sizes)
    chosen = split(array, drawn(len(sizes), seed), np.arange(len(sizes)), share)
    assert 0 < chosen.sum() < len(sizes)
    target = validation_bytes(array.sum(), share)
    assert array[chosen].sum() <= max(1.5 * target, array.min())


@given(st.permutations(range(30)), st.integers(0, 3))
def test_the_order_of_the_files_does_not_matter(order: list[int], seed: int) -> None:
    sizes = np.arange(1000, 31000, 1000)
    all_keys = drawn(30, seed)
    chosen = split(sizes, all_keys, np.arange(30), 0.1)
    again = split(sizes[order], all_keys[order], np.arange(30), 0.1)
    assert (again == chosen[order]).all()


def test_another_seed_is_another_split() -> None:
    sizes = np.full(200, 1000)
    splits = [split(sizes, drawn(200, seed), np.arange(200), 0.1) for seed in (0, 1)]
    assert (splits[0] != splits[1]).any()


@pytest.mark.parametrize(
    ("total", "share", "expected"),
    [
        (10_000_000, 0.1, 1_000_000),
        (10**9, 0.1, MOST_VALIDATION),
        (1_000_000, 0.05, LEAST_VALIDATION),
        (100_000, 0.1, 20_000),
        (100_000, 0.4, 40_000),
    ],
)
def test_validation_is_neither_too_small_nor_too_large(total: int, share: float, expected: int) -> None:
    assert validation_bytes(total, share) == expected


def test_passages_go_to_validation_in_runs_spread_over_the_document() -> None:
    count = 2000
    chosen = split(np.full(count, 8192), drawn(count), np.zeros(count, np.int64), 0.1)
    edges = np.flatnonzero(np.diff(chosen.astype(int)) == 1)
    assert 15 <= len(edges) + chosen[0] <= 20
    assert chosen.mean() == pytest.approx(0.1, abs=0.01)
    assert all(quarter.any() for quarter in np.array_split(chosen, 4))


def test_a_few_documents_beside_a_long_one_stay_in_training() -> None:
    document = np.array([0, 1] + [2] * 300)
    sizes = np.array([500, 700] + [8192] * 300)
    chosen = split(sizes, drawn(302), document, 0.1)
    assert not chosen[:2].any()
    assert sizes[chosen].sum() / sizes.sum() == pytest.approx(0.1, abs=0.02)


def test_documents_and_passages_are_both_drawn_from() -> None:
    document = np.array([*range(50), *[50] * 100])
    sizes = np.array([8000] * 150)
    chosen = split(sizes, drawn(150), document, 0.2)
    assert chosen[:50].mean() == pytest.approx(0.2, abs=0.05)
    assert chosen[50:].mean() == pytest.approx(0.2, abs=0.05)


def test_one_document_cannot_be_split() -> None:
    assert not split(np.array([5000]), drawn(1), np.array([0]), 0.1).any()
