"""Which writing a text uses, as far as it matters here."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KANA = re.compile("[\u3041-\u30ff]")
_HAN = re.compile("[\u4e00-\u9fff]")
_HANGUL = re.compile("[\uac00-\ud7af]")
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff]")


def language(texts: Iterable[str]) -> str | None:
    """A language whose script gives it away; None for all others."""
    text = "".join(texts)
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None
    kana, han, hangul = (len(pattern.findall(text)) / letters for pattern in (_KANA, _HAN, _HANGUL))
    if kana > 0.1:
        return "Japanese"
    if hangul > 0.3:
        return "Korean"
    return "Chinese" if han > 0.3 else None


def without_spaces(texts: Iterable[str]) -> bool:
    """Whether a good part (1%) is in a script that does not put spaces between words."""
    text = "".join(texts)
    return len(_SPACELESS.findall(text)) > 0.01 * len(text)
