"""Where a run works: a folder of its own, and the text that language models learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvshift.tasks.text import TextData, TextRequest, prepare
from kvshift.tasks.text.sources import find_sources

MOST_TIMES = 2
"""A guess. On Python's source, models of 17M parameters were best after 3 to 6 readings and ended worse, with
losses that spread widely."""

Say = Callable[[str], None]


def _silent(line: str) -> None:
    pass


@dataclass
class Texts:
    """The text of one reproduction, prepared once for each vocabulary.

    Args:
        sources: files, folders, globs or dataset names; none: Python's standard library.
        say: takes a line for people before a preparation, and one where a text is read too often.
    """

    sources: tuple[str, ...] = ()
    say: Say = _silent
    _prepared: dict[tuple[tuple[str, Any], ...], Path] = field(default_factory=dict)

    def check(self) -> None:
        """Raises DataError if a source is not there; reads nothing."""
        find_sources(TextRequest(sources=self.sources))

    def prepared(self, settings: dict[str, Any], tokens: int) -> Path:
        """The folder of the text prepared by these fields of `TextRequest`; its name says what is in it.

        Args:
            settings: of the text, as runs have them.
            tokens: that a run reads; where that is more than `MOST_TIMES` the text, a line says so when it is
                prepared.

        Raises:
            UsageError, DataError, OutputError: see `prepare`.
        """
        key = tuple(sorted(settings.items()))
        if key not in self._prepared:
            self.say(f"Preparing {', '.join(self.sources) or 'Python’s standard library'}")
            text = prepare(TextRequest(sources=self.sources, **settings))
            self._warn(text, tokens)
            self._prepared[key] = text.folder
        return self._prepared[key]

    def _warn(self, text: TextData, tokens: int) -> None:
        there = text.summary()["train_tokens"]
        if tokens > MOST_TIMES * there:
            self.say(
                f"Of this text {there:,} tokens are for training, and a run reads {tokens:,}: all of it "
                f"{tokens / there:.1f} times. Models may learn it by heart, so that final losses say less; "
                f"give --text with at least {math.ceil(tokens / MOST_TIMES):,} of them."
            )

    def for_another_process(self) -> Texts:
        """With what is prepared, which is not read again there, and without words for people."""
        return Texts(self.sources, _prepared=self._prepared)


@dataclass(frozen=True)
class Place:
    """Where one run works."""

    folder: Path
    """Its own, not yet made, for what it must keep while it goes on."""
    texts: Texts
