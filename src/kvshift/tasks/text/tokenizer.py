"""Byte-level BPE: trained on the training part, or the user's own; and what each token is worth in bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from kvshift.errors import DataError

END_TOKEN = "<|end|>"
_END_ID = 0  # special tokens come first in a trained vocabulary
TRAINING_SAMPLE = 30_000_000  # bytes; more changes the vocabulary little and takes long
_LARGEST_IDS = 1 << 24
_BATCH = 1 << 20
# (bytes of training text below which, vocabulary): a token must occur often enough to be learned.
_SIZES = ((1_000_000, 512), (3_000_000, 1024), (16_000_000, 2048), (32_000_000, 4096), (64_000_000, 8192))
_LARGEST_CHOSEN = 16_384
_USUAL_END_TOKENS = (
    END_TOKEN,
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|eos|>",
    "<|im_end|>",
    "<｜end▁of▁sentence｜>",
    "<|eot_id|>",
)
_SCRIPT_RUNS = (
    r"\p{Han}{1,8}|\p{Hiragana}{1,8}|[\p{Katakana}ー]{1,8}|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{1,8}"
)
_SPACE = "▁"  # SentencePiece writes a space so


def vocabulary_size(training_bytes: int) -> int:
    """The vocabulary for that much training text: 512 below 1 MB, 1k to 3 MB, 2k to 16 MB, 4k to 32 MB,
    8k to 64 MB, 16k above."""
    return next((size for limit, size in _SIZES if training_bytes < limit), _LARGEST_CHOSEN)


@contextmanager
def parallelism() -> Iterator[None]:
    """Lets the library use all cores here and says no afterwards, so that later forks neither warn nor hang.

    A value of TOKENIZERS_PARALLELISM that the user set stays as it is.
    """
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ[name] = "false"


def train(texts: Iterable[str], vocab_size: int, *, spaceless: bool = False) -> tuple[Tokenizer, int]:
    """Trains a byte-level BPE of at most `vocab_size` tokens. Any text round-trips.

    Args:
        spaceless: much of the text has no spaces between words. Tokens then stay inside runs of one script:
            with whole clauses for words, training takes several times the time and memory, and compresses
            no better.

    Returns:
        The tokenizer and the id of its end token.
    """
    tokenizer = Tokenizer(models.BPE())
    splits: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if spaceless:
        splits.insert(0, pre_tokenizers.Split(Regex(_SCRIPT_RUNS), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(END_TOKEN, special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with parallelism():
        tokenizer.train_from_iterator(texts, trainer)
    return tokenizer, _END_ID


def load(path: Path) -> tuple[Tokenizer, int]:
    """The user's tokenizer and the id of its end token.

    Args:
        path: a tokenizer.json or the folder that holds it; `eos_token` in a tokenizer_config.json beside it
            names the end token, otherwise a special token with a usual name is taken.

    Raises:
        DataError: there is none, it cannot be read, or it has no end token.
    """
    file = path / "tokenizer.json" if os.path.isdir(path) else path
    if not os.path.isfile(file):
        raise DataError(f"There is no tokenizer {file}; give a tokenizer.json or the folder that holds it.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{file} is not a tokenizer.json of the tokenizers library ({error}).") from error
    # What was set for batches of one model must not cut or pad documents.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = vocabulary(tokenizer)
    if size > _LARGEST_IDS:
        raise DataError(
            f"{file} has token ids up to {size - 1:,}; at most {_LARGEST_IDS:,} tokens are supported."
        )
    return tokenizer, _end_token(tokenizer, file)


def vocabulary(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: what a model's embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _end_token(tokenizer: Tokenizer, file: Path) -> int:
    named = _configured_end(file.with_name("tokenizer_config.json"))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    for token in (named, *_USUAL_END_TOKENS):
        if token is not None and (token in special or token == named):
            number = tokenizer.token_to_id(token)
            if number is not None:
                return int(number)
    raise DataError(
        f"{file} has no end token, which separates documents; add one, for example with "
        f"tokenizer.add_special_tokens(['{END_TOKEN}']) and tokenizer.save(…), or name it as eos_token in a "
        "tokenizer_config.json beside it."
    )


def _configured_end(file: Path) -> str | None:
    try:
        token = json.loads(file.read_text("utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """int32 `(vocabulary,)`: UTF-8 bytes each token stands for; 0 for special tokens and unused ids.

    Exact for byte-level BPE: over a document they add up to its length. SentencePiece vocabularies with
    byte fallback are exact but for the space put before a document; of others (WordPiece, tokenizers that
    change the text first) it is an estimate.
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
    added = tokenizer.get_added_tokens_decoder()
    result = np.zeros(vocabulary(tokenizer), np.int32)
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in added:
            result[number] = 0 if added[number].special else len(added[number].content.encode("utf-8"))
        elif byte_level and alphabet.issuperset(token):
            result[number] = len(token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            result[number] = 1
        else:
            result[number] = len(token.removeprefix("##").replace(_SPACE, " ").encode("utf-8", "replace"))
    return result


def encode(
    tokenizer: Tokenizer, documents: Iterable[Iterable[str]], dtype: np.dtype, end_token: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Tokens of many documents, piece by piece.

    A special token's name that occurs in the text is text: it is not taken for the token.

    Args:
        documents: each as pieces of text.

    Yields:
        tokens: `dtype (n,)`, one piece; the last of a document ends with `end_token`.
        last: whether the document ends here.
    """
    tokenizer.encode_special_tokens = True
    batch: list[tuple[str, bool]] = []
    waiting = 0
    with parallelism():
        for text, last in _marked(documents):
            batch.append((text, last))
            waiting += len(text)
            if waiting >= _BATCH:
                yield from _encode_batch(tokenizer, batch, dtype, end_token)
                batch, waiting = [], 0
        yield from _encode_batch(tokenizer, batch, dtype, end_token)


def _marked(documents: Iterable[Iterable[str]]) -> Iterator[tuple[str, bool]]:
    """Every piece, and whether it is its document's last."""
    for document in documents:
        waiting: str | None = None
        for piece in document:
            if waiting is not None:
                yield waiting, False
            waiting = piece
        if waiting is not None:
            yield waiting, True


def _encode_batch(
    tokenizer: Tokenizer, batch: list[tuple[str, bool]], dtype: np.dtype, end_token: int
) -> Iterator[tuple[np.ndarray, bool]]:
    encodings = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
    for encoding, (_, last) in zip(encodings, batch, strict=True):
        ids = encoding.ids
        if last:
            ids.append(end_token)
        yield np.array(ids, dtype), last
