"""The models whose steps and decoding are measured: the paper's, and a tiny one for a CPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


@dataclass(frozen=True)
class Configuration:
    """A Llama with RoPE base 100,000, and the batch it is trained with here."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    length: int
    batch: int
    built_layers: int | None = None
    """Fewer than `layers`, where only a part is measured."""
    trained: bool = True
    decoded: bool = False
    note: str | None = None

    def llama(self, layers: int, length: int | None = None) -> LlamaConfig:
        """The library's configuration of a model with so many layers."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=length or self.length,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )


CONFIGURATIONS = {
    each.name: each
    for each in (
        Configuration("tiny", 64, 2, 4, 4, 176, 512, 128, 4, decoded=True),
        Configuration("1.5b", 2048, 28, 16, 16, 5504, 36_000, 2048, 8, decoded=True),
        # By the count of its activations, a step of all 32 layers fits in 80 GB with this batch, not with 4.
        Configuration("2.9b", 2560, 32, 20, 4, 8704, 48_000, 4096, 2, decoded=True),
        Configuration(
            "19b-layer",
            6144,
            48,
            48,
            4,
            16_384,
            1024,
            12_288,
            1,
            built_layers=1,
            note="one of 48 layers, with a vocabulary of 1,024 so that embedding and output weigh little",
        ),
    )
}
ON_GPU = ("1.5b", "2.9b", "19b-layer")
DECODED_ON_GPU = QUICK_ON_GPU = ("1.5b",)
ON_CPU = ("tiny",)
QUICK_LAYERS = 2


def build(
    configuration: Configuration,
    layers: int,
    device: torch.device,
    dtype: torch.dtype,
    length: int | None = None,
) -> PreTrainedModel:
    """A model without KV shift and with random weights, the same for the same arguments."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            configuration.llama(layers, length), dtype=dtype, attn_implementation="sdpa"
        )
    return model


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Another model with the same weights, not copies of them: several arms take the memory of one."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
