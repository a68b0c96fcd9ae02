"""Sources → documents → split without duplicates → tokenizer → tokens on disk, cached by content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from kvshift.errors import DataError, OutputError, UsageError
from kvshift.files import sync_file, sync_folder
from kvshift.tasks.text import tokenizer as bpe
from kvshift.tasks.text.corpus import HINT_BYTES, Corpus, arrange
from kvshift.tasks.text.data import DESCRIPTION, TOKEN_BYTES, TOKENIZER, VERSION, TextData
from kvshift.tasks.text.files import NotText, UnreadableFile
from kvshift.tasks.text.request import TextRequest
from kvshift.tasks.text.scripts import without_spaces
from kvshift.tasks.text.sources import HIDDEN, Skipped, Source, find_sources
from kvshift.tasks.text.spool import Spool
from kvshift.tasks.text.summary import summarise
from kvshift.tasks.text.tokens import write

LEAST_TRAINING_TOKENS = 1_000
_LEAST_VALIDATION_TOKENS = 50
_BUILDING = ".building"

Progress = Callable[[str, float | None], None]


def default_cache() -> Path:
    """`$KVSHIFT_CACHE`, or else `kvshift` in the user's cache folder.

    Raises:
        OutputError: the user has none.
    """
    if chosen := os.environ.get("KVSHIFT_CACHE"):
        return Path(os.path.expanduser(chosen)) / "text"
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        raise OutputError("This user has no home folder to keep prepared texts in; set KVSHIFT_CACHE to one.")
    return Path(folder) / "kvshift" / "text"


def prepare(request: TextRequest, cache: Path | None = None, *, progress: Progress | None = None) -> TextData:
    """Prepares a text, or finds it prepared.

    The sources are always read, so that changed content is noticed; everything after that is kept in
    `cache` under a hash of the content and the request. One preparation at a time uses a cache; others wait.

    Args:
        progress: called with what is being done and, where it is known, the share of that step done.

    Raises:
        UsageError, DataError: the request or the text is unusable.
        OutputError: the cache cannot be written.
    """
    report = progress or (lambda message, share: None)
    sources = find_sources(request)
    own = None if request.tokenizer is None else bpe.load(Path(os.path.expanduser(request.tokenizer)))
    cache = (default_cache() if cache is None else Path(cache)).absolute()
    with _exclusive(cache, report):
        building = cache / _BUILDING
        shutil.rmtree(building, ignore_errors=True)  # of a preparation that was killed
        (building / "data").mkdir(parents=True)
        try:
            with Spool(building / "spool", request.max_bytes) as spool:
                skipped = _read(request, sources, spool, report)
                titles = [source.title for source in sources]
                name = _name(request, titles, spool, skipped, own)
                found = _existing(cache / name)
                if found is not None:
                    return found
                corpus = arrange(spool, request, report)
                _build(building / "data", request, titles, corpus, skipped, own, report)
            _move(building / "data", cache / name)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return TextData.open(cache / name)


@contextmanager
def _exclusive(cache: Path, report: Progress) -> Iterator[None]:
    """Holds the cache's lock, which the system frees even if the process is killed."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / ".lock")
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            report("Waiting for another preparation in the same cache", None)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:  # reading the sources raises none: only the cache's files are left
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk that holds {cache} is full; free some space (three times the size of the text is "
                "enough), or set KVSHIFT_CACHE to a folder on another disk."
            ) from error
        raise OutputError(
            f"Cannot write to the cache folder {cache} ({error.strerror or error}); make it writable, or set "
            "KVSHIFT_CACHE to a folder that is."
        ) from error


def _read(request: TextRequest, sources: list[Source], spool: Spool, report: Progress) -> Skipped:
    skipped, records = Skipped(), False
    report("Reading the text", None)
    for source in sources:
        for document in source.documents(skipped):
            records = records or document.record
            try:
                spool.add(document.chunks)
            except NotText as why:
                skipped.add(why.reason, document.name)
            except UnreadableFile:
                if document.named:
                    raise
                skipped.add("unreadable", document.name)
            if spool.full:
                return skipped
    if not len(spool):
        titles = ", ".join(source.title for source in sources)
        if not skipped.counts:
            raise DataError(f"There is no file in {titles}; give a folder with text files.")
        raise DataError(
            f"No usable text in {titles}: all was skipped ({skipped}); text must be UTF-8 (convert other "
            "encodings, for example with iconv) and may be packed as .gz, .bz2, .xz or .zst, one file each."
        )
    if request.text_column is not None and not records:
        raise UsageError(
            f"--text-column {request.text_column} is for tables (.jsonl, .csv, .tsv, .parquet, datasets), "
            "but no text came from one. Leave it out, or check that the table is among the sources."
        )
    return skipped


def _name(
    request: TextRequest,
    titles: list[str],
    spool: Spool,
    skipped: Skipped,
    own: tuple[Tokenizer, int] | None,
) -> str:
    decides = {
        "version": VERSION,
        "content": spool.content_hash().hex(),
        "titles": titles,
        # Hidden files come and go (editors' copies, .DS_Store) and leave the text what it was.
        "skipped": {reason: count for reason, count in skipped.counts.items() if reason != HIDDEN},
        "full": spool.full,
        "vocab_size": request.vocab_size,
        "validation_share": request.validation_share,
        "seed": request.seed,
        "tokenizer": None if own is None else [hashlib.sha256(own[0].to_str().encode()).hexdigest(), own[1]],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


def _existing(folder: Path) -> TextData | None:
    try:
        return TextData.open(folder)
    except DataError:
        return None  # not there, or damaged: built anew


def _build(
    folder: Path,
    request: TextRequest,
    titles: list[str],
    corpus: Corpus,
    skipped: Skipped,
    own: tuple[Tokenizer, int] | None,
    report: Progress,
) -> None:
    if own is None:
        report("Training the tokenizer", None)
        size = request.vocab_size or bpe.vocabulary_size(corpus.train_bytes)
        spaceless = without_spaces(corpus.sample(HINT_BYTES))
        tokenizer, end_token = bpe.train(corpus.sample(bpe.TRAINING_SAMPLE), size, spaceless=spaceless)
    else:
        tokenizer, end_token = own
    vocab_size = bpe.vocabulary(tokenizer)
    token_bytes = bpe.token_bytes(tokenizer)
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)

    stores = {}
    counted = np.zeros(vocab_size, np.int64)
    for name in ("train", "validation"):
        texts = corpus.texts(name, lambda share: report("Turning text into tokens", share))
        pieces = bpe.encode(tokenizer, texts, dtype, end_token)
        stores[name], counts = write(folder, name, pieces, dtype, vocab_size)
        counted += counts
    _check_size(stores["train"]["tokens"], stores["validation"]["tokens"], corpus)

    tokenizer.encode_special_tokens = False
    packed = tokenizer.to_str().encode()
    (folder / TOKENIZER).write_bytes(packed)
    np.save(folder / TOKEN_BYTES, token_bytes, allow_pickle=False)
    description = {
        "version": VERSION,
        "vocab_size": vocab_size,
        "end_token": end_token,
        "tokenizer_bytes": len(packed),
        **stores,
        "summary": summarise(
            request, titles, corpus, skipped, stores, vocab_size, int((counted * token_bytes).sum())
        ),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False), "utf-8")


def _check_size(train_tokens: int, validation_tokens: int, corpus: Corpus) -> None:
    if train_tokens >= LEAST_TRAINING_TOKENS and validation_tokens >= _LEAST_VALIDATION_TOKENS:
        return
    needed = max(LEAST_TRAINING_TOKENS / train_tokens, _LEAST_VALIDATION_TOKENS / validation_tokens)
    there = corpus.train_bytes + corpus.validation_bytes
    raise DataError(
        f"Too little text: {train_tokens:,} training tokens and {validation_tokens:,} for validation, at "
        f"least {LEAST_TRAINING_TOKENS:,} and {_LEAST_VALIDATION_TOKENS} are needed; give about {needed:.1f} "
        f"times as much as these {there:,} bytes, and far more for a result that means something."
    )


def _move(built: Path, target: Path) -> None:
    """Puts a complete folder in place at once, safe against a power cut."""
    for path in built.iterdir():
        sync_file(path)
    sync_folder(built)
    if target.exists():
        shutil.rmtree(target)
    os.replace(built, target)
