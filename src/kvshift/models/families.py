"""What differs between the supported model families, one entry each.

To add a family whose attention projects queries, keys and values separately, add an entry. Everything else
(the shifted classes, their registration, starts, cache, conversion, saving) follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig
from transformers.models.llama import modeling_llama as llama
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from kvshift.errors import UnsupportedModelError

SHIFTED_PREFIX = "kvshift_"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture as the Hugging Face library writes it."""

    name: str
    """Middle of the shifted classes' names: `Llama` gives `KVShiftLlamaForCausalLM`."""

    config: type
    base_model: type
    causal_lm: type
    attention: type

    rotary: Callable[..., Any]
    """The family's `apply_rotary_pos_emb(q, k, cos, sin)`."""

    eager_attention: Callable[..., Any]
    """The family's attention function for `attn_implementation="eager"`."""

    sliding_window: Callable[[Any], int | None]
    """How an attention layer knows its sliding window; None: it sees everything before it."""

    query_key_norm: bool
    """Queries and keys go through `q_norm` and `k_norm`, head by head, after their projections."""

    @property
    def model_type(self) -> str:
        """The library's name of the unshifted architecture, as `config.json` has it."""
        return str(self.config.model_type)  # type: ignore[attr-defined]


FAMILIES = (
    Family(
        name="Llama",
        config=LlamaConfig,
        base_model=llama.LlamaModel,
        causal_lm=llama.LlamaForCausalLM,
        attention=llama.LlamaAttention,
        rotary=llama.apply_rotary_pos_emb,
        eager_attention=llama.eager_attention_forward,
        sliding_window=lambda attention: None,
        query_key_norm=False,
    ),
    Family(
        name="Mistral",
        config=MistralConfig,
        base_model=mistral.MistralModel,
        causal_lm=mistral.MistralForCausalLM,
        attention=mistral.MistralAttention,
        rotary=mistral.apply_rotary_pos_emb,
        eager_attention=mistral.eager_attention_forward,
        sliding_window=lambda attention: attention.config.sliding_window,
        query_key_norm=False,
    ),
    Family(
        name="Qwen3",
        config=Qwen3Config,
        base_model=qwen3.Qwen3Model,
        causal_lm=qwen3.Qwen3ForCausalLM,
        attention=qwen3.Qwen3Attention,
        rotary=qwen3.apply_rotary_pos_emb,
        eager_attention=qwen3.eager_attention_forward,
        sliding_window=lambda attention: attention.sliding_window,
        query_key_norm=True,
    ),
)


def supported_architectures() -> list[str]:
    """The `model_type` of every architecture that `convert` takes, sorted."""
    return sorted(family.model_type for family in FAMILIES)


def family_of(config: PretrainedConfig) -> Family:
    """The entry for an unshifted model's configuration.

    Raises:
        UnsupportedModelError: no entry fits; the sentence says what is supported, or what is in the way.
    """
    model_type = getattr(config, "model_type", None)
    known = ", ".join(supported_architectures())
    if str(model_type).startswith(SHIFTED_PREFIX):
        raise UnsupportedModelError(
            f"A {model_type!r} model already has KV shift; convert a model without it ({known})."
        )
    if getattr(config, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"{model_type!r} uses multi-head latent attention (kv_lora_rank={config.kv_lora_rank}): keys "
            "and values are unfolded from one compressed row, and only that row is cached. A shift would "
            "have to be defined on that row and on the separate rotary key, which nobody has measured. "
            f"Supported: {known}."
        )
    for family in FAMILIES:
        if type(config) is family.config:
            return family
    raise UnsupportedModelError(f"The architecture {model_type!r} is not supported; supported: {known}.")


def check_supported(config: PretrainedConfig) -> None:
    """Refuses a configuration whose model `convert` could not take.

    Raises:
        UnsupportedModelError: with a sentence that says why.
    """
    family_of(config)
