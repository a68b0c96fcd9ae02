"""A tiny configuration of every supported family, and of variants that project or attend in their own way.

Weights are large (standard deviation 0.3), so that attention and hence every mistake in it shows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

import kvshift

VOCABULARY = 61
PAD = 0
WINDOW = 4  # of sliding windows: smaller than every sequence in these tests

_EVERY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": PAD,
}
_HEAD = {"head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_HALF_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_SOME_ROTARY = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", {}),
    "cohere-norm": ("cohere", {"use_qk_norm": True}),
    "falcon": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon-many": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False},
    ),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": True}),
    "falcon_h1": (
        "falcon_h1",
        {
            **_HEAD,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 4,
            "key_multiplier": 0.7,
        },
    ),
    "gemma2": ("gemma2", {**_HEAD, **_HALF_SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_HEAD, **_HALF_SLIDING, "query_pre_attn_scalar": 8}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}),
    "gpt_neox": ("gpt_neox", _SOME_ROTARY),
    "gpt_oss": ("gpt_oss", {**_HEAD, **_HALF_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("granite", {"attention_multiplier": 0.4, "embedding_multiplier": 1.5, "logits_scaling": 2.0}),
    "jamba": (
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "llama": ("llama", _HEAD),
    "llama4": (
        "llama4_text",
        {
            **_HEAD,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "num_hidden_layers": 4,
            "attention_chunk_size": 8,
            "interleave_moe_layer_step": 2,
        },
    ),
    "mistral": ("mistral", {**_HEAD, "sliding_window": WINDOW}),
    "mixtral": ("mixtral", {**_HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", _HALF_SLIDING),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "activation_function": "gelu"}),
    "phi": ("phi", _SOME_ROTARY),
    "phi3": ("phi3", {"original_max_position_embeddings": 64}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", _HEAD),
    "qwen3_moe": ("qwen3_moe", {**_HEAD, **_EXPERTS}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_HEAD,
            **_EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "stablelm": ("stablelm", {}),
    "stablelm-norm": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
}
"""Name → the library's model type and what differs from `_EVERY`; a new family is a line here."""


def make_config(name: str, **changes: Any) -> PretrainedConfig:
    model_type, special = TINY[name]
    return AutoConfig.for_model(model_type, **{**_EVERY, **special, **changes})


def make_vanilla(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(make_config(name, **changes)).eval().to(dtype)


def make_shifted(
    name: str, shift: kvshift.KVShiftConfig | None = None, *, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    shift = shift or kvshift.KVShiftConfig(init="paper")
    return kvshift.convert(
        make_vanilla(name, seed=seed, **changes), shift, generator=torch.Generator().manual_seed(seed + 100)
    )
