"""A tiny random copy of an architecture: the same kinds of layers, a few thousand weights.

Weights are drawn wide, so that attention matters and a mistake in it shows: with a library's usual initial
weights nearly anything passes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kvshift.models.families import Family

VOCABULARY = 61
_SPREAD = 0.3  # standard deviation of the weights
_HEAD_DIM = 8
_LONGEST_PERIOD = 4  # of layers whose kind a configuration gives by a period
_SMALL: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "n_inner": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "attention_chunk_size": 8,
    "query_pre_attn_scalar": 8,
    "original_max_position_embeddings": 64,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
    "mamba_dt_rank": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
"""Sizes in a configuration, whatever they were; only those that it has and that are larger are changed."""
_PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture, small: query heads still share KV heads, and kinds of layers still alternate."""
    config = copy.deepcopy(config)
    for name, value in _SMALL.items():
        given = getattr(config, name, None)
        if isinstance(given, int) and not isinstance(given, bool) and given > value:
            _set(config, name, value)
    queries = int(config.num_attention_heads)
    shared = next(
        (name for name in ("num_key_value_heads", "num_kv_heads") if getattr(config, name, None)), None
    )
    keys = int(getattr(config, shared)) if shared else queries
    small_keys = 1 if keys == 1 else 2
    small_queries = small_keys if keys == queries else 2 * small_keys
    config.num_attention_heads = small_queries
    if shared:
        setattr(config, shared, small_keys)
    config.hidden_size = 4 * _HEAD_DIM if small_queries > 1 else 2 * _HEAD_DIM
    if getattr(config, "head_dim", None):
        _set(config, "head_dim", _HEAD_DIM)
    if getattr(config, "word_embed_proj_dim", None):
        config.word_embed_proj_dim = config.hidden_size
    _fewer_layers(config)
    _plain_rotary(config)
    for name, token in _NO_TOKENS.items():
        setattr(config, name, token)
    # Once more from its values: what a configuration computes from others is computed again.
    given = config.to_dict()
    values = {
        key: given[key] for key in given if key not in ("model_type", "dtype") and not _computed(config, key)
    }
    return type(config)(**values)


def tiny_model(
    config: PretrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random model of a tiny configuration, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(std=_SPREAD)
    return model.eval().to(dtype)


def attention_layers(model: Any, family: Family) -> dict[str, Any]:
    """The attention layers of an unshifted model by name."""
    return {name: part for name, part in model.named_modules() if type(part) in family.attentions}


def _set(config: Any, name: str, value: Any) -> None:
    """Sets what a configuration holds; what it computes from other entries follows from those."""
    if not _computed(config, name):
        setattr(config, name, value)


def _computed(config: Any, name: str) -> bool:
    kind = getattr(type(config), config.attribute_map.get(name, name), None)
    return isinstance(kind, property) and kind.fset is None


def _fewer_layers(config: Any) -> None:
    """The shortest run from the first layer on that holds every kind of layer, and two at least."""
    patterns = {name: list(getattr(config, name)) for name in _PER_LAYER if getattr(config, name, None)}
    needed = [max(map(kinds.index, kinds)) + 1 for kinds in patterns.values()]
    periods = ("attn_layer_period", "expert_layer_period", "interleave_moe_layer_step")
    needed += [min(_LONGEST_PERIOD, getattr(config, name, None) or 0) for name in periods]
    layers = min(int(config.num_hidden_layers), max(2, *needed))
    for name, kinds in patterns.items():
        _set(config, name, kinds[:layers])
    config.num_hidden_layers = layers
    for kind in ("attn", "expert"):
        if getattr(config, f"{kind}_layer_period", None):
            period = min(getattr(config, f"{kind}_layer_period"), layers)
            _set(config, f"{kind}_layer_period", period)
            _set(config, f"{kind}_layer_offset", min(getattr(config, f"{kind}_layer_offset"), period - 1))


def _plain_rotary(config: Any) -> None:
    """Without the scaling of long contexts, whose tables fit one head size only."""
    rotary = getattr(config, "rope_parameters", None)
    if not isinstance(rotary, dict):
        return
    kept = ("rope_theta", "partial_rotary_factor")

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {"rope_type": "default", **{key: values[key] for key in kept if key in values}}

    nested = all(isinstance(value, dict) for value in rotary.values())  # one for each kind of layer
    config.rope_parameters = {k: plain(v) for k, v in rotary.items()} if nested else plain(rotary)
