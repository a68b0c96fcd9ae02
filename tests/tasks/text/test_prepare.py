"""The whole way from files to tokens, and its cache."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from kvshift.errors import DataError, OutputError
from kvshift.tasks.text import TextData, TextRequest, TokenStore, prepare
from kvshift.tasks.text import tokenizer as bpe

Run = Callable[..., TextData]
Writer = Callable[[random.Random, int], str]


def texts_of(data: TextData, store: TokenStore) -> list[str]:
    """The documents of one side, decoded."""
    tokenizer = Tokenizer.from_file(str(data.folder / "tokenizer.json"))
    documents = np.split(np.asarray(store.tokens), store.document_starts[1:])
    assert all(document[-1] == data.end_token for document in documents)
    return [tokenizer.decode(document[:-1].tolist(), skip_special_tokens=False) for document in documents]


def test_every_document_is_on_one_side_and_whole(novels: Path, run: Run) -> None:
    (novels / "end.txt").write_text("\ufeffThis one says <|end|> itself. " + "Words of its own. " * 40)
    data = run(novels)
    train, validation = texts_of(data, data.train), texts_of(data, data.validation)
    originals = [path.read_text("utf-8-sig") for path in sorted(novels.iterdir())]
    assert sorted(train + validation) == sorted(originals)
    assert 1 <= len(validation) <= 3
    summary = data.summary()
    assert summary["documents"] == 13
    assert (summary["train_documents"], summary["validation_documents"]) == (len(train), len(validation))
    assert (summary["train_tokens"], summary["validation_tokens"]) == (len(data.train), len(data.validation))
    assert summary["train_bytes"] == sum(len(text.encode()) for text in train)
    assert data.token_bytes[data.train.tokens].sum() == summary["train_bytes"]
    assert data.token_bytes[data.validation.tokens].sum() == summary["validation_bytes"]
    assert summary["token_bytes_exact"] is True
    assert data.token_bytes[data.end_token] == 0
    assert len(data.token_bytes) == data.vocab_size == summary["vocab_size"]
    assert json.loads(json.dumps(summary)) == summary


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1, max_size=40), min_size=20, max_size=25, unique=True), st.integers(0, 3))
def test_any_records_come_back(
    tmp_path: Path, writers: dict[str, Writer], texts: list[str], seed: int
) -> None:
    path = tmp_path / "records.jsonl"
    texts = [text + writers["english"](random.Random(n), 400) + text for n, text in enumerate(texts)]
    kept = [text.replace("\ufeff", "") for text in texts if "\0" not in text]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    data = prepare(TextRequest((str(path),), seed=seed), tmp_path / "cache")
    found = texts_of(data, data.train) + texts_of(data, data.validation)
    assert sorted(found) == sorted(kept)


def test_a_second_call_only_reads(novels: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(novels)
    monkeypatch.setattr(bpe, "train", None)
    monkeypatch.setattr(bpe, "encode", None)
    again = run(novels)
    assert again.folder == first.folder
    assert again.summary() == first.summary()


def test_the_folders_name_is_of_content_and_request(novels: Path, run: Run) -> None:
    names = {
        run(novels).folder.name,
        run(novels, seed=1).folder.name,
        run(novels, vocab_size=300).folder.name,
    }
    (novels / "03.txt").write_text((novels / "03.txt").read_text() + "One more sentence.")
    names.add(run(novels).folder.name)
    assert len(names) == 4


def test_hidden_files_come_and_go_without_making_it_another_text(novels: Path, run: Run) -> None:
    before = run(novels)
    (novels / ".DS_Store").write_bytes(b"\0")
    assert run(novels).folder == before.folder
    (novels / "empty.txt").touch()  # this is counted where the text is described
    assert run(novels).folder != before.folder


def test_the_same_text_elsewhere_is_the_same(novels: Path, run: Run, tmp_path: Path) -> None:
    first = run(novels)
    moved = tmp_path / "deep" / "novels"
    moved.parent.mkdir()
    novels.rename(moved)
    assert run(moved).folder == first.folder


def test_preparing_twice_from_nothing_gives_the_same_bytes(novels: Path, tmp_path: Path) -> None:
    request = TextRequest((str(novels),))
    one, two = (prepare(request, tmp_path / name) for name in ("one", "two"))
    for path in one.folder.iterdir():
        assert path.read_bytes() == (two.folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["data.json", "train.tokens", "validation.starts.npy", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_cache_is_built_anew(novels: Path, run: Run, name: str, damage: str) -> None:
    data = run(novels)
    path = data.folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete prepared text"):
        TextData.open(data.folder)
    run(novels)
    assert path.read_bytes() == whole


def test_what_a_killed_preparation_left_is_cleared(novels: Path, run: Run, tmp_path: Path) -> None:
    left = tmp_path / "cache" / ".building" / "data"
    left.mkdir(parents=True)
    (left / "train.tokens").write_bytes(b"half")
    data = run(novels)
    assert sorted(path.name for path in data.folder.parent.iterdir()) == sorted([".lock", data.folder.name])


def test_a_failure_on_the_way_leaves_nothing(
    novels: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bpe, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(novels)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_copies_are_removed_and_said(tmp_path: Path, run: Run, writers: dict[str, Writer]) -> None:
    rng = random.Random(0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(20):
        text = writers["english"](rng, 3000)
        (folder / f"{number}.txt").write_text(text)
        (folder / f"{number} again.txt").write_text(text.upper())
        (folder / f"{number} edited.txt").write_text("A new first line.\n" + text + "\nAnd a last.")
    data = run(folder)
    summary = data.summary()
    assert summary["duplicates_removed"]["exact"] == 20
    assert 0 < summary["duplicates_removed"]["near"] <= summary["validation_documents"]
    train = "".join(texts_of(data, data.train)).lower()
    for text in texts_of(data, data.validation):
        assert text.lower()[500:1500] not in train
    near = summary["duplicates_removed"]["near"]
    assert {"key": "exact_copies", "values": {"copies": 20}} in summary["notes"]
    assert {"key": "near_copies", "values": {"copies": near}} in summary["notes"]


@pytest.mark.parametrize("language", ["english", "japanese", "code"])
def test_one_long_file_becomes_passages(
    tmp_path: Path, run: Run, writers: dict[str, Writer], language: str
) -> None:
    text = writers[language](random.Random(1), 150_000)
    path = tmp_path / "book.txt"
    path.write_text(text, "utf-8")
    data = run(path)
    summary = data.summary()
    assert summary["passages"] is True
    assert summary["documents"] == 1
    assert summary["train_documents"] + summary["validation_documents"] >= 40
    assert {"key": "cut_into_passages", "values": {"bytes": summary["passage_bytes"]}} in summary["notes"]
    assert summary["language_hint"] == ("Japanese" if language == "japanese" else None)
    passages = texts_of(data, data.train) + texts_of(data, data.validation)
    assert sum(map(len, passages)) == len(text)
    assert all(passage in text for passage in passages)


def test_the_users_tokenizer_is_used_and_kept(novels: Path, run: Run, tmp_path: Path) -> None:
    own, _ = bpe.train(["some other text altogether"] * 30, 280)
    own.save(str(tmp_path / "tokenizer.json"))
    data = run(novels, tokenizer=tmp_path)
    assert data.vocab_size == own.get_vocab_size()
    assert data.summary()["tokenizer"] == str(tmp_path)
    assert data.summary()["token_bytes_exact"] is True
    assert (data.folder / "tokenizer.json").read_text("utf-8") == own.to_str()


def test_a_lossy_tokenizer_is_used_and_said(novels: Path, run: Run, tmp_path: Path) -> None:
    own = Tokenizer(tokenizer_models.WordLevel({"river": 0, "<unk>": 1}, unk_token="<unk>"))
    from tokenizers import pre_tokenizers

    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.add_special_tokens(["</s>"])
    own.save(str(tmp_path / "tokenizer.json"))
    summary = run(novels, tokenizer=tmp_path / "tokenizer.json").summary()
    assert summary["token_bytes_exact"] is False
    approximate = next(note for note in summary["notes"] if note["key"] == "bytes_approximate")
    assert 0 < approximate["values"]["share"] < 1


def test_large_vocabularies_take_four_bytes(novels: Path, run: Run, tmp_path: Path) -> None:
    own, _ = bpe.train(["x"], 257)
    own.add_tokens([f"unused{n}" for n in range(66_000)])
    own.save(str(tmp_path / "tokenizer.json"))
    data = run(novels, tokenizer=tmp_path)
    assert data.train.tokens.dtype == np.uint32
    assert data.vocab_size > 1 << 16


def test_reading_stops_at_the_limit_and_says_so(novels: Path, run: Run) -> None:
    summary = run(novels, max_bytes=20_000).summary()
    assert summary["truncated"] is True
    assert summary["documents"] == 7
    assert {"key": "reading_stopped", "values": {"bytes": 20_000}} in summary["notes"]


def test_progress_names_the_steps(novels: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float | None]] = []
    prepare(
        TextRequest((str(novels),)), tmp_path, progress=lambda message, share: seen.append((message, share))
    )
    assert list(dict.fromkeys(message for message, _ in seen)) == [
        "Reading the text",
        "Looking for duplicates",
        "Training the tokenizer",
        "Turning text into tokens",
    ]
    shares = [share for _, share in seen if share is not None]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kvshift.tasks.text import default_cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KVSHIFT_CACHE", raising=False)
    assert default_cache() == tmp_path / "kvshift" / "text"
    monkeypatch.setenv("KVSHIFT_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine" / "text"


@pytest.mark.parametrize("number", [28, 122])
def test_a_full_disk_is_an_output_error(
    novels: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"disk that holds .*cache is full"):
        run(novels)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named(novels: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"Cannot write to the cache folder .*file/cache"):
        prepare(TextRequest((str(novels),)), tmp_path / "file" / "cache")
    with pytest.raises(OutputError, match="Cannot write"):
        prepare(TextRequest((str(novels),)), Path("/proc/nothing"))


def test_a_second_process_waits_for_the_first(novels: Path, tmp_path: Path) -> None:
    import threading

    from filelock import FileLock

    cache = tmp_path / "cache"
    cache.mkdir()
    waiting = threading.Event()
    results: list[TextData] = []

    def report(message: str, share: float | None) -> None:
        if message.startswith("Waiting"):
            waiting.set()

    def work() -> None:
        results.append(prepare(TextRequest((str(novels),)), cache, progress=report))

    with FileLock(cache / ".lock"):
        thread = threading.Thread(target=work)
        thread.start()
        assert waiting.wait(20)
        assert not results
        assert not (cache / ".building").exists()
    thread.join(60)
    assert results[0].folder.parent == cache
