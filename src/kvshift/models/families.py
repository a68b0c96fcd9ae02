"""The supported model families, one entry each.

An entry says what the library calls a family's classes and how its attention projects. Everything else (the
shifted classes, their registration, starts, cache, conversion, saving) follows from it.
docs/guides/families.md tells how to add one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from kvshift.errors import UnsupportedModelError
from kvshift.models.layout import Fused, Layout, Rotary, Separate
from kvshift.shift import KVShiftConfig

SHIFTED_PREFIX = "kvshift_"
_THREE = Separate()


@dataclass(frozen=True)
class Family:
    """One architecture as the Hugging Face library writes it."""

    name: str
    """How its classes' names begin: `Llama` for `LlamaForCausalLM`, and for `KVShiftLlamaForCausalLM`."""

    module: str
    """Its folder in `transformers.models`."""

    layout: Layout = _THREE
    """How its attention projects."""

    rotary: Rotary | None = None
    """How its attention goes on, where one kernel can do that; None: its own forward does."""

    config_name: str = "{}Config"
    causal_lm_name: str = "{}ForCausalLM"
    base_name: str = "{}Model"
    body_name: str | None = None
    """The class that runs the layers, where that is not the base model."""

    attention_names: tuple[str, ...] = ("{}Attention",)
    head_dim: Callable[[Any], int] = lambda attention: attention.head_dim

    carrier: str | None = None
    """The decoder layer's class, where keywords given to the model do not reach its attention."""

    packs: bool = True
    """Whether the library keeps packed documents apart, in every layer of every version we admit."""

    chunks: bool = True
    """Whether several tokens at once can follow cached ones."""

    refused: Callable[[Any], str | None] = lambda config: None
    """What in a configuration is in the way, as a half-sentence; None: nothing."""

    def check_shift(self, shift: KVShiftConfig) -> None:
        """Raises UnsupportedModelError if the family cannot have this shift."""
        if shift.shift_queries and self.layout.gated:
            raise UnsupportedModelError(
                f"shift_queries=True, but {self.model_type!r} projects queries and a gate together, and only "
                "queries could be shifted. Leave shift_queries out."
            )

    @functools.cached_property
    def _library(self) -> Any:
        return importlib.import_module(f"transformers.models.{self.module}.modeling_{self.module}")

    def _class(self, name: str) -> Any:
        return getattr(self._library, name.format(self.name))

    @functools.cached_property
    def causal_lm(self) -> Any:
        return self._class(self.causal_lm_name)

    @functools.cached_property
    def base_model(self) -> Any:
        return self._class(self.base_name)

    @functools.cached_property
    def body(self) -> Any:
        """The class that every forward passes through and that runs the layers."""
        return self._class(self.body_name or self.base_name)

    @functools.cached_property
    def attentions(self) -> tuple[Any, ...]:
        return tuple(
            self._class(name)
            for name in self.attention_names
            if hasattr(self._library, name.format(self.name))
        )

    @property
    def norm(self) -> Any:
        """The class of the heads' norms that `rotary` names; None: there are none."""
        return self._class(self.rotary.norm) if self.rotary is not None and self.rotary.norm else None

    @property
    def eager_attention(self) -> Any:
        """What attends where the library knows no faster function."""
        return self._library.eager_attention_forward

    @functools.cached_property
    def layer(self) -> Any:
        return self._class(self.carrier) if self.carrier else None

    @functools.cached_property
    def config(self) -> Any:
        """In a module of its own: the models' code is imported for a model of the family only."""
        module = importlib.import_module(f"transformers.models.{self.module}.configuration_{self.module}")
        return getattr(module, self.config_name.format(self.name))

    @property
    def model_type(self) -> str:
        """The library's name of the unshifted architecture, as `config.json` has it."""
        return str(self.config.model_type)


def _falcon_kv_heads(attention: Any) -> int:
    if attention.new_decoder_architecture:
        return int(attention.num_kv_heads)
    return 1 if attention.multi_query else int(attention.num_heads)


_PLAIN = Rotary()
_SLIDING = Rotary(keywords=lambda a: {"sliding_window": a.sliding_window})
_ALL_SLIDING = Rotary(keywords=lambda a: {"sliding_window": getattr(a.config, "sliding_window", None)})
_NORMED = dataclasses.replace(_SLIDING, norm="{}RMSNorm")

FAMILIES = (
    Family("Cohere", "cohere", rotary=Rotary(interleaved=True, applies=lambda a: not a.use_qk_norm)),
    Family(
        "Falcon",
        "falcon",
        Fused("query_key_value", lambda a: a.num_heads, _falcon_kv_heads, grouped=True),
        attention_names=("{}Attention", "{}FlashAttention2"),
        carrier="{}DecoderLayer",
        packs=False,
    ),
    Family("FalconH1", "falcon_h1", packs=False),
    Family("Gemma2", "gemma2"),
    Family(
        "Gemma3",
        "gemma3",
        config_name="{}TextConfig",
        base_name="{}TextModel",
        rotary=dataclasses.replace(_NORMED, unit_offset=True),
    ),
    Family(
        "GPT2",
        "gpt2",
        Fused("c_attn", lambda a: a.num_heads, lambda a: a.num_heads),
        causal_lm_name="{}LMHeadModel",
        refused=lambda config: "it attends to an encoder" if config.add_cross_attention else None,
    ),
    Family(
        "GPTNeoX",
        "gpt_neox",
        Fused(
            "query_key_value",
            lambda a: a.config.num_attention_heads,
            lambda a: a.config.num_attention_heads,
            grouped=True,
        ),
        head_dim=lambda attention: attention.head_size,
    ),
    Family("GptOss", "gpt_oss", packs=False),
    Family("Granite", "granite", rotary=_PLAIN),
    Family("Jamba", "jamba", packs=False, chunks=False),
    Family("Llama", "llama", rotary=_PLAIN),
    Family(
        "Llama4",
        "llama4",
        config_name="{}TextConfig",
        base_name="{}TextModel",
        attention_names=("{}TextAttention",),
        packs=False,
    ),
    Family("Mistral", "mistral", rotary=_ALL_SLIDING),
    Family("Mixtral", "mixtral", rotary=_ALL_SLIDING),
    Family("OPT", "opt", body_name="{}Decoder", packs=False),
    Family("Olmo2", "olmo2"),
    Family("Olmo3", "olmo3"),
    Family("Phi", "phi"),
    Family(
        "Phi3",
        "phi3",
        Fused("qkv_proj", lambda a: a.config.num_attention_heads, lambda a: a.num_key_value_heads),
        rotary=_ALL_SLIDING,
    ),
    Family("Qwen2", "qwen2", rotary=_SLIDING),
    Family("Qwen3", "qwen3", rotary=_NORMED),
    Family("Qwen3Moe", "qwen3_moe", rotary=_NORMED),
    Family("Qwen3Next", "qwen3_next", Separate(gated=True), packs=False),
    Family("SmolLM3", "smollm3", rotary=dataclasses.replace(_SLIDING, applies=lambda a: bool(a.use_rope))),
    Family("StableLm", "stablelm", carrier="{}DecoderLayer"),
    Family("Starcoder2", "starcoder2"),
)


def supported_architectures() -> list[str]:
    """The `model_type` of every architecture that `convert` takes, sorted."""
    return sorted(family.model_type for family in FAMILIES)


def unshifted_type(config: PretrainedConfig) -> str:
    """The `model_type` of a configuration's architecture, with KV shift or without."""
    return str(config.model_type).removeprefix(SHIFTED_PREFIX)


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
            if reason := family.refused(config):
                raise UnsupportedModelError(f"This {model_type!r} model cannot be shifted: {reason}.")
            return family
    raise UnsupportedModelError(
        f"The architecture {model_type!r} is not supported: {_why(config)}. Supported: {known}."
    )


def _why(config: PretrainedConfig) -> str:
    """Why an architecture has no entry, or what would be needed for one."""
    if reason := _WITHOUT_ENTRY.get(getattr(config, "model_type", None) or ""):
        return reason
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder–decoder, whose decoder reads keys that have no order in time"
    text: Any = getattr(config, "text_config", None)
    if isinstance(text, PretrainedConfig):
        known = "" if text.model_type in supported_architectures() else ", which is not supported either"
        return (
            "it joins a language model with others. Convert the language model alone, whose configuration is "
            f"text_config ({text.model_type!r}{known})"
        )
    return "nobody has written its entry yet, and docs/guides/families.md tells how to"


_WITHOUT_ENTRY = {
    "gemma3n_text": "its later layers read the keys and values of earlier ones, and the shift would have to "
    "be placed where those are projected",
}
"""What needs more than an entry."""


def check_supported(config: PretrainedConfig) -> None:
    """Refuses a configuration whose model `convert` could not take.

    Raises:
        UnsupportedModelError: with a sentence that says why.
    """
    family_of(config)
