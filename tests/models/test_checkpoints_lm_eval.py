"""The evaluation harness by its ordinary `hf` interface: padding a batch changes no likelihood."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install lm_eval)")

from lm_eval.tasks import TaskManager  # noqa: E402

TASK = """
task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


def text(draw: random.Random, most: int) -> str:
    return " ".join(f"w{draw.randint(1, 59)}" for _ in range(draw.randint(1, most)))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(shifted, tmp_path):
    shifted("llama").save_pretrained(tmp_path / "model")
    words = {"[PAD]": 0, **{f"w{number}": number for number in range(1, 60)}, "[END]": 60}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[END]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]", unk_token="[END]"
    ).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def task(tmp_path):
    draw = random.Random(0)
    rows = [
        {
            "question": text(draw, 14),
            "choices": [text(draw, 4) for _ in range(3)],
            "answer": draw.randint(0, 2),
        }
        for _ in range(12)
    ]
    (tmp_path / "task").mkdir()
    data = tmp_path / "task" / "rows.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task" / "tiny.yaml").write_text(TASK.format(data=data))
    return TaskManager(include_path=str(tmp_path / "task"), include_defaults=False)


def test_every_batch_size_gives_the_same_likelihoods(offline, model, task) -> None:
    found = {}
    for batch_size in (1, 5, 36):
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32", "max_length": 64},
            tasks=["tiny"],
            task_manager=task,
            batch_size=batch_size,
            device="cpu",
            bootstrap_iters=0,
        )
        found[batch_size] = [
            float(choice[0]) for sample in results["samples"]["tiny"] for choice in sample["filtered_resps"]
        ]
        assert results["config"]["model_num_parameters"] > 0
    assert len(found[1]) == 36
    assert len(set(found[1])) > 30
    assert found[5] == pytest.approx(found[1], abs=1e-4)
    assert found[36] == pytest.approx(found[1], abs=1e-4)
