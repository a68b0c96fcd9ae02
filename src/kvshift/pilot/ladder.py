"""Model sizes: our own ladder of Llama-type models, and a ladder below a user's own architecture."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.pilot.settings import Size

LADDER = (
    "d32-L2",
    "d48-L2",
    "d64-L2",
    "d96-L3",
    "d128-L3",
    "d192-L4",
    "d256-L5",
    "d384-L6",
    "d512-L8",
    "d640-L10",
    "d768-L12",
    "d1024-L16",
    "d1536-L20",
    "d2048-L24",
)
"""Rungs, smallest first; each costs roughly 2 to 2.5 times the one before to train on a token."""

RUNG_STEP = 2.3
"""How much cheaper each derived rung below a user's model is, in compute of its layers."""

_NAME = re.compile(r"d(\d{1,5})-L(\d{1,3})")
_NOT_SHAPE = frozenset(
    {
        "model_type",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "transformers_version",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "id2label",
        "label2id",
        "problem_type",
        "return_dict",
        "is_encoder_decoder",
        "output_hidden_states",
        "output_attentions",
        "chunk_size_feed_forward",
    }
)
"""Entries of a config.json that say nothing about the model's shape."""
_LARGEST_HIDDEN, _LARGEST_LAYERS = 16_384, 200


def rung(name: str, vocab_size: int, sequence_length: int) -> Size:
    """The Llama-type model called `d{hidden}-L{layers}`, whether or not `LADDER` has it.

    Heads are 64 wide from hidden size 256 on and 32 below, or the next power of two that divides the width.

    Raises:
        UsageError: not such a name, or a width that heads do not divide.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise UsageError(
            f"{name!r} is not a size; take some of {', '.join(LADDER)}, or write d<hidden>-L<layers>."
        )
    hidden, layers = int(match[1]), int(match[2])
    head_dim = next((d for d in (64, 32, 16, 8) if hidden % d == 0 and (d < 64 or hidden >= 256)), 0)
    if not head_dim or not 0 < hidden <= _LARGEST_HIDDEN:
        raise UsageError(
            f"Size {name!r} has hidden size {hidden}; expected a multiple of 8 up to {_LARGEST_HIDDEN:,}."
        )
    if not 1 <= layers <= _LARGEST_LAYERS:
        raise UsageError(f"Size {name!r} has {layers} layers; expected 1 to {_LARGEST_LAYERS}.")
    heads = hidden // head_dim
    config = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": -(-8 * hidden // (3 * 32)) * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "max_position_embeddings": sequence_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "initializer_range": initial_spread(hidden),
    }
    return size_of(f"d{hidden}-L{layers}", config)


def initial_spread(hidden: int) -> float:
    """Standard deviation of initial weights: the usual 0.02 from hidden size 900 on, 0.6 / √hidden below.

    At 0.02 a narrow model's attention hardly tells tokens apart at first, and short runs end before it does
    (docs/results/defaults.md).
    """
    return round(max(0.02, 0.6 / hidden**0.5), 4)


def size_of(name: str, config: dict[str, Any]) -> Size:
    """A `Size` from a Llama configuration, without importing what could build the model."""
    embedding, layer, rest = _parameters(config)
    layers = int(config["num_hidden_layers"])
    return Size(
        name=name,
        model=config,
        parameters=embedding + layers * layer + rest,
        non_embedding_parameters=layers * layer + rest,
        layers=layers,
        hidden=int(config["hidden_size"]),
        kv_heads=int(config["num_key_value_heads"]),
        head_dim=int(config["head_dim"]),
    )


def _parameters(config: dict[str, Any]) -> tuple[int, int, int]:
    """Parameters of the embeddings (the output matrix included), of one layer, and of the last norm."""
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    embedding = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    attention = hidden * (2 * queries + 2 * keys)
    feed_forward = 3 * hidden * inner
    return embedding, attention + feed_forward + 2 * hidden, hidden


def training_flops(size: Size, sequence_length: int) -> float:
    """Arithmetic to train on one token, up to a constant: matrices (the output's too) and attention."""
    output = int(size.model["vocab_size"]) * size.hidden
    attention = 2 * size.layers * int(size.model["num_attention_heads"]) * size.head_dim * sequence_length
    return 6.0 * (size.non_embedding_parameters + output) + 3.0 * attention


def user_ladder(path: Path, vocab_size: int, sequence_length: int, rungs: int = 3) -> list[Size]:
    """The user's architecture at its true size, and smaller ones of the same kind below it; smallest first.

    The vocabulary is replaced by the data's. Rungs keep the head size, the ratio of query to KV heads and
    of the feed-forward, and lose layers and width in step.

    Raises:
        UsageError: no readable configuration at `path`, or a model too small to be made smaller.
        UnsupportedModelError: an architecture or setting that cannot be converted.
    """
    config = _user_config(path)
    config["vocab_size"] = vocab_size
    config["max_position_embeddings"] = max(sequence_length, int(config.get("max_position_embeddings") or 0))
    sizes = [_counted(config)]
    factor = 1.0
    while len(sizes) < rungs:
        factor /= RUNG_STEP
        smaller = _counted(_scaled(config, factor))
        if smaller.parameters >= sizes[-1].parameters:
            break
        sizes.append(smaller)
    if len(sizes) < 2:
        raise UsageError(
            f"The model in {path} is too small to make a smaller one from, and a pilot compares at least "
            "two sizes. Use --sizes instead of --model."
        )
    return sizes[::-1]


def _counted(config: dict[str, Any]) -> Size:
    """A size of the user's architecture, its parameters counted in the model itself, built without values."""
    import torch
    from transformers import AutoConfig

    from kvshift.models.skeleton import skeleton

    values = {key: value for key, value in config.items() if key != "model_type"}
    values |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # of another vocabulary
    model = skeleton(AutoConfig.for_model(config["model_type"], **values), torch.float32)
    vocabulary = {id(part.weight): part.weight.numel() for part in
                  (model.get_input_embeddings(), model.get_output_embeddings())}  # fmt: skip
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(
        name=f"d{config['hidden_size']}-L{config['num_hidden_layers']}",
        model=config,
        parameters=parameters,
        non_embedding_parameters=parameters - sum(vocabulary.values()),
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        kv_heads=int(config["num_key_value_heads"]),
        head_dim=int(config["head_dim"]),
    )


def read_config(path: Path) -> dict[str, Any]:
    """The JSON of a user's model, as it is written.

    Raises:
        UsageError: there is none at `path`, or it is no model's.
        UnsupportedModelError: it is quantized.
    """
    file = path / "config.json" if os.path.isdir(path) else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"--model {path}: there is no {file}. Give a config.json or a folder that holds one."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--model {path}: {file} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UsageError(f"--model {path}: {file} has no model_type; expected a Hugging Face config.json.")
    if raw.get("quantization_config"):
        raise UnsupportedModelError(f"--model {path}: a quantized model cannot be trained from scratch.")
    return raw


def _user_config(path: Path) -> dict[str, Any]:
    """The configuration at `path` with every default filled in."""
    from transformers import CONFIG_MAPPING, AutoConfig

    from kvshift.models.families import family_of

    raw = read_config(path)
    model_type = raw["model_type"]
    try:
        config = AutoConfig.for_model(model_type, **{k: v for k, v in raw.items() if k not in _NOT_SHAPE})
    except Exception as error:  # which one depends on the version of transformers
        if model_type not in CONFIG_MAPPING:
            raise UnsupportedModelError(
                f"--model {path}: transformers knows no model_type {model_type!r}."
            ) from None
        reason = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"--model {path} is not a possible configuration: {reason}") from None
    family = family_of(config)
    if not family.packs:
        raise UnsupportedModelError(
            f"--model {path}: a pilot packs documents into rows, and the library's {model_type!r} layers "
            "read across packed documents, with or without KV shift. Use --sizes instead."
        )
    values = config.to_dict()
    if experts := values.get("num_local_experts") or values.get("num_experts"):
        raise UnsupportedModelError(
            f"--model {path}: {model_type!r} is a mixture of {experts} experts, and pilots cannot make "
            "smaller ones of it yet. Use --sizes instead."
        )
    return _plain(values, model_type, path)


def _plain(values: dict[str, Any], model_type: str, path: Path) -> dict[str, Any]:
    """What a recipe needs of a complete configuration, checked to be a shape that can exist."""
    config = {key: value for key, value in values.items() if key not in _NOT_SHAPE}
    config["model_type"] = model_type
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    counts = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads")  # fmt: skip
    for key in counts:
        if config.get(key) is None:
            raise UnsupportedModelError(
                f"--model {path}: a {model_type!r} configuration has no {key}, and pilots cannot make "
                "smaller models of it yet. Use --sizes instead."
            )
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise UsageError(
                f"--model {path}: {key} is {config.get(key)!r}; expected a whole number of 1 or more."
            )
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise UsageError(
            f"--model {path}: {config['num_attention_heads']} attention heads cannot share "
            f"{config['num_key_value_heads']} KV heads; expected a multiple."
        )
    if config.get("head_dim") is None:
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return config


def _scaled(config: dict[str, Any], factor: float) -> dict[str, Any]:
    """A smaller model of the same kind: `factor` of the layers' compute, width and depth shrinking alike."""
    kv_heads, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    new_kv_heads = max(1, round(kv_heads * factor ** (1 / 3)))
    width = new_kv_heads / kv_heads
    new_layers = min(layers, max(1, round(layers * factor / width**2)))
    small = dict(config)
    small["num_key_value_heads"] = new_kv_heads
    small["num_attention_heads"] = config["num_attention_heads"] // kv_heads * new_kv_heads
    small["hidden_size"] = max(8, round(config["hidden_size"] * width / 8) * 8)
    small["intermediate_size"] = max(8, round(config["intermediate_size"] * width / 8) * 8)
    small["num_hidden_layers"] = new_layers
    if config.get("layer_types"):
        small["layer_types"] = list(config["layer_types"][:new_layers])
    if config.get("max_window_layers"):
        small["max_window_layers"] = min(config["max_window_layers"], new_layers)
    return small
