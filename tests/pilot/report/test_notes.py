"""Every note a pilot can make has words in both languages, and keeps what came from elsewhere harmless."""

from __future__ import annotations

import ast
import html
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvshift
from kvshift.pilot.notes import Note, note
from kvshift.pilot.report.catalogue import LANGUAGES, load
from kvshift.pilot.report.notes import in_english, in_html
from kvshift.pilot.report.render import render

SOURCE = Path(kvshift.__file__).parent
REASONS = {"empty": 2, "not UTF-8": 1, "table without a column 'text'": 1, "record without text": 1200}
VALUES = {
    "steps": 12, "runs": 2, "pairs": 2, "lost": 2, "total": 18, "seeds": 2, "sizes": 2, "documents": 7,
    "copies": 1234, "bytes": 20_000, "needed": 48_300_000_000, "there": 8_600_000_000, "epochs": 4.0,
    "expected": 312.0, "budget": 600.0, "ratio": 0.0123, "low": 0.8, "high": 1.1, "share": 0.1234,
    "asked": 0.05, "size": "d64-L2", "reason": "CUDA error: out of memory", "arm": "kvshift",
    "baseline": "vanilla", "candidate": "kvshift", "reasons": REASONS,
}  # fmt: skip


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def every_note() -> list[Note]:
    texts = load("en").entries
    keys = [key.removeprefix("noted.") for key in texts if key.startswith("noted.")]
    return [note(key, **{name: VALUES[name] for name in placeholders(texts[f"noted.{key}"])}) for key in keys]


def notes_made() -> Iterator[tuple[str, set[str]]]:
    """Every note that the code makes: its key and the names of its values."""
    makers = dict.fromkeys(SOURCE.glob("pilot/*.py"), "note")
    makers |= dict.fromkeys(SOURCE.glob("tasks/**/*.py"), "_note")
    for path, maker in makers.items():
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != maker:
                continue
            names = {str(keyword.arg) for keyword in call.keywords}
            first = call.args[0]
            for key in (first.body, first.orelse) if isinstance(first, ast.IfExp) else (first,):
                assert isinstance(key, ast.Constant), f"{path}:{call.lineno}"
                yield key.value, names


def test_every_note_has_words_for_its_values_and_no_words_are_left_over() -> None:
    texts, made = load("en").entries, dict(notes_made())
    assert len(made) > 25
    words = {key.removeprefix("noted."): text for key, text in texts.items() if key.startswith("noted.")}
    assert {key: placeholders(text) for key, text in words.items()} == made


def test_every_reason_to_skip_has_words() -> None:
    found = {"hidden"}  # a constant there
    for path in SOURCE.glob("tasks/text/*.py"):
        found |= set(re.findall(r'(?:skipped\.add|NotText)\("([^"]+)"', path.read_text("utf-8")))
    assert len(found) > 8
    for language in LANGUAGES:
        texts = load(language).entries
        assert found == {key[5:] for key in texts if key.startswith("skip.")} - {"counted", "separator"}


def test_numbers_are_those_of_the_page() -> None:
    lost = note("runs_lost", lost=1, total=1018)
    assert in_english(lost).startswith("1 main run of 1,018 failed")
    assert in_english(note("runs_lost", lost=2, total=18)).startswith("2 main runs of 18")
    used_up = note("text_used_up", epochs=4.0, expected=312.0, budget=5400.0)
    assert "after 4 passes: the plan takes about 5 min 12 s of 1 h 30 min." in in_english(used_up)
    assert "予算1時間30分のうち約5分12秒" in in_html(used_up, load("ja"), {})
    too_large = note("size_too_large", size="mine", needed=48_300_000_000, there=8_600_000_000)
    assert "48 GB" in in_english(too_large)
    assert "8.6 GB" in in_english(too_large)
    assert "99.9%" in in_english(note("bytes_approximate", share=0.9988))
    assert "sees 0.012 tokens" in in_english(note("far_from_trained", ratio=0.0123))
    assert in_english(note("skipped", reasons=REASONS)) == (
        "Skipped: 1,200 record without text, 2 empty, 1 not UTF-8, 1 table without a column 'text'."
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_with_every_note_tells_them_all(samples, language: str) -> None:
    results = samples.results("missing")
    noted = every_note()
    data = {**results.data, "skipped": REASONS, "skipped_examples": {"not UTF-8": ["sjis.txt"]}}
    data |= {"notes": [one.model_dump() for one in noted], "passages": True, "truncated": True}
    page = render(results.model_copy(update={"warnings": noted, "data": data}), language)
    labels = {"vanilla": load(language)("arm.vanilla"), "kvshift": load(language)("arm.kvshift")}
    for one in noted:
        assert page.count(str(in_html(one, load(language), labels))) >= 2, one.key  # some say the same
    assert page.count(f"{len(noted)})</summary>") == 1
    if language == "en":
        return
    words = re.sub(r"<(style|script|head|pre)\b.*?</\1>", "", page, flags=re.S)
    ours = re.sub(r'<(\w+) lang="en">.*?</\1>', "", words, flags=re.S)
    assert "CUDA error" in words
    assert "CUDA error" not in ours
    assert "the machine ran out of memory" in words  # why runs failed
    assert "the machine ran out of memory" not in ours
    plain = html.unescape(re.sub(r"<[^>]+>", "\n", ours))
    assert not re.findall(r"[A-Za-z]{2,},? [a-z]{2,} [a-z]{2,}", plain)


def test_what_came_from_elsewhere_is_escaped_and_a_message_is_marked_english(samples, hostile) -> None:
    text = load("ja")
    bad = hostile.HOSTILE
    told = str(in_html(note("size_left_out", size=bad, reason=bad), text, {}))
    assert told.count("&lt;script&gt;alert(1)") == 2
    assert "<" not in told.replace('<span lang="en">', "", 1).replace("</span>", "", 1)
    for key, values in {"diverged": {"runs": 1, "arm": bad}, "skipped": {"reasons": {bad: 2}}}.items():
        told = str(in_html(note(key, **values), text, {}))
        assert "<" not in told
        assert "&lt;script&gt;" in told
    assert bad in in_english(note("size_left_out", size="s", reason=bad))


def test_arms_are_called_what_the_page_calls_them() -> None:
    told = in_html(note("diverged", runs=2, arm="kvshift"), load("ja"), {"kvshift": "KVシフト"})
    assert told.startswith("KVシフトの学習が2回発散しました")


def test_values_keep_their_types_in_files() -> None:
    made = note("text_used_up", epochs=4.0, expected=312, budget=600.0)
    back = Note.model_validate_json(made.model_dump_json())
    assert back == made
    assert {name: type(value) for name, value in back.values.items()} == {
        "epochs": float, "expected": int, "budget": float,
    }  # fmt: skip
