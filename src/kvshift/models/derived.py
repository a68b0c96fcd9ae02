"""The shifted classes of every family, made from its entry and made known to the Hugging Face library.

`KVShiftLlamaConfig`, `KVShiftLlamaModel`, `KVShiftLlamaForCausalLM` and `KVShiftLlamaAttention`, and the same
for each other family. Their `model_type` is `kvshift_llama`, so that no program that does not know KV shift
loads such a checkpoint as a plain Llama.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
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

_PREFIX = "KVShift"
_SHIFTED: dict[str, ShiftedClasses] = {}
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class ShiftedClasses:
    """One family's classes with KV shift."""

    family: Family
    config: type
    base_model: type
    causal_lm: type


def shifted_classes(family: Family) -> ShiftedClasses:
    """The classes with KV shift for a family's entry, made when they are first asked for.

    The library's code of one family may bring along libraries that use the GPU at once, as linear attention's
    do, and no other family's models shall have to wait for it.
    """
    with _ONE_AT_A_TIME:
        if family.model_type not in _SHIFTED:
            classes = _derive_models(family)
            _register_models(classes)
            _SHIFTED[family.model_type] = classes
        return _SHIFTED[family.model_type]


def __getattr__(name: str) -> Any:
    """A class by its name that has not been made yet."""
    for family in FAMILIES:
        if name.startswith(_PREFIX + family.name) and family.model_type not in _SHIFTED:
            shifted_classes(family)
            if name in globals():
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _derive(family: Family, suffix: str, /, *bases: type, **members: Any) -> type:
    name = _PREFIX + family.name + suffix
    made = type(name, bases, {"__module__": __name__, "__doc__": f"{family.name} with KV shift.", **members})
    globals()[name] = made  # found by its name when pickled, as worker processes do
    return made


def _derive_config(family: Family) -> type:
    return _derive(
        family,
        "Config",
        ShiftedConfig,
        family.config,
        model_type=SHIFTED_PREFIX + family.model_type,
        kv_shift=None,
        make_models=staticmethod(partial(shifted_classes, family)),
        __annotations__={"kv_shift": "dict | None"},
    )


def _derive_models(family: Family) -> ShiftedClasses:
    config, derive = _CONFIGS[family.model_type], partial(_derive, family)
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


def _register_config(family: Family, config: type) -> None:
    model_type = SHIFTED_PREFIX + family.model_type
    AutoConfig.register(model_type, config, exist_ok=True)
    # The Trainer and the pipelines look causal language models up by their classes' names.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] = f"{_PREFIX}{family.name}ForCausalLM"


def _register_models(classes: ShiftedClasses) -> None:
    AutoModel.register(classes.config, classes.base_model, exist_ok=True)
    AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)
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


_CONFIGS = {family.model_type: _derive_config(family) for family in FAMILIES}
for _family in FAMILIES:
    _register_config(_family, _CONFIGS[_family.model_type])
