"""From names to documents: what is read, what is skipped, what stops."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest

from kvshift.errors import DataError
from kvshift.files import OUTPUT_MARK
from kvshift.tasks.text import files, sources
from kvshift.tasks.text.request import TextRequest
from kvshift.tasks.text.sources import Skipped, find_sources


def read(*names: object, column: str | None = None) -> tuple[dict[str, str], dict[str, int]]:
    """Every document by name, and what was skipped before reading."""
    skipped = Skipped()
    found = {}
    for source in find_sources(TextRequest(tuple(map(str, names)), text_column=column)):
        for document in source.documents(skipped):
            found[document.name] = "".join(document.chunks)
    return found, dict(skipped.counts)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with text, hidden things, links and a table without text."""
    top = tmp_path / "tree"
    (top / "deep" / "er").mkdir(parents=True)
    (top / ".git").mkdir()
    (top / ".git" / "config").write_text("secret")
    (top / ".hidden.txt").write_text("hidden")
    (top / "a.txt").write_text("A")
    (top / "deep" / "b.unknown").write_text("B")
    (top / "deep" / "er" / "c").write_text("C")
    (top / "deep" / "table.csv").write_text("x,y\n1,2\n")
    return top


def test_a_folder_is_read_to_its_depth_in_name_order(tree: Path) -> None:
    found, skipped = read(tree)
    assert list(found.items()) == [("a.txt", "A"), ("deep/b.unknown", "B"), ("deep/er/c", "C")]
    assert skipped == {"hidden": 2, "table without a column 'text'": 1}


def test_a_table_that_was_asked_for_must_have_its_column(tree: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv has no column 'text'"):
        read(tree / "deep" / "table.csv")
    with pytest.raises(DataError, match=r"table\.csv has no column 'story'"):
        read(tree, column="story")
    found, _ = read(tree, column="y")
    assert found["deep/table.csv, record 1"] == "2"


def test_folders_may_be_deep(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*["d"] * 150)
    deepest.mkdir(parents=True)
    (deepest / "e.txt").write_text("E")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found, _ = read(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert list(found.values()) == ["E"]


def test_what_kvshift_wrote_is_no_text(tree: Path) -> None:
    before = read(tree)
    (tree / "pilot" / "runs").mkdir(parents=True)
    (tree / "pilot" / OUTPUT_MARK).touch()
    (tree / "pilot" / "runs" / "log.txt").write_text("what a run printed")
    assert read(tree) == before
    found, _ = read(f"{tree}/**/*.txt")
    assert list(found.values()) == ["A"]


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "w") as file:
        file.write("C")
    (folder / "empty.txt").touch()
    found, _ = read(folder)
    assert found["caf\ufffd.txt"] == "C"
    skipped = Skipped()
    skipped.add("empty", os.fsdecode(b"caf\xe9.txt"))
    assert skipped.examples == {"empty": ["caf\ufffd.txt"]}
    assert find_sources(TextRequest((f"{folder}/*",)))[0].title == "caf\ufffd.txt"


def test_links_are_followed_but_never_in_a_circle(tree: Path) -> None:
    (tree / "deep" / "up").symlink_to(tree)
    (tree / "deep" / "loop").symlink_to(tree / "deep" / "loop")
    (tree / "gone.txt").symlink_to(tree / "nowhere")
    elsewhere = tree.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.txt").write_text("D")
    (tree / "linked").symlink_to(elsewhere)
    found, skipped = read(tree)
    assert sorted(found.values()) == ["A", "B", "C", "D"]
    assert skipped["unreadable"] == 2
    assert skipped["folder reached twice"] == 1


def test_a_pipe_is_skipped_in_a_folder_and_refused_by_name(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    _, skipped = read(tree)
    assert skipped["not a regular file"] == 1
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tree / "pipe")


def test_globs_and_files_named_twice(tree: Path) -> None:
    found, _ = read(tree / "*.txt", tree / "a.txt", tree / "**" / "b*")
    assert list(found.values()) == ["A", "B"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("literally")
    assert list(read(tmp_path / "a[1].txt")[0].values()) == ["literally"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "There is no file or folder 'missing.txt'"),
        ("./missing/folder", "There is no file or folder"),
        ("/nowhere/at/all", "There is no file or folder"),
        ("*.nothing", "No file matches"),
    ],
)
def test_what_is_not_there(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        find_sources(TextRequest((name,)))


def test_a_broken_link_by_name(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"Cannot read .*gone\.txt"):
        find_sources(TextRequest((str(tmp_path / "gone.txt"),)))


def test_a_misspelt_path_in_a_folder_that_is_there_never_asks_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="There is no file or folder 'data/boks'"):
        find_sources(TextRequest(("data/boks",)))


@pytest.mark.parametrize("name", ["owner/name", "owner/name:config", "hf:wikitext"])
def test_dataset_names_go_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.tables, "hub_values", lambda dataset, column: iter([dataset, None, 3, "b"]))
    found, skipped = read(name)
    assert list(found.values()) == [name.removeprefix("hf:"), "b"]
    assert skipped == {"record without text": 1, "record whose text is not a string": 1}


def test_the_default_is_the_running_pythons_library() -> None:
    (source,) = find_sources(TextRequest())
    names = [document.name for document in source.documents(Skipped())]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert names == list(dict.fromkeys(names))
    folders = {part for name in names for part in Path(name).parent.parts}
    assert not folders & {"site-packages", "test", "tests", "__pycache__"}
    assert len(names) > 400
    assert source.title.startswith("Python 3.")


def test_an_unreadable_folder_is_counted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def refuse(path: Path) -> object:
        if Path(path).name == "er":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(sources.os, "listdir", refuse)
    found, skipped = read(tree)
    assert sorted(found.values()) == ["A", "B"]
    assert skipped["unreadable"] == 1


def test_user_files_are_opened_in_one_place_only() -> None:
    assert files.open_binary is sources.tables.open_binary
