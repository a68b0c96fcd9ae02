"""Problems, drawn and made by hand."""

from __future__ import annotations

import pytest

from kvshift.tasks.gsm import Parameter, Problem
from kvshift.tasks.gsm.words import IDS, NAMES


def name(text: str) -> int:
    """The index of "category.item"."""
    category, item = text.split(".")
    return NAMES.index((IDS[f"{category}."], IDS[item]))


@pytest.fixture(scope="session")
def by_hand() -> Problem:
    """barn.owl and mill.hat are constants; two steps from them to farm.bell; lake.kite is not needed."""
    return Problem(
        parameters=(
            Parameter(name("barn.owl"), 0, (), 9, 9),
            Parameter(name("mill.hat"), 0, (), 20, 20),
            Parameter(name("cabin.boat"), 1, (0,), 12, 20),  # 9 - 12
            Parameter(name("tower.rope"), 0, (1, 0, 2), 0, 3),  # 20 + 9 + 20
            Parameter(name("farm.bell"), 1, (2, 3), 0, 17),  # 20 - 3
            Parameter(name("lake.kite"), 2, (0, 4), 0, 15),  # 9 * 17
        ),
        needed=5,
        order=(5, 2, 4, 0, 3, 1),
        letters=(10, 1, 26, 3, 51),  # k b A d Z
    )
