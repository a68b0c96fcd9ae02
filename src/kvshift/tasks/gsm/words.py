"""The vocabulary: one token a word, a number or a sign."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from kvshift.errors import UsageError

MODULUS = 23
# fmt: off
CATEGORIES = (
    "attic", "bakery", "barn", "beach", "bridge", "cabin", "canal", "castle", "cellar", "chapel", "farm",
    "forest", "garden", "harbour", "island", "lake", "market", "meadow", "mill", "museum", "orchard",
    "quarry", "station", "tower",
)
ITEMS = (
    "apple", "basket", "bell", "boat", "bottle", "candle", "chair", "clock", "drum", "feather", "goose",
    "hammer", "hat", "kite", "ladder", "lamp", "needle", "owl", "parcel", "rope", "shell", "shovel", "stone",
    "wagon",
)
# fmt: on
SIGNS = ("+", "-", "*")  # in a solution
VERBS = ("plus", "minus", "times")  # in a problem, in the same order

# A category carries the point that joins it to its item, so that the point alone always ends a sentence.
WORDS = (
    *("<pad>", "<problem>", "<solution>", "<end>"),
    *("What", "is", "?", "equals", "Define", "as", ";", "so", "=", "."),
    *VERBS,
    *SIGNS,
    *map(str, range(MODULUS)),
    *string.ascii_letters,
    *(f"{category}." for category in CATEGORIES),
    *ITEMS,
)
IDS = {word: number for number, word in enumerate(WORDS)}

PAD, PROBLEM, SOLUTION, END = range(4)
ZERO = IDS["0"]  # the number n has id ZERO + n
FIRST_LETTER, LETTERS = IDS["a"], len(string.ascii_letters)
_CATEGORY, _ITEM = IDS[f"{CATEGORIES[0]}."], IDS[ITEMS[0]]
NAMES = tuple(
    (_CATEGORY + category, _ITEM + item) for category in range(len(CATEGORIES)) for item in range(len(ITEMS))
)
"""The two tokens of every "category.item" there is."""

_TOKEN = re.compile(r"<\w+>|[a-z]+\.(?=[a-z])|\w+|\S")
_NO_SPACE = re.compile(r"(?<=[a-z]\.) (?=[a-z])| (?=[.;?])")


def encode(text: str) -> list[int]:
    """Ids of a text.

    Raises:
        UsageError: a word that the vocabulary lacks.
    """
    words = _TOKEN.findall(text)
    if unknown := [word for word in words if word not in IDS]:
        raise UsageError(
            f"{unknown[0]!r} is not a word of these problems; expected text as `decode` writes it."
        )
    return [IDS[word] for word in words]


def decode(ids: Iterable[int]) -> str:
    """The text of ids, as one reads it: `Define barn.owl as a; so a = 5.`"""
    return _NO_SPACE.sub("", " ".join(map(word, ids)))


def word(number: int) -> str:
    """The word of an id, or `<200>` for one without: a model's vocabulary may be larger than this one."""
    return WORDS[number] if 0 <= number < len(WORDS) else f"<{number}>"
