"""The shifted classes of every family, made from its entry and made known to the Hugging Face library.

`KVShiftLlamaConfig`, `KVShiftLlamaModel`, `KVShiftLlamaForCausalLM` and `KVShiftLlamaAttention`, and the same
for each other family. Their `model_type` is `kvshift_llama`, so that no program that does not know KV shift
loads such a checkpoint as a plain Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kvshift.models.attention import ShiftedAttention
from kvshift.models.carrier import CarryingBase, CarryingCausalLM, CarryingLayer
from kvshift.models.config import ShiftedConfig
from kvshift.models.families import FAMILIES, SHIFTED_PREFIX, Family
from kvshift.models.generation import ShiftedGeneration
from kvshift.models.model import ShiftedBase, ShiftedModel


@dataclass(frozen=True)
class ShiftedClasses:
    """One family's classes with KV shift."""

    family: Family
    config: type
    base_model: type
    causal_lm: type


def shifted_classes(family: Family) -> ShiftedClasses:
    """The classes with KV shift for a family's entry."""
    return _SHIFTED[family.model_type]


def _derive(family: Family) -> ShiftedClasses:
    def derive(suffix: str, *bases: type, **members: Any) -> type:
        name = f"KVShift{family.name}{suffix}"
        made = type(
            name, bases, {"__module__": __name__, "__doc__": f"{family.name} with KV shift.", **members}
        )
        globals()[name] = made  # found by its name when pickled, as worker processes do
        return made

    config = derive(
        "Config",
        ShiftedConfig,
        family.config,
        model_type=SHIFTED_PREFIX + family.model_type,
        kv_shift=None,
        __annotations__={"kv_shift": "dict | None"},
    )
    parts = {
        attention: derive(
            _suffix(family, attention),
            ShiftedAttention,
            attention,
            family=family,
            unshifted=attention,
            norm_class=family.norm,  # here and not when it is needed, which a compiler would have to trace
        )
        for attention in family.attentions
    }
    carrying: tuple[type, ...] = ()
    if family.layer is not None:
        carrying = (CarryingBase,)
        parts[family.layer] = derive(_suffix(family, family.layer), CarryingLayer, family.layer)
    shared = {"config_class": config, "family": family, "part_classes": parts}
    parts[family.body] = derive(_suffix(family, family.body), ShiftedBase, *carrying, family.body, **shared)
    base = parts.get(family.base_model)
    if base is None:  # it hands everything to its body
        base = derive(_suffix(family, family.base_model), ShiftedModel, family.base_model, **shared)
    causal_lm = derive(
        "ForCausalLM",
        *((CarryingCausalLM,) if carrying else ()),
        ShiftedGeneration,
        ShiftedModel,
        family.causal_lm,
        GenerationMixin,  # named once more: the library looks for it among the direct bases
        **shared,
    )
    return ShiftedClasses(family, config, base, causal_lm)


def _suffix(family: Family, part: type) -> str:
    return part.__name__.removeprefix(family.name)


def _register(classes: ShiftedClasses) -> None:
    model_type = classes.config.model_type  # type: ignore[attr-defined]
    AutoConfig.register(model_type, classes.config, exist_ok=True)
    AutoModel.register(classes.config, classes.base_model, exist_ok=True)
    AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)
    # The Trainer and the pipelines look causal language models up by their classes' names.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] = classes.causal_lm.__name__
    _register_renamed_weights(classes)


def _register_renamed_weights(classes: ShiftedClasses) -> None:
    """How a family's files name its weights, where not as its modules do: experts one by one, mostly."""
    family = classes.family
    for plain, shifted in (
        (family.model_type, classes.config.model_type),  # type: ignore[attr-defined]
        (family.causal_lm.__name__, classes.causal_lm.__name__),
        (family.base_model.__name__, classes.base_model.__name__),
    ):
        if (mapping := get_checkpoint_conversion_mapping(plain)) is not None:
            register_checkpoint_conversion_mapping(shifted, mapping, overwrite=True)


_SHIFTED = {family.model_type: _derive(family) for family in FAMILIES}
for _classes in _SHIFTED.values():
    _register(_classes)
