"""Both languages say the same things, and every text the page may ask for is there."""

from __future__ import annotations

import re
import string

import pytest

from kvshift.errors import UsageError
from kvshift.pilot.arms import ARMS
from kvshift.pilot.report.catalogue import LANGUAGES, load
from kvshift.pilot.settings import PilotSettings
from kvshift.pilot.verdict import Reason


def placeholders(text: str | list[str]) -> set[str]:
    texts = [text] if isinstance(text, str) else text
    return {name for part in texts for _, name, _, _ in string.Formatter().parse(part) if name is not None}


def test_same_keys_and_placeholders() -> None:
    english, japanese = (load(language).entries for language in LANGUAGES)
    assert english.keys() == japanese.keys()
    for key, text in english.items():
        assert placeholders(text) == placeholders(japanese[key]), key
        assert isinstance(text, str) or len(text) == len(japanese[key]), key


def test_japanese_is_japanese() -> None:
    english = load("en").entries
    for key, text in load("ja").entries.items():
        words = re.sub(r"\{\w*\}|kvshift pilot", "", "".join(english[key]))
        if re.search("[A-Za-z]{4}", words):  # more than a unit or a name
            assert re.search("[ぁ-んァ-ヶ一-龠]", "".join(text)), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_reason_setting_and_arm_has_words(language: str) -> None:
    text = load(language)
    for reason in Reason:
        assert f"reason.{reason}.head" in text
        assert f"reason.{reason}.why" in text
    for field in PilotSettings.model_fields:
        assert f"setting.{field}" in text
    for arm in ARMS:
        assert f"arm.{arm}" in text or arm == "vanilla-again"
    for status in ("finished", "diverged", "failed", "unfinished"):
        assert f"status.{status}" in text


def test_unknown_language_is_a_users_mistake() -> None:
    with pytest.raises(UsageError, match=r"'fr'.*en, ja"):
        load("fr")
