"""Notes in words. A placeholder of their texts says how its value is shown: `{share:percent}`.

The ways are those of `_shown`; `{n:run|runs}` counts in English: 1 run, 2 runs.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

from kvshift.pilot.notes import Note
from kvshift.pilot.report.catalogue import Catalogue, load
from kvshift.pilot.report.numbers import Numbers

_FOREIGN = "as_it_came"  # an exception's message: nobody can translate it beforehand


def in_english(note: Note) -> str:
    """The note as plain text, for the terminal."""
    return "".join(words for words, _ in _pieces(note, load("en"), {}))


def in_html(note: Note, text: Catalogue, arms: Mapping[str, str]) -> Markup:
    """The note in the language of `text`; what came from elsewhere is escaped, and messages marked English.

    Args:
        arms: names of arms → what the page calls them.
    """
    english = Markup('<span lang="en">{}</span>')
    pieces = _pieces(note, text, arms)
    return Markup("").join(english.format(words) if foreign else escape(words) for words, foreign in pieces)


def _pieces(note: Note, text: Catalogue, arms: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether it is a message that came from elsewhere."""
    template = text.entries[f"noted.{note.key}"]
    if not isinstance(template, str):
        raise TypeError(f"noted.{note.key} holds several texts; a note is one.")
    for literal, name, way, _ in string.Formatter().parse(template):
        yield literal, False
        if name is not None:
            yield _shown(note.values[name], way or "", text, arms), way == _FOREIGN


def _shown(value: Any, way: str, text: Catalogue, arms: Mapping[str, str]) -> str:
    numbers = Numbers(text)
    if "|" in way:
        one, many = way.split("|")
        return f"{numbers.plain(value)} {one if value == 1 else many}"
    if way == "arm":
        return arms.get(value, value)
    if way == "skipped":
        return skipped(value, text)
    ways: dict[str, Callable[[Any], str]] = {
        "": str,
        _FOREIGN: str,
        "count": numbers.plain,
        "one_decimal": lambda number: numbers.plain(number, 1),
        "two_decimals": lambda number: numbers.plain(number, 2),
        "two_digits": numbers.two_digits,
        "percent": lambda share: f"{numbers.plain(100 * share, 1)}%",
        "duration": numbers.duration,
        "bytes": numbers.bytes,
    }
    return ways[way](value)


def skipped(counts: Mapping[str, int], text: Catalogue) -> str:
    """Why files and records were left out, and how many for each reason, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    numbers = Numbers(text)
    return text("skip.separator").join(
        text("skip.counted", reason=skip_reason(why, text), count=numbers.plain(count))
        for why, count in ordered
    )


def skip_reason(why: str, text: Catalogue) -> str:
    """A reason of `TextData.summary()` in the page's language; one that is not known stays as it is."""
    return text(f"skip.{why}") if f"skip.{why}" in text else why
