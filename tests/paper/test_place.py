"""The text of a reproduction."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvshift.paper.place import MOST_TIMES, Texts
from kvshift.tasks.text import TextData


def tokens_of(text: Path) -> int:
    found: int = TextData.open(text).summary()["train_tokens"]
    return found


@pytest.mark.parametrize(("more", "says"), [(0, 1), (1, 2)])
def test_a_text_that_is_read_too_often_is_named(tmp_path, more: int, says: int) -> None:
    source = tmp_path / "text.txt"
    source.write_text("".join(f"Line {number} of some text to prepare.\n\n" for number in range(2_000)))
    there = tokens_of(Texts((str(source),)).prepared({"vocab_size": 300}, 1))
    said: list[str] = []
    asked = MOST_TIMES * there + more
    Texts((str(source),), said.append).prepared({"vocab_size": 300}, asked)
    assert len(said) == says
    for line in said[1:]:
        assert f"{there:,} tokens are for training, and a run reads {asked:,}" in line
        assert "2.0 times" in line
        assert f"at least {there + 1:,} of them" in line
