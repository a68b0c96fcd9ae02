"""Checkpoints that are whole or absent, and hold nothing that could run code.

`checkpoints/step-00000100/` holds safetensors and JSON, and a manifest with each file's SHA-256, written
last. It is prepared under another name and renamed, so a folder of that name is complete unless the disk
damaged it afterwards, which the manifest shows; then the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kvshift.files import output_errors, sync_file, sync_folder

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
SCHEDULER = "scheduler.json"
RNG = "rng.safetensors"
RNG_JSON = "rng.json"
RUN = "run.json"
KEPT = 2
_NAME = re.compile(r"step-(\d{8,})")


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Writes a checkpoint under `folder` and deletes those older than the last two.

    Args:
        folder: the run's folder.
        step: steps done.
        fill: writes the files into the folder it is given.

    Raises:
        OutputError: the disk is full; nothing half-written is left.
    """
    parent = folder / FOLDER
    temporary = parent / f".step-{step:08d}.tmp"
    target = parent / f"step-{step:08d}"
    with output_errors(target):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            fill(temporary)
            files = sorted(path for path in temporary.iterdir())
            manifest = {
                "step": step,
                "files": {path.name: {"bytes": path.stat().st_size, "sha256": _hash(path)} for path in files},
            }
            write_json(temporary / MANIFEST, manifest)
            for path in [*files, temporary / MANIFEST]:
                sync_file(path)
            sync_folder(temporary)
            os.rename(temporary, target)
            sync_folder(parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for _, old in _listed(folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path, usable: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """The newest checkpoint that is whole and `usable`; None if there is none. Deletes the unusable ones."""
    parent = folder / FOLDER
    if not parent.is_dir():
        return None
    found = None
    for step, path in _listed(folder):
        if found is None and _whole(path, step) and usable(path):
            found = path
        elif found is None:
            shutil.rmtree(path, ignore_errors=True)
    for leftover in parent.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return found


def delete_checkpoints(folder: Path) -> None:
    """Deletes all checkpoints: the run has ended."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def save_weights(model: nn.Module, path: Path) -> None:
    """The model's parameters and stored buffers, tied ones once."""
    save_file({name: tensor.detach().contiguous() for name, tensor in _weights(model).items()}, path)


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> None:
    """The inverse of `save_weights`, in place, exactly."""
    _copy_into(_weights(model), _read(path), path)


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """The optimizer's tensors, each named `parameter/what`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    save_file(
        {
            f"{names[id(parameter)]}/{key}": value.detach().contiguous()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        },
        path,
    )


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """The inverse of `save_optimizer`. Learning rates are the scheduler's to restore."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in _read(path).items():
        name, what = key.rsplit("/", 1)
        states.setdefault(name, {})[what] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    written = optimizer.state_dict()
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    written["state"] = {
        place: states[names[id(parameter)]]
        for place, parameter in enumerate(ordered)
        if names[id(parameter)] in states
    }
    optimizer.load_state_dict(written)


def save_rng(folder: Path) -> None:
    """The state of every random number generator a model may draw from."""
    numpy_state: Any = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy_state[1].astype(np.int64))}
    if torch.cuda.is_initialized():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / RNG)
    rest = {"python": random.getstate(), "numpy": [numpy_state[0], *numpy_state[2:]]}
    write_json(folder / RNG_JSON, rest)


def load_rng(folder: Path) -> None:
    """The inverse of `save_rng`."""
    tensors = _read(folder / RNG)
    rest = read_json(folder / RNG_JSON)
    version, words, gauss = rest["python"]
    random.setstate((version, tuple(words), gauss))
    kind, position, has_gauss, cached = rest["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def write_json(path: Path, values: dict[str, Any]) -> None:
    """The inverse of `read_json`; numbers come back bit for bit."""
    path.write_text(json.dumps(values, allow_nan=False))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _weights(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def _copy_into(targets: dict[str, Tensor], values: dict[str, Tensor], path: Path) -> None:
    if targets.keys() != values.keys():
        different = sorted(targets.keys() ^ values.keys())[0]
        raise ValueError(f"{path} is not of this model: they differ in {different}.")
    for name, target in targets.items():
        target.copy_(values[name])


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


def _listed(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, the newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in (folder / FOLDER).iterdir())
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _whole(path: Path, step: int) -> bool:
    try:
        manifest = read_json(path / MANIFEST)
        return manifest["step"] == step and all(
            (path / name).stat().st_size == file["bytes"] and _hash(path / name) == file["sha256"]
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
