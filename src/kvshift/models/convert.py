"""How KV shift enters a Hugging Face model: its classes change in place, its weights stay as they are."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models.derived import ShiftedClasses, shifted_classes
from kvshift.models.families import SHIFTED_PREFIX, Family, family_of, supported_architectures
from kvshift.models.model import add_taps
from kvshift.shift import KVShift, KVShiftConfig
from kvshift.shift.config import Init

_WHERE = {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}


def convert(
    model: PreTrainedModel,
    config: KVShiftConfig = KVShiftConfig(),
    *,
    init: Init | None = None,
    generator: torch.Generator | None = None,
) -> PreTrainedModel:
    """Adds KV shift to every attention layer of a causal language model, in place.

    The model's classes become those of `kvshift_<its model_type>`; it gets a configuration of its own with
    `kv_shift` in it, and a `KVShift` in each attention layer. No weight it had changes. Taps are float32
    (paper §1), or what the model was built in where that is wider.

    Args:
        model: a causal language model of a supported family (`supported_architectures()`), on any device
            and of any dtype.
        config: the shift.
        init: how the taps start, in place of `config.init`'s default; see `KVShiftConfig.init`.
        generator: draws the taps where `config.init` draws; None: the global one.

    Returns:
        The same object.

    Raises:
        UsageError: `config` is not a `KVShiftConfig`, or `init` is unknown or contradicts it.
        UnsupportedModelError: the model cannot be converted; nothing was changed.
    """
    if not isinstance(config, KVShiftConfig):
        raise UsageError(f"convert was given {config!r} as its configuration; expected a KVShiftConfig.")
    config = started_as(config, init)
    classes = _check_convertible(model)
    classes.family.check_shift(config)
    old = model.config
    new = shifted_config(old, classes, config)
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = new  # its own: another model may share the old one
    add_taps(model, classes.causal_lm, config)
    for taps in shift_modules(model):
        taps.reset_parameters(generator)
    return model


def from_pretrained(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Loads a model that was converted and saved; `kwargs` as for the library's `from_pretrained`.

    Raises:
        UsageError: there is no model at `path`.
        UnsupportedModelError: the folder holds a model without KV shift, taps that do not fit, or a damaged
            file.
    """
    config = kwargs.pop("config", None)
    if config is None:
        where = {key: value for key, value in kwargs.items() if key in _WHERE}
        config = _read_config(path, where)
    if not str(config.model_type).startswith(SHIFTED_PREFIX):
        raise UnsupportedModelError(
            f"{str(path)!r} holds a {config.model_type!r} model without KV shift. Load it with "
            "AutoModelForCausalLM.from_pretrained and pass it to kvshift.convert."
        )
    return AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)


def _read_config(path: str | Path, where: dict[str, Any]) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, **where)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"No model can be loaded from {str(path)!r}: {reason} Expected a folder that save_pretrained "
            "wrote, with config.json and safetensors files, or such a model on the hub."
        ) from error


def shift_modules(model: nn.Module) -> list[KVShift]:
    """The taps of every attention layer, in layer order; empty for a model without KV shift."""
    return [module for module in model.modules() if isinstance(module, KVShift)]


def is_shifted(model: nn.Module) -> bool:
    """Whether a model has KV shift."""
    return bool(shift_modules(model))


def started_as(config: KVShiftConfig, init: Init | None) -> KVShiftConfig:
    """`config` with its taps starting as `init` says; None leaves it as it is.

    Raises:
        UsageError: `init` is unknown, or `config.init` was set to another start.
    """
    if init is None:
        return config
    if config.init not in (init, KVShiftConfig().init):
        raise UsageError(
            f"init={init!r} contradicts the configuration's init={config.init!r}; give one of the two."
        )
    return dataclasses.replace(config, init=init)


def shifted_config(config: PretrainedConfig, classes: ShiftedClasses, shift: KVShiftConfig) -> Any:
    """A configuration of its own for the shifted classes; `config` stays as it is."""
    new: Any = copy.deepcopy(config)
    new.__class__ = classes.config
    new.__dict__.pop("model_type", None)  # a loaded configuration has its file's, in front of its class's
    new.kv_shift = shift.to_dict()
    return new


def _check_convertible(model: Any) -> ShiftedClasses:
    """The classes a model would get.

    Raises:
        UnsupportedModelError: what is in the way, and what to do.
    """
    known = ", ".join(supported_architectures())
    if isinstance(model, nn.Module) and is_shifted(model):
        raise UnsupportedModelError(
            "This model already has KV shift; it cannot be converted twice. Use it as it is, or load the "
            "model without KV shift to give it another one."
        )
    if getattr(model, "peft_config", None) is not None or _has_adapters(model):
        raise UnsupportedModelError(
            "This model carries PEFT adapters. Convert the model first, then add the adapters, so that the "
            "adapters' part of keys and values is shifted too."
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a Hugging Face model; expected a causal language model of "
            f"{known} before it is compiled or wrapped."
        )
    family = family_of(model.config)
    if type(model) is not family.causal_lm:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be converted; expected {family.causal_lm.__name__} itself."
        )
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise UnsupportedModelError(
            "This model is quantized. Convert the unquantized model; its taps need training before it is "
            "quantized."
        )
    _check_untouched(model, family)
    return shifted_classes(family)


def _has_adapters(model: Any) -> bool:
    """Whether PEFT has put layers of its own into a model, by its front door or by another."""
    return isinstance(model, nn.Module) and any(
        type(module).__module__.split(".")[0] == "peft" for module in model.modules()
    )


def _check_untouched(model: Any, family: Family) -> None:
    """Refuses a model whose weights are not here, or whose attention something else has changed."""
    for name, tensor in model.named_parameters():
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"{name} is on the meta device, without values. Load or build the model on a real one first."
            )
        if type(tensor.data) is not torch.Tensor or not tensor.is_floating_point():
            kind = type(tensor.data).__name__
            raise UnsupportedModelError(
                f"{name} is a {kind} of {tensor.dtype}: the model is sharded or quantized already. Convert "
                "it first; quantized taps could not be trained."
            )
    for name, module in model.named_modules():
        if isinstance(module, family.attentions) and type(module) not in family.attentions:
            raise UnsupportedModelError(
                f"{name} is a {type(module).__name__}, not one of the library's own attention layers; "
                "convert the model before other changes to its attention."
            )
        if isinstance(module, (*family.attentions, family.body)) and "forward" in vars(module):
            raise UnsupportedModelError(
                f"Something has replaced the forward of {name} (device dispatch, kernels or a patch do). "
                "Convert the model first."
            )
