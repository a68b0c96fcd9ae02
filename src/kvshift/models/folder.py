"""A checkpoint folder read by its headers alone: which tensors lie where, and whether it is what it says."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models.families import SHIFTED_PREFIX, family_of

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BOOL": 1, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor as a safetensors header names it."""

    file: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_floating_point(self) -> bool:
        return self.dtype.startswith(("F", "BF"))

    @property
    def bytes(self) -> int:
        return self.elements * _BYTES.get(self.dtype, 1 if self.dtype.startswith("F8") else 2)


@dataclass(frozen=True)
class Folder:
    """A checkpoint of an unshifted model in safetensors."""

    path: Path
    config: PretrainedConfig
    files: tuple[str, ...]
    """The safetensors files, in the order of their names."""

    entries: dict[str, Entry]
    index: dict[str, Any]
    """What the index's `metadata` says; empty without an index."""


def read_folder(path: Path) -> Folder:
    """Reads a checkpoint's configuration and the headers of its files; no tensor is read.

    Raises:
        UsageError: the path is not a folder with a model in it.
        UnsupportedModelError: the model cannot have KV shift, or a file of it is damaged, missing or not
            safetensors; the sentence says what to do.
    """
    values = _read_config(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a configuration's own checks raise whatever they come upon
        raise UnsupportedModelError(
            f"{path / CONFIG} of model_type {values.get('model_type')!r} is not one that the installed "
            f"transformers reads: {error}"
        ) from None
    family_of(config)
    files, weight_map, metadata = _files(path)
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _header(path / file, file).items():
            if name in entries:
                raise UnsupportedModelError(
                    f"{name} is in {entries[name].file} and again in {file} of {path}."
                )
            entries[name] = entry
    if weight_map is not None:
        _check_index(path, weight_map, entries)
    return Folder(path, config, files, entries, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        UnsupportedModelError: it is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise UnsupportedModelError(f"{path} holds a {type(values).__name__}; expected a JSON object.")
    return values


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration's values, if nothing in the folder is in the way of a conversion."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}; expected a folder with a model: config.json and safetensors files.")
    if (path / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{path} holds a PEFT adapter. Convert the base model, then train the adapter on the converted "
            "one; or merge the adapter first (merge_and_unload) and convert the result."
        )
    if not (path / CONFIG).is_file():
        raise UsageError(f"{path} has no config.json; expected a folder as save_pretrained writes it.")
    values = read_json(path / CONFIG)
    model_type = values.get("model_type")
    if str(model_type).startswith(SHIFTED_PREFIX) or "kv_shift" in values:
        raise UnsupportedModelError(
            f"{path} ({model_type}) already has KV shift; it cannot be converted twice. Load it with "
            "kvshift.from_pretrained, or convert the checkpoint that it was made from."
        )
    check_plain(values, str(path))
    return values


def check_plain(values: dict[str, Any], what: str) -> None:
    """Refuses what cannot be converted whatever its architecture.

    Args:
        values: a configuration's.
        what: to be named.

    Raises:
        UnsupportedModelError: it brings code of its own, or is quantized.
    """
    if values.get("auto_map"):
        raise UnsupportedModelError(
            f"{what} brings its own model code (auto_map in config.json), and KV shift cannot enter code it "
            "does not know. If transformers itself has this architecture, remove auto_map from that file."
        )
    if method := values.get("quantization_config"):
        method = method.get("quant_method", "quantized") if isinstance(method, dict) else "quantized"
        raise UnsupportedModelError(
            f"{what} is quantized ({method}). Convert the unquantized checkpoint; its taps need training "
            "before it is quantized."
        )


def _files(path: Path) -> tuple[tuple[str, ...], dict[str, str] | None, dict[str, Any]]:
    """The weights' files, found as the library finds them: one file first, else an index."""
    if (path / WEIGHTS).is_file():
        return (WEIGHTS,), None, {}
    if not (path / INDEX).is_file():
        others = sorted(
            file.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in path.glob(kind)
        )
        if others:
            raise UnsupportedModelError(
                f"{path} has its weights in {others[0]}; only safetensors are read, which cannot run code. "
                "Load the model with AutoModelForCausalLM and save it again: save_pretrained writes "
                "safetensors."
            )
        raise UsageError(f"{path} has no weights: neither {WEIGHTS} nor {INDEX}.")
    index = read_json(path / INDEX)
    weight_map, metadata = index.get("weight_map"), index.get("metadata") or {}
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise UnsupportedModelError(f"{path / INDEX} has no weight_map of tensor names to files.")
    files = tuple(sorted(set(map(str, weight_map.values()))))
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UnsupportedModelError(
                f"{path / INDEX} points at {file!r}; expected names of .safetensors files beside it."
            )
        if not (path / file).is_file():
            raise UnsupportedModelError(
                f"{path / INDEX} names {file}, which is not there. Download it again."
            )
    return files, weight_map, metadata


def _header(path: Path, file: str) -> dict[str, Entry]:
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary
            return {
                name: Entry(file, tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{path} is damaged or no safetensors file ({error}). Download or save it again."
        ) from None


def _check_index(path: Path, weight_map: dict[str, str], entries: dict[str, Entry]) -> None:
    placed = {name: entry.file for name, entry in entries.items()}
    if placed != weight_map:
        name = sorted(placed.items() ^ weight_map.items())[0][0]
        raise UnsupportedModelError(
            f"{path / INDEX} says {name} is in {weight_map.get(name, 'no file')}, and by the files' headers "
            f"it is in {placed.get(name, 'none')}. Download or save it again."
        )
