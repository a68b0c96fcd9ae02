"""A model's taps alone, in one small file that applies to the base model they were trained on.

The file is safetensors: the taps under the model's own names, and in its metadata, under `kvshift`, a JSON
object with the format, the shift's configuration and the shape of the model it fits. Nothing else of the
model is in it: where other weights were trained too, save the whole model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.files import open_to_others, output_errors, sync_file
from kvshift.models.convert import convert, is_shifted, shift_modules
from kvshift.models.families import family_of, unshifted_type
from kvshift.models.skeleton import add_skeleton_taps, skeleton
from kvshift.shift import KVShift, KVShiftConfig

FORMAT = 1
_METADATA = "kvshift"
_SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class Adapter:
    """What an adapter file holds."""

    model_type: str
    """Of the base model, without KV shift."""
    shape: dict[str, int]
    shift: KVShiftConfig
    taps: dict[str, Tensor]


def save_adapter(model: nn.Module, path: str | Path) -> None:
    """Writes a converted model's taps and configuration to one safetensors file.

    Args:
        model: a converted model; one wrapped by PEFT is fine.
        path: of the file, replaced if it is there.

    Raises:
        UsageError: the model has no KV shift.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    model = _inner(model)
    if not isinstance(model, PreTrainedModel) or not is_shifted(model):
        raise UsageError(f"{type(model).__name__} has no KV shift; convert it first (kvshift.convert).")
    if copies := [name for name in _taps(model) if not name.endswith("kv_shift")]:
        raise UsageError(
            f"PEFT keeps a trained copy of the taps beside them ({copies[0]}); merge first: "
            "merge_and_unload() gives the model to save."
        )
    shift = shift_modules(model)[0].config
    tensors = {
        f"{name}.{tap}": parameter.detach().cpu().contiguous()
        for name, taps in _taps(model).items()
        for tap, parameter in taps.named_parameters()
    }
    if missing := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise UsageError(f"{missing[0]} is on the meta device, without values; load the model first.")
    about = {
        "format": FORMAT,
        "model_type": unshifted_type(model.config),
        "shape": _shape(model.config),
        "shift": shift.to_dict(),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    with output_errors(path):
        try:
            save_file(tensors, temporary, metadata={"format": "pt", _METADATA: json.dumps(about)})
            open_to_others(temporary)
            sync_file(temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def load_adapter(model: Any, path: str | Path) -> Any:
    """Converts a base model, in place, and gives it the taps of an adapter file.

    A model that has KV shift already gets the file's taps in place of its own, if they are of the same kind.

    Args:
        model: the model the adapter was trained on, or another of the same shape.
        path: what `save_adapter` wrote.

    Returns:
        The same object.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: the file is damaged or no adapter of ours, or it does not fit the model;
            nothing was changed.
    """
    adapter = read_adapter(path)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a Hugging Face model; load the adapter before it is wrapped."
        )
    _check_fits(model, adapter, path)
    if not is_shifted(model):
        convert(model, adapter.shift, generator=torch.Generator())  # a draw of its own, overwritten at once
    with torch.no_grad():
        for name, taps in _taps(model).items():
            for tap, parameter in taps.named_parameters():
                parameter.copy_(adapter.taps[f"{name}.{tap}"])
    return model


def read_adapter(path: str | Path) -> Adapter:
    """An adapter file, checked against itself.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: it is damaged, no adapter of ours, or of a later format.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {what}; expected the file that kvshift.save_adapter wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            taps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{path} is damaged or no safetensors file ({error}). Save or download it again."
        ) from None
    if _METADATA not in metadata:
        kind = "a LoRA adapter" if any("lora_" in name for name in taps) else "a file"
        raise UnsupportedModelError(f"{path} is {kind} without KV shift; expected what save_adapter wrote.")
    try:
        about = json.loads(metadata[_METADATA])
        version = about["format"]
        if version != FORMAT:
            raise UnsupportedModelError(
                f"{path} has format {version!r}; this kvshift reads {FORMAT}. Upgrade kvshift."
            )
        adapter = Adapter(
            str(about["model_type"]), dict(about["shape"]), KVShiftConfig.from_dict(about["shift"]), taps
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedModelError(
            f"{path} is damaged: its description cannot be read ({error}). Save or download it again."
        ) from None
    for name, tensor in taps.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise UnsupportedModelError(f"{path} is damaged: {name} is not made of finite numbers.")
    return adapter


def _check_fits(model: Any, adapter: Adapter, path: str | Path) -> None:
    shifted = is_shifted(model)
    model_type = unshifted_type(model.config)
    if not shifted:
        family_of(model.config)
    if adapter.model_type != model_type:
        raise UnsupportedModelError(
            f"{path} is of a {adapter.model_type!r} model, and this one is {model_type!r}. Load the model it "
            "was trained on."
        )
    here = _shape(model.config)
    for name in _SHAPE:
        if adapter.shape.get(name) != here.get(name):
            raise UnsupportedModelError(
                f"{path} is of a model with {name}={adapter.shape.get(name)}, and this one has "
                f"{here.get(name)}. Load the model it was trained on."
            )
    if shifted:
        _check_same_kind(shift_modules(model)[0].config, adapter.shift, path)
        expected = _taps(model)
    else:
        expected = add_skeleton_taps(skeleton(model.config, torch.float32), adapter.shift)
    shapes = {
        f"{name}.{tap}": tuple(parameter.shape)
        for name, taps in expected.items()
        for tap, parameter in taps.named_parameters()
    }
    found = {name: tuple(tensor.shape) for name, tensor in adapter.taps.items()}
    if shapes != found:
        name = sorted(dict(shapes.items() ^ found.items()))[0]
        raise UnsupportedModelError(
            f"{path} does not fit this model: it holds {name} of shape {found.get(name, 'none')}, and "
            f"{shapes.get(name, 'none')} is needed."
        )


def _check_same_kind(here: KVShiftConfig, there: KVShiftConfig, path: str | Path) -> None:
    """How taps start and learn does not matter once they have values."""
    same = dataclasses.replace(there, init=here.init, lr_multiplier=here.lr_multiplier)
    if same != here:
        raise UnsupportedModelError(
            f"{path} holds taps of {there}, and this model has {here}. Load the unshifted model first."
        )


def _inner(model: nn.Module) -> nn.Module:
    """The model inside what PEFT or torch.compile put around it."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, PreTrainedModel) and callable(unwrap := getattr(model, "get_base_model", None)):
        model = unwrap()
    return model


def _taps(model: nn.Module) -> dict[str, KVShift]:
    return {name: module for name, module in model.named_modules() if isinstance(module, KVShift)}


def _shape(config: PretrainedConfig) -> dict[str, int]:
    return {name: value for name in _SHAPE if isinstance(value := getattr(config, name, None), int)}
