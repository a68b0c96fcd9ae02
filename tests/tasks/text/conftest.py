"""Small texts made up here: English, Japanese and code that do not repeat themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshift.tasks.text import TextData, TextRequest, prepare
from kvshift.tasks.text.spool import Spool

ENGLISH = (
    "the a of river stone light garden window letter winter captain silver morning old bright ran found lost"
)
JAPANESE = (
    "山川空海人手雨風花月あいうえおかきくけこさしすせそなにぬねのはまみもやゆよらりるれろわをんアイウカキ"
)


def english(rng: random.Random, size: int) -> str:
    """Sentences of made-up words of about `size` characters."""
    words: list[str] = []
    length = 0
    while length < size:
        word = rng.choice(ENGLISH.split()) + rng.choice(["", "ing", "ed", "s", str(rng.randrange(100))])
        words.append(word + rng.choice(["", "", "", ",", ".", ".\n\n"]))
        length += len(words[-1]) + 1
    return " ".join(words)


def japanese(rng: random.Random, size: int) -> str:
    """Characters without spaces; about `size` bytes."""
    text = "".join(rng.choice(JAPANESE) for _ in range(size // 3))
    return "。".join(text[i : i + 17] for i in range(0, len(text), 17))


def code(rng: random.Random, size: int) -> str:
    """Lines that look like Python."""
    lines: list[str] = []
    while sum(map(len, lines)) < size:
        a, b, c = (rng.choice(ENGLISH.split()) + str(rng.randrange(50)) for _ in range(3))
        lines.append(
            rng.choice([f"def {a}({b}):", f"    {a} = {b}({c})", f"    return {a} + {b}", f"# {a} {c}"])
            + "\n"
        )
    return "".join(lines)


@pytest.fixture
def writers() -> dict[str, Callable[[random.Random, int], str]]:
    """Makers of text by language: `(rng, bytes) -> str`."""
    return {"english": english, "japanese": japanese, "code": code}


@pytest.fixture
def novels(tmp_path: Path) -> Path:
    """A folder with twelve different English texts."""
    folder = tmp_path / "novels"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(english(random.Random(number), 3000), "utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., TextData]:
    """`run(*sources, **request)`: prepares with a cache of this test's own."""

    def call(*sources: object, **request: object) -> TextData:
        return prepare(TextRequest(tuple(map(str, sources)), **request), tmp_path / "cache")  # type: ignore[arg-type]

    return call


@pytest.fixture
def spooled(tmp_path: Path) -> Callable[[list[str]], Spool]:
    """A spool of these documents."""

    def call(texts: list[str]) -> Spool:
        spool = Spool(tmp_path / "spool", 1 << 40)
        for text in texts:
            spool.add([text])
        return spool

    return call
