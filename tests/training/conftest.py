"""A small real text, prepared once, and recipes of a few seconds on it."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvshift.shift import KVShiftConfig
from kvshift.tasks.text import TextData, TextRequest, prepare
from kvshift.training import Recipe

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SHIFT = KVShiftConfig(init="paper", lr_multiplier=10.0).to_dict()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    """Sixty documents of made-up words, of very different lengths."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(300)]
    for i in range(60):
        body = " ".join(draw.choices(words, k=draw.choice([8, 60, 300])))
        (folder / f"{i:03}.txt").write_text(f"Document {i}. {body}\n")
    request = TextRequest(sources=(str(folder),), vocab_size=300)
    return prepare(request, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def make_recipe(text: TextData) -> Callable[..., Recipe]:
    """A recipe of 12 steps unless told otherwise."""

    def make(**changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "data": text.folder,
            "model": MODEL,
            "shift": SHIFT,
            "tokens": 12 * 4 * 32,
            "sequence_length": 32,
            "batch_size": 4,
            "evaluations": 3,
            "evaluation_tokens": 320,
            "threads": 1,
            "device": "cpu",
        }
        return Recipe(**{**values, **changes})

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def context() -> multiprocessing.context.ForkServerContext:
    """Processes as the pilot starts them: forked from a server that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kvshift.training"])
    return context


@pytest.fixture(scope="session")
def lines_without_times() -> Callable[[Path], list[dict[str, Any]]]:
    """A record's lines without `start` lines and without what differs from run to run."""
    times = {"seconds", "train_seconds", "wall_seconds", "tokens_per_second", "peak_memory_bytes"}

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in line.items() if key not in times}
            for line in lines
            if line["event"] != "start"
        ]

    return read


@pytest.fixture(scope="session")
def final_bytes() -> Callable[[Path], bytes]:
    """The final weights' file."""
    return lambda folder: (folder / "final" / "model.safetensors").read_bytes()
