"""Conversion of a checkpoint on disk, without loading the model.

The weights' files are copied as they are, a block at a time, so memory stays the same for any size. What is
new are a small file with the taps, an index that names it, and the configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from kvshift.errors import OutputError, UnsupportedModelError
from kvshift.files import open_to_others, output_errors, sync_file, sync_folder
from kvshift.models.convert import shifted_config
from kvshift.models.derived import ShiftedClasses, shifted_classes
from kvshift.models.families import SHIFTED_PREFIX, family_of
from kvshift.models.folder import CONFIG, INDEX, WEIGHTS, Folder, read_folder
from kvshift.models.skeleton import add_skeleton_taps, skeleton
from kvshift.shift import KVShift, KVShiftConfig

TAPS_FILE = "kv_shift.safetensors"
_BLOCK = 8 << 20
_WEIGHTS_AND_CODE = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".py",
)

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and those to be written."""


@dataclass(frozen=True)
class Converted:
    """What a conversion on disk did."""

    path: Path
    model_type: str
    layers: int
    """Attention layers with taps."""
    taps: int
    """Numbers added to the model."""
    bytes: int
    """Size of all weights, the taps included."""


def convert_folder(
    source: str | Path,
    destination: str | Path,
    config: KVShiftConfig = KVShiftConfig(),
    *,
    generator: torch.Generator | None = None,
    on_progress: Progress | None = None,
) -> Converted:
    """Writes a converted copy of a checkpoint folder; the source stays as it is.

    The same tensors, and the same taps from the same `generator`, as loading the model, `kvshift.convert`
    and `save_pretrained` give. The destination appears only when it is whole.

    Args:
        source: a folder as `save_pretrained` writes it, in safetensors, sharded or not.
        destination: a folder that does not exist yet.
        config: the shift.
        generator: draws the taps where `config.init` draws; None: the global one.

    Raises:
        UsageError: `source` is not a folder with a model.
        UnsupportedModelError: the model cannot be converted, or its files are damaged or contradict its
            configuration; nothing was written.
        OutputError: `destination` exists, or cannot be written.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() or destination.is_symlink():
        raise OutputError(f"{destination} exists already; name a new folder, or remove it first.")
    folder = read_folder(source)
    classes = shifted_classes(family_of(folder.config))
    architecture = _architecture(folder, classes)
    model = _model_of(folder)
    prefix = _check_weights(folder, model)
    modules = add_skeleton_taps(model, config)
    taps = _draw(modules, generator, prefix)
    with output_errors(destination), _whole_or_nothing(destination) as temporary:
        _check_space(folder, destination)
        written = shifted_config(folder.config, classes, config)
        written.architectures = [architecture.__name__]
        written.save_pretrained(temporary)
        _copy_companions(source, temporary)
        _write_weights(folder, taps, temporary, on_progress)
    total = sum(entry.bytes for entry in folder.entries.values()) + sum(map(_size, taps.values()))
    return Converted(
        destination,
        f"{SHIFTED_PREFIX}{classes.family.model_type}",
        len(modules),
        sum(tap.numel() for tap in taps.values()),
        total,
    )


def _model_of(folder: Folder) -> Any:
    """The model the configuration describes, without values."""
    dtype = getattr(folder.config, "dtype", None)
    if not isinstance(dtype, torch.dtype):  # as the library does: then the weights decide
        floating = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
        first = next(iter(folder.entries.values()))
        dtype = floating.get(first.dtype, torch.float32)
    try:
        return skeleton(folder.config, dtype)
    except Exception as error:  # impossible sizes fail in whichever part comes upon them first
        raise UnsupportedModelError(
            f"{folder.path / CONFIG} describes no model that can be built: {error}"
        ) from None


def _check_weights(folder: Folder, model: Any) -> str:
    """Compares the files' headers with the configuration's model.

    Returns:
        What the files' names lack in front: empty, or the base model's place in a checkpoint saved from it.
    """
    state = model.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if tapped := sorted(name for name in folder.entries if ".kv_shift." in name):
        raise UnsupportedModelError(
            f"{folder.path} holds taps already ({tapped[0]}); it is converted. Convert the checkpoint it was "
            "made from."
        )
    attention = _attention_weights(model)
    prefix = f"{model.base_model_prefix}."
    if any(name in folder.entries for name in attention):
        prefix = ""
    stored = {prefix + name: entry for name, entry in folder.entries.items()}
    where = folder.path / CONFIG
    for name, entry in stored.items():
        if name in expected and entry.shape != expected[name]:
            raise UnsupportedModelError(
                f"{name} in {entry.file} has shape {entry.shape}, and by {where} it should be "
                f"{expected[name]}. The configuration and the weights are not of the same model; download or "
                "save both again."
            )
        if name in state and state[name].is_floating_point() and not entry.is_floating_point:
            raise UnsupportedModelError(
                f"{name} in {entry.file} holds {entry.dtype}, and the model needs floating-point numbers "
                "there. The file is damaged or quantized; download it again, or take the unquantized "
                "checkpoint."
            )
    if (lacking := next(_missing(model, stored, attention, prefix), None)) is not None:
        raise UnsupportedModelError(
            f"{where} needs {lacking}, and no file in {folder.path} has it. Either they are not of the same "
            "model (download or save both again), or the names are an older layout's: then load it with "
            "AutoModelForCausalLM, pass it to kvshift.convert and save it."
        )
    numberless = {_without_numbers(name) for name in attention}
    for name in stored:
        if name not in expected and _without_numbers(name) in numberless:
            raise UnsupportedModelError(
                f"{folder.path} holds {name}, a layer that {where} does not have. They are not of the same "
                "model; download or save both again."
            )
    return prefix


def _missing(model: Any, stored: Container[str], attention: list[str], prefix: str) -> Iterator[str]:
    """Weights that the model has and the files do not; only those of the attention layers where a family's
    files name others in their own way."""
    known_as = (model.config.model_type, type(model).__name__, type(model.base_model).__name__)
    if any(get_checkpoint_conversion_mapping(name) is not None for name in known_as):
        yield from (name for name in attention if name not in stored)
        return
    names: dict[int, list[str]] = {}  # of each parameter; tied ones have several, and one is enough
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for aliases in names.values():
        if aliases[0].startswith(prefix) and not any(name in stored for name in aliases):
            yield aliases[0]


def _attention_weights(model: Any) -> list[str]:
    """Names of the parameters of every layer that will get taps."""
    attentions = tuple(family_of(model.config).attentions)
    return [
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, attentions)
        for name, _ in module.named_parameters()
    ]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def _architecture(folder: Folder, classes: ShiftedClasses) -> type:
    """The class the converted folder names."""
    named = (getattr(folder.config, "architectures", None) or [None])[0]
    known = {
        classes.family.causal_lm.__name__: classes.causal_lm,
        classes.family.base_model.__name__: classes.base_model,
    }
    if named is not None and named not in known:
        raise UnsupportedModelError(
            f"{folder.path} holds a {named}; expected a {classes.family.causal_lm.__name__}."
        )
    return known.get(named, classes.causal_lm)


def _draw(modules: dict[str, KVShift], generator: torch.Generator | None, prefix: str) -> dict[str, Tensor]:
    """The taps by their names in the file, drawn in the same order as `convert` draws them."""
    drawn: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.to_empty(device="cpu").reset_parameters(generator)
        for tap, values in module.named_parameters():
            drawn[f"{name.removeprefix(prefix)}.{tap}"] = values.detach().contiguous()
    return drawn


def _copy_companions(source: Path, temporary: Path) -> None:
    """Tokenizer, generation settings, model card: everything but weights, code and the configuration."""
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, temporary / path.name)
        elif path.is_file() and not path.name.startswith("."):
            of_weights = path.name.endswith((*_WEIGHTS_AND_CODE, ".index.json"))
            if not of_weights and path.name != CONFIG:
                shutil.copyfile(path, temporary / path.name)


def _write_weights(
    folder: Folder, taps: dict[str, Tensor], temporary: Path, on_progress: Progress | None
) -> None:
    total = sum((folder.path / file).stat().st_size for file in folder.files)
    done = 0
    for file in folder.files:
        for copied in _copy(folder.path / file, temporary / _name(file)):
            done += copied
            if on_progress is not None:
                on_progress(done, total)
    save_file(taps, temporary / TAPS_FILE, metadata={"format": "pt"})
    open_to_others(temporary / TAPS_FILE)
    weight_map = {name: _name(entry.file) for name, entry in folder.entries.items()}
    metadata = {
        "total_parameters": sum(entry.elements for entry in folder.entries.values())
        + sum(tap.numel() for tap in taps.values()),
        **folder.index,
        "total_size": sum(entry.bytes for entry in folder.entries.values()) + sum(map(_size, taps.values())),
    }
    index = {
        "metadata": metadata,
        "weight_map": dict(sorted({**weight_map, **dict.fromkeys(taps, TAPS_FILE)}.items())),
    }
    (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _name(file: str) -> str:
    """A file's name in the copy. `model.safetensors` alone would be all that loaders look at."""
    return "model-00001-of-00001.safetensors" if file == WEIGHTS else file


def _copy(source: Path, target: Path) -> Iterator[int]:
    """Copies a file to the disk; yields the bytes of each block."""
    with open(source, "rb", buffering=0) as reading, open(target, "wb", buffering=0) as writing:
        block = memoryview(bytearray(_BLOCK))
        while count := reading.readinto(block):
            written = 0
            while written < count:
                written += writing.write(block[written:count])
            yield count
        os.fsync(writing.fileno())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_space(folder: Folder, destination: Path) -> None:
    needed = sum((folder.path / file).stat().st_size for file in folder.files)
    free = shutil.disk_usage(destination.absolute().parent).free
    if needed > free:
        raise OutputError(
            f"The copy needs {needed / 1e9:.2f} GB, and the disk of {destination} has {free / 1e9:.2f} GB "
            "free."
        )


@contextlib.contextmanager
def _whole_or_nothing(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that becomes it at the end, or is removed."""
    parent = destination.absolute().parent
    if not parent.is_dir():
        raise OutputError(
            f"{parent} is not a folder; make it first, or name another place for {destination}."
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=parent))
    try:
        open_to_others(temporary)
        yield temporary
        for path in temporary.iterdir():
            if path.is_file():
                sync_file(path)
        sync_folder(temporary)
        if destination.exists() or destination.is_symlink():
            raise OutputError(f"{destination} appeared while it was being written; nothing was replaced.")
        os.rename(temporary, destination)
        sync_folder(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
