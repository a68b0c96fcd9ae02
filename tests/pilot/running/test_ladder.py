from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.pilot.ladder import LADDER, rung, size_of, training_flops, user_ladder
from kvshift.training.model import build_model, tap_parameters
from kvshift.training.recipe import Recipe


def built(model: dict[str, Any]) -> int:
    values = {key: value for key, value in model.items() if key != "model_type"}
    values["pad_token_id"] = None
    with torch.device("meta"):
        real = AutoModelForCausalLM.from_config(AutoConfig.for_model(model["model_type"], **values))
    return sum(p.numel() for p in real.parameters())


@pytest.mark.parametrize("name", ["d16-L1", "d48-L2", "d64-L2", "d512-L8"])
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    assert rung(name, 1000, 256).parameters == built(rung(name, 1000, 256).model)


def test_the_papers_25m_model_is_on_the_ladder() -> None:
    size = rung("d512-L8", 16_000, 1024)
    assert size.kv_heads == 8
    assert size.head_dim == 64
    assert size.non_embedding_parameters == pytest.approx(25e6, rel=0.02)


def test_every_rung_costs_one_and_a_half_to_three_times_the_one_before() -> None:
    costs = [training_flops(rung(name, 4096, 256), 256) for name in LADDER]
    ratios = [after / before for before, after in pairwise(costs)]
    assert all(1.4 < ratio < 3.2 for ratio in ratios), ratios


@pytest.mark.parametrize(
    "name", ["", "64", "d64", "d64-L0", "d63-L2", "d99999-L2", "d0-L2", "d64-L201", "tiny"]
)
def test_impossible_sizes_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"[sS]ize"):
        rung(name, 1000, 256)


USERS = {
    "llama": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "use_sliding_window": True,
        "max_window_layers": 4,
        "sliding_window": 64,
    },
    "mistral": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": None,
    },
}


@pytest.mark.parametrize("family", sorted(USERS))
def test_a_users_model_is_the_top_of_valid_smaller_ones(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **USERS[family]}))
    sizes = user_ladder(tmp_path, 777, 512)
    top = sizes[-1].model
    assert len(sizes) == 3
    assert {key: top[key] for key in USERS[family]} == USERS[family]
    assert [size.parameters for size in sizes] == [built(size.model) for size in sizes]
    assert sizes[0].parameters < sizes[1].parameters < sizes[2].parameters
    for size in sizes:
        assert size.model["vocab_size"] == 777
        assert size.head_dim == sizes[-1].head_dim
        ratio = size.model["num_attention_heads"] / size.kv_heads
        assert ratio == top["num_attention_heads"] / top["num_key_value_heads"]
    costs = [size.non_embedding_parameters for size in sizes]
    assert all(1.3 < after / before < 4.5 for before, after in pairwise(costs)), costs


DENSE = (
    "cohere", "gemma2", "gemma3_text", "gpt_neox", "granite", "olmo2", "olmo3", "phi", "phi3", "qwen2",
    "smollm3", "stablelm", "starcoder2",
)  # fmt: skip


@pytest.mark.parametrize("family", DENSE)
def test_other_families_can_be_the_top_too(family: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}
    if family != "gpt_neox":  # which has as many KV heads as query heads
        shape["num_key_value_heads"] = 4
    values = {"model_type": family, **shape, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(values))
    sizes = user_ladder(tmp_path, 99, 64)
    assert len(sizes) == 3
    assert [size.parameters for size in sizes] == [built(size.model) for size in sizes]
    assert sizes[0].parameters < sizes[1].parameters < sizes[2].parameters
    assert (sizes[-1].hidden, sizes[-1].layers) == (128, 6)
    for size in sizes:
        recipe = Recipe(data=tmp_path, model=size.model, tokens=1000, sequence_length=64, shift={})
        model = build_model(recipe, 99, 0)
        assert sum(p.numel() for p in model.parameters()) - len(
            tap_parameters(model)
        ) * 2 * size.kv_heads == (size.parameters)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mixtral", "mixture of 8 experts"),
        ("gpt_oss", "read across packed documents"),
        ("jamba", "read across packed documents"),
        ("gpt2", "no hidden_size"),
    ],
)
def test_families_a_pilot_cannot_scale_are_refused(model_type: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=reason):
        user_ladder(tmp_path, 99, 64)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, UsageError),
        ("{", UsageError),
        ("[]", UsageError),
        ('{"hidden_size": 64}', UsageError),
        ('{"model_type": "nonesuch"}', UnsupportedModelError),
        ('{"model_type": "bert"}', UnsupportedModelError),
        ('{"model_type": "deepseek_v3"}', UnsupportedModelError),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', UnsupportedModelError),
        ('{"model_type": "llama", "hidden_size": -64}', UsageError),
        ('{"model_type": "llama", "num_hidden_layers": 0}', UsageError),
        ('{"model_type": "llama", "hidden_size": "wide"}', UsageError),
        ('{"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 4}', UsageError),
        (
            '{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, '
            '"num_attention_heads": 1, "num_key_value_heads": 1}',
            UsageError,
        ),
    ],
)
def test_an_unusable_model_is_refused(content: str | None, error: type, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(error, match=r"model|attention|architecture"):
        user_ladder(tmp_path, 777, 512)


def test_size_counts_embeddings_apart() -> None:
    size = rung("d64-L2", 1000, 256)
    assert size.parameters - size.non_embedding_parameters == 1000 * 64
    untied = size_of("untied", {**size.model, "tie_word_embeddings": False})
    assert untied.parameters - untied.non_embedding_parameters == 2 * 1000 * 64


def test_narrow_models_start_with_wider_weights():
    assert rung("d64-L2", 512, 64).model["initializer_range"] == pytest.approx(0.6 / 8)
    assert rung("d1024-L16", 512, 64).model["initializer_range"] == 0.02
