"""Finding and loading a model for inspection: folders on this machine, or the local Hugging Face cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kvshift.errors import KVShiftError, UnsupportedModelError, UsageError

_CONFIG = "config.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_model(given: str) -> str:
    """The folder to load for what the user gave: a folder, a run's folder, or a name in the local cache.

    A name becomes its folder in the cache here: given a name, the library asks the network for adapters even
    with `local_files_only`.

    Raises:
        UsageError: there is no model, with what is there instead and what to do.
    """
    path = Path(given).expanduser()
    if not path.exists():
        if _HUB_NAME.fullmatch(given):
            return _cached(given)
        raise UsageError(f"{given} does not exist; expected a model's folder.")
    if not path.is_dir():
        raise UsageError(f"{given} is a file; expected a model's folder, with config.json and safetensors.")
    if (path / "adapter_config.json").is_file():  # the library would load the model that it names
        raise UsageError(f"{given} holds an adapter; merge it into its model and save that.")
    if (path / _CONFIG).is_file():
        return str(path)
    if (path / "final" / _CONFIG).is_file():
        return str(path / "final")
    if (path / "recipe.json").is_file():
        raise UsageError(
            f"{given} is a run that has not finished, so its model is not there yet. Finish it: "
            f"kvshift train {path / 'recipe.json'} {path}"
        )
    runs = sorted(folder.parent.name for folder in path.glob("runs/*/final") if folder.is_dir())
    if runs:
        shown = ", ".join(runs[:6]) + (", …" if len(runs) > 6 else "")
        raise UsageError(
            f"{given} is a pilot with {len(runs)} finished runs; name one, such as "
            f"{path / 'runs' / runs[-1]} (there are {shown})."
        )
    raise UsageError(f"{given} has no config.json; expected a model's folder, as save_pretrained writes it.")


def _cached(name: str) -> str:
    try:
        return snapshot_download(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"{name} is neither a folder nor in the local Hugging Face cache, and no network is used here. "
            f"Check the path, or download it first: hf download {name}"
        ) from error


def load_config(given: str) -> PretrainedConfig:
    """A model's configuration: from a config.json, a model's folder or the local cache, without weights.

    Raises:
        UsageError: there is none, or it cannot be read.
        UnsupportedModelError: it needs code of its own, or the installed transformers does not know it.
    """
    path = Path(given).expanduser()
    found = str(path) if path.is_file() else find_model(given)
    try:
        return AutoConfig.from_pretrained(found, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # configurations validate themselves with errors of huggingface_hub's own
        raise _explained(given, error) from error


def load_model(given: str) -> PreTrainedModel:
    """Loads a causal language model, shifted or not, in its own dtype, without ever using the network.

    Raises:
        UsageError: no model is there, or its files are damaged or incomplete.
        UnsupportedModelError: it needs code of its own, is quantized, or is no causal language model.
    """
    found = find_model(given)
    only_here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = load_config(given)
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{given} is quantized; inspect the unquantized model.")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            found, config=config, dtype="auto", use_safetensors=True, output_loading_info=True, **only_here
        )
    except KVShiftError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explained(given, error) from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{given} lacks {len(missing)} of its model's weights ({missing[0]} is one), and scores of "
            "weights left to chance mean nothing. Save the whole model again."
        )
    return model.eval()


def _explained(given: str, error: Exception) -> KVShiftError:
    said = " ".join(str(error).split())
    if "trust_remote_code" in said or "custom code" in said:
        return UnsupportedModelError(
            f"{given} needs program code of its own, which kvshift does not run. Inspect a model of an "
            "architecture that the installed transformers has."
        )
    if isinstance(error, ValueError | KeyError) and (
        "Unrecognized" in said or "does not recognize this architecture" in said
    ):
        return UnsupportedModelError(
            f"{given}: {said[:300]} Expected a causal language model that the installed transformers knows."
        )
    again = "Save it again." if Path(given).expanduser().exists() else f"Complete it: hf download {given}"
    return UsageError(f"{given} cannot be loaded: {said[:300]} {again}")
