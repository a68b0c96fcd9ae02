"""Tiny models of every family, with weights large enough that attention matters (standard deviation 0.3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config

import kvshift

FAMILIES = ("llama", "mistral", "qwen3")
VOCABULARY = 61
PAD = 0


def make_config(family: str, **changes):
    made = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen3": Qwen3Config}[family]
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }
    if family == "mistral":
        values["sliding_window"] = 4  # smaller than every sequence in these tests
    return made(**{**values, **changes})


def make_vanilla(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(make_config(family, **changes)).eval().to(dtype)


def make_shifted(
    family: str, shift: kvshift.KVShiftConfig | None = None, *, seed: int = 0, **changes
) -> PreTrainedModel:
    shift = shift or kvshift.KVShiftConfig(init="paper")
    return kvshift.convert(
        make_vanilla(family, seed=seed, **changes), shift, generator=torch.Generator().manual_seed(seed + 100)
    )


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def vanilla() -> Callable[..., PreTrainedModel]:
    return make_vanilla


@pytest.fixture
def shifted() -> Callable[..., PreTrainedModel]:
    return make_shifted


@pytest.fixture
def config() -> Callable:
    return make_config


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    def draw(*shape: int, seed: int = 7) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def full_logits() -> Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]:
    """Logits of one unpadded sequence, without cache and mask: what every other way must equal."""

    @torch.no_grad()
    def run(model: PreTrainedModel, sequence: torch.Tensor) -> torch.Tensor:
        return model(sequence.view(1, -1), use_cache=False).logits[0]

    return run
