"""What a user gets wrong ends in one sentence that says how to mend it, or is skipped and counted."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshift.errors import DataError, KVShiftError, OutputError, UsageError
from kvshift.tasks.text import TextData, TextRequest, default_cache, files

Run = Callable[..., TextData]


def failure(run: Run, *sources: object, **request: object) -> str:
    """The message of the DataError, one line of it."""
    with pytest.raises(DataError) as caught:
        run(*sources, **request)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_an_empty_folder(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "There is no file in empty" in failure(run, folder)


def test_bad_files_are_skipped_and_counted(novels: Path, run: Run) -> None:
    (novels / "empty.txt").touch()
    (novels / "blank.txt").write_text(" \n\t\n\ufeff")
    (novels / "picture.txt").write_bytes(b"\x89PNG\0\0\0")
    (novels / "sjis.txt").write_bytes("日本語".encode("cp932"))
    (novels / ".hidden").write_text("hidden")
    summary = run(novels).summary()
    assert summary["skipped"] == {"empty": 2, "binary": 1, "not UTF-8": 1, "hidden": 1}
    assert summary["skipped_examples"]["not UTF-8"] == ["sjis.txt"]
    assert summary["documents"] == 12
    assert {"key": "skipped", "values": {"reasons": summary["skipped"]}} in summary["notes"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\0\1", "binary"),
        (b"\xff\xfe\xfd", "not UTF-8"),
        ("文".encode("cp932"), "not UTF-8"),
    ],
)
def test_nothing_but_bad_files(tmp_path: Path, run: Run, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    message = failure(run, path)
    assert f"all was skipped (1 {reason})" in message
    assert "iconv" in message


def test_one_short_document(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "note.txt"
    path.write_text("A short note. " * 10)
    message = failure(run, path)
    assert "only one document, 140 bytes" in message
    assert "give more documents" in message


def test_too_little_text_says_how_much_is_needed(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {n} {n * n}"}) + "\n" for n in range(20)))
    assert "at least 1,000 and 50 are needed; give about" in failure(run, path)


def test_copies_of_one_document(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "the same again"}\n' * 50)
    assert "All 50 documents are the same text" in failure(run, path)


def test_near_copies_of_one_document(
    tmp_path: Path, run: Run, writers: dict[str, Callable[[random.Random, int], str]]
) -> None:
    text = writers["english"](random.Random(0), 3000)
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(50)))
    assert "nearly the same as some validation document" in failure(run, path)


def test_records_without_usable_text(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "t.jsonl"
    values = [None, 3, ["a"], {"b": 1}, True, "", "nul \0 byte", "\ud800"]
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    message = failure(run, path)
    for reason in (
        "4 record whose text is not a string",
        "1 record without text",
        "1 empty",
        "1 binary",
        "1 not valid Unicode",
    ):
        assert reason in message


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "a/" + "x" * 300])
def test_names_that_cannot_be(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "check the path" in failure(run, name)
    assert "There is no tokenizer" in failure(run, tokenizer=Path(name))


def test_a_user_without_a_home_is_told_where_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KVSHIFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user the system does not know
    with pytest.raises(OutputError, match="set KVSHIFT_CACHE"):
        default_cache()


def test_a_missing_column_lists_those_there_are(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": 1, "body": "x"}\n')
    assert "'id', 'body'" in failure(run, path)
    assert "no column 'story'" in failure(run, path, text_column="story")


def test_a_malformed_line_in_a_folder_stops(novels: Path, run: Run) -> None:
    (novels / "records.jsonl").write_text('{"text": "good"}\n{"text": \n')
    assert "records.jsonl, line 2" in failure(run, novels)


def test_a_broken_archive_in_a_folder_stops(novels: Path, run: Run) -> None:
    (novels / "part.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
    assert "part.txt.gz is broken or cut short" in failure(run, novels)


def test_an_unreadable_file_stops_by_name_and_is_counted_in_a_folder(
    novels: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = files.open_binary

    def refuse(path: Path) -> object:
        if path.name == "03.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path)

    monkeypatch.setattr(files, "open_binary", refuse)
    summary = run(novels).summary()
    assert summary["skipped"] == {"unreadable": 1}
    assert summary["documents"] == 11
    assert "Cannot read" in failure(run, novels / "03.txt")


def test_text_is_never_interpreted(tmp_path: Path, run: Run) -> None:
    marker = tmp_path / "executed"
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(12):
        lines = [
            f"open({str(marker)!r}, 'w').write('{number}')  # {random.Random(number * 99 + n).random()}"
            for n in range(40)
        ]
        (folder / f"setup{number}.py").write_text("\n".join(lines))
    (folder / "conftest.py").write_text((folder / "setup1.py").read_text() + "\n# other")
    run(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": -1},
        {"vocab_size": 0},
        {"vocab_size": 256},
        {"vocab_size": 10**9},
        {"vocab_size": 300, "tokenizer": Path("t.json")},
        {"validation_share": 0},
        {"validation_share": -0.1},
        {"validation_share": 0.9},
        {"validation_share": math.nan},
        {"validation_share": math.inf},
        {"seed": -1},
        {"seed": 2**64},
        {"max_bytes": 0},
        {"sources": ("",)},
        {"text_column": " "},
    ],
)
def test_impossible_requests(values: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        TextRequest(**values)  # type: ignore[arg-type]
    assert isinstance(caught.value, KVShiftError)
    assert (
        any(str(value) in str(caught.value) for value in values.values())
        or "empty" in str(caught.value)
        or ("drop one" in str(caught.value))
    )


def test_one_source_may_be_a_plain_string() -> None:
    assert TextRequest("book.txt").sources == ("book.txt",)  # type: ignore[arg-type]


def test_a_column_where_no_text_comes_from_a_table(novels: Path, run: Run) -> None:
    with pytest.raises(UsageError, match=r"--text-column stroy is for tables .* no text came from one"):
        run(novels, text_column="stroy")
    (novels / "stories.jsonl").write_text('{"story": "Once upon a time there was a table."}\n')
    assert run(novels, text_column="story").summary()["documents"] == 13
