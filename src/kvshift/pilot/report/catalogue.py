"""The report's words: one TOML file a language, the same keys and placeholders in each."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from kvshift.errors import UsageError

LANGUAGES = ("en", "ja")


class Catalogue:
    """Texts of one language, by dotted key."""

    def __init__(self, language: str, entries: dict[str, str | list[str]]) -> None:
        self.language = language
        self.entries = entries

    def __call__(self, key: str, **values: Any) -> str:
        """The text of `key`, its placeholders filled. An unknown key is a defect and raises KeyError."""
        text = self.entries[key]
        if not isinstance(text, str):
            raise KeyError(f"{key} holds several texts; ask for them with `all`.")
        return text.format(**values) if values else text.replace("{{", "{").replace("}}", "}")

    def all(self, key: str, **values: Any) -> list[str]:
        """The paragraphs or list items of `key`, placeholders filled."""
        texts = self.entries[key]
        return [text.format(**values) for text in texts]

    def __contains__(self, key: str) -> bool:
        return key in self.entries


@cache
def load(language: str) -> Catalogue:
    """The catalogue of `language`.

    Raises:
        UsageError: a language there are no texts for.
    """
    if language not in LANGUAGES:
        raise UsageError(f"language is {language!r}; expected one of {', '.join(LANGUAGES)}.")
    file = resources.files(__package__) / "texts" / f"{language}.toml"
    return Catalogue(language, dict(_flat(tomllib.loads(file.read_text(encoding="utf-8")))))


def _flat(table: dict[str, Any], prefix: str = "") -> list[tuple[str, str | list[str]]]:
    entries: list[tuple[str, str | list[str]]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            entries += _flat(value, f"{prefix}{key}.")
        else:
            entries.append((f"{prefix}{key}", value))
    return entries
