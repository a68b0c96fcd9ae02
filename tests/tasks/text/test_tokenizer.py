"""Tokens give back the text, byte for byte, whoever made the tokenizer."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kvshift.errors import DataError
from kvshift.tasks.text import tokenizer as bpe

TEXT = [
    "The quick brown fox said: 12345!",
    "素早い茶色の狐がのろまな犬を飛び越える。キツネ",
    "def f(x):\n    return x\n",
]
TRAINED = {spaceless: bpe.train(TEXT * 20, 400, spaceless=spaceless)[0] for spaceless in (False, True)}


def ids_of(tokenizer: Tokenizer, documents: list[list[str]], end: int) -> list[list[int]]:
    """Tokens of each document, as `encode` gives them."""
    result: list[list[int]] = [[]]
    for tokens, last in bpe.encode(tokenizer, documents, np.dtype(np.uint32), end):
        result[-1].extend(tokens.tolist())
        if last:
            result.append([])
    assert result.pop() == []
    return result


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=5), st.booleans())
def test_any_text_comes_back_and_its_bytes_add_up(texts: list[str], spaceless: bool) -> None:
    tokenizer = TRAINED[spaceless]
    sizes = bpe.token_bytes(tokenizer)
    for text, ids in zip(texts, ids_of(tokenizer, [[text] for text in texts], 0), strict=True):
        assert ids[-1] == 0
        assert 0 not in ids[:-1]
        assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == text
        assert sizes[ids].sum() == len(text.encode())


def test_the_end_tokens_name_in_the_text_is_text() -> None:
    text = f"before {bpe.END_TOKEN} after"
    (ids,) = ids_of(TRAINED[False], [[text]], 0)
    assert ids.count(0) == 1
    assert TRAINED[False].decode(ids[:-1]) == text


def test_a_document_in_pieces_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_BATCH", 10)
    documents = [["one piece ", "and another ", "and a third"], ["short"], ["a", "b"]]
    found = ids_of(TRAINED[False], documents, 0)
    assert [TRAINED[False].decode(ids[:-1]) for ids in found] == ["".join(d) for d in documents]
    assert all(ids.count(0) == 1 for ids in found)


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert bpe.train(TEXT * 20, 400)[0].to_str() == TRAINED[False].to_str()
    assert bpe.vocabulary(TRAINED[False]) <= 400


def test_the_vocabulary_grows_with_the_text() -> None:
    sizes = [bpe.vocabulary_size(n * 1_000_000) for n in (0, 1, 2, 3, 12, 20, 50, 100, 10_000)]
    assert sizes == [512, 1024, 1024, 2048, 2048, 4096, 8192, 16384, 16384]


def test_a_saved_tokenizer_serves_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    TRAINED[True].save(str(tmp_path / "tokenizer.json"))
    loaded = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert loaded.decode(loaded.encode(TEXT[1])) == TEXT[1]


def saved(tokenizer: Tokenizer, folder: Path, end: str | None = None) -> Path:
    """A folder like a model's, with or without its configuration."""
    tokenizer.save(str(folder / "tokenizer.json"))
    if end is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    return folder


def word_level(*special: str) -> Tokenizer:
    """Whole words only; unknown ones are lost."""
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "fox": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


@pytest.mark.parametrize("end", ["</s>", "<|endoftext|>", "<|end|>"])
def test_usual_end_tokens_are_found(tmp_path: Path, end: str) -> None:
    tokenizer, number = bpe.load(saved(word_level("<pad>", end), tmp_path) / "tokenizer.json")
    assert tokenizer.id_to_token(number) == end


def test_the_configured_end_token_comes_first(tmp_path: Path) -> None:
    tokenizer, number = bpe.load(saved(word_level("</s>", "<halt>"), tmp_path, "<halt>"))
    assert tokenizer.id_to_token(number) == "<halt>"


def test_a_tokenizer_without_an_end_token_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no end token.*add_special_tokens.*eos_token"):
        bpe.load(saved(word_level("<pad>"), tmp_path))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe\0", b'{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="is not a tokenizer"):
        bpe.load(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(DataError, match="There is no tokenizer"):
            bpe.load(path)


def test_absurd_token_ids_are_refused(tmp_path: Path) -> None:
    vocabulary = {"the": 0, "<unk>": 1 << 25}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(["</s>"])
    with pytest.raises(DataError, match="has token ids up to"):
        bpe.load(saved(tokenizer, tmp_path))


def test_truncation_and_padding_of_the_users_tokenizer_are_off(tmp_path: Path) -> None:
    own = Tokenizer.from_str(TRAINED[False].to_str())
    own.enable_truncation(5)
    own.enable_padding(length=50)
    tokenizer, end = bpe.load(saved(own, tmp_path))
    text = "a long text that must not be cut " * 10
    (ids,) = ids_of(tokenizer, [[text]], end)
    assert tokenizer.decode(ids[:-1]) == text


def test_what_a_template_adds_is_left_out(tmp_path: Path) -> None:
    own = Tokenizer.from_str(TRAINED[False].to_str())
    own.post_processor = processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]
    )
    tokenizer, end = bpe.load(saved(own, tmp_path))
    assert ids_of(tokenizer, [["x"]], end)[0].count(0) == 1


def test_bytes_of_a_sentencepiece_like_tokenizer_are_exact_but_for_the_first_space() -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    tokenizer.train_from_iterator(
        TEXT * 5,
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False),
    )
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = [
        token for token in layout["added_tokens"] if not token["content"].startswith("<0x")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    sizes = bpe.token_bytes(tokenizer)
    for text in [*TEXT, "unseen: ж 語 😀"]:
        (ids,) = ids_of(tokenizer, [[text]], 1)
        assert sizes[ids].sum() == len(text.encode()) + 1


def test_a_fork_afterwards_neither_warns_nor_hangs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    tokenizer, end = bpe.train(TEXT * 20, 300)
    ids_of(tokenizer, [["a b"]] * 50, end)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        tokenizer.encode_batch(["x"] * 50)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert "forked" not in capfd.readouterr().err


def test_the_users_choice_of_parallelism_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "1")
    with bpe.parallelism():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "1"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "1"


def test_large_random_texts_of_each_kind_come_back(
    writers: dict[str, Callable[[random.Random, int], str]],
) -> None:
    for name, write in writers.items():
        texts = [write(random.Random(n), 5000) for n in range(6)]
        tokenizer, end = bpe.train(texts[:4], 600, spaceless=name == "japanese")
        for text, ids in zip(texts, ids_of(tokenizer, [[t] for t in texts], end), strict=True):
            assert tokenizer.decode(ids[:-1]) == text
            assert bpe.token_bytes(tokenizer)[ids].sum() == len(text.encode())
