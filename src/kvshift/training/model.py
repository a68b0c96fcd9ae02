"""The model of a run, drawn from its seed, and which of its parameters learn how."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models import convert, shift_modules
from kvshift.shift import KVShiftConfig
from kvshift.tasks.text import TextData
from kvshift.training.recipe import Recipe

_TAPS_STREAM = 2**32  # added to the recipe's seed: the taps' draw has nothing in common with the weights'
_DROPOUTS = ("attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop")
_NOT_ARCHITECTURE = {  # in a downloaded config.json, and nothing a model trained from scratch may obey
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}


class Learner(Protocol):
    """What a recipe, of a text or of a task, says about its model and how it learns."""

    @property
    def model(self) -> dict[str, Any]: ...
    @property
    def shift_config(self) -> KVShiftConfig | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def build_model(
    recipe: Recipe, vocab_size: int | None = None, end_token: int | None = None
) -> PreTrainedModel:
    """The model at step 0, as `draw_model` draws it.

    Args:
        recipe: the run.
        vocab_size, end_token: of the recipe's data; None reads them there.

    Raises:
        UsageError, UnsupportedModelError: see `draw_model`.
        DataError: the recipe's data cannot be opened.
    """
    if vocab_size is None:
        data = TextData.open(recipe.data)
        vocab_size, end_token = data.vocab_size, data.end_token
    return draw_model(recipe, vocab_size, end_token)


def draw_model(recipe: Learner, vocab_size: int, end_token: int | None = None) -> PreTrainedModel:
    """The model at step 0, in float32 on the CPU; the global random state is left alone.

    The vanilla model is drawn first, from the recipe's seed; the taps after it, from a generator of their
    own. So recipes that differ only in their shift start from the same weights outside the taps, bit for bit.

    Raises:
        UsageError: the configuration is impossible.
        UnsupportedModelError: the architecture is unknown, or cannot be shifted though the recipe says so.
    """
    config = _config(recipe, vocab_size, end_token)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
            raise UsageError(
                f"No {config.model_type} model can be built from the configuration {recipe.model}: {error}"
            ) from error
    if recipe.shift_config is not None:
        taps = torch.Generator().manual_seed(_TAPS_STREAM + recipe.seed)
        model = convert(model, recipe.shift_config, generator=taps)
    return model


def parameter_groups(model: nn.Module, recipe: Learner) -> list[dict[str, Any]]:
    """What AdamW needs: matrices decayed; norms and biases not; taps not, at their own learning rate."""
    taps = {id(parameter) for parameter in tap_parameters(model)}
    named = list(model.named_parameters())
    rate, shift = recipe.learning_rate, recipe.shift_config
    groups = [
        ("matrices", [p for _, p in named if id(p) not in taps and p.dim() >= 2], recipe.weight_decay, rate),
        ("vectors", [p for _, p in named if id(p) not in taps and p.dim() < 2], 0.0, rate),
        ("taps", [p for _, p in named if id(p) in taps], 0.0, shift.learning_rate(rate) if shift else rate),
    ]
    return [
        {"name": name, "params": params, "weight_decay": decay, "lr": lr}
        for name, params, decay, lr in groups
        if params
    ]


def dropout(config: Any) -> str | None:
    """The first setting of the configuration by which the model drops something at random; None: nothing."""
    return next((name for name in _DROPOUTS if getattr(config, name, 0)), None)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode inside, which drops nothing; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def compile_layers(model: nn.Module) -> None:
    """Compiles the decoder layers, which share their code: one compilation serves them all, however many
    there are, and every batch, in training and evaluation, has one shape.

    What other models of this process compiled is forgotten, and compiled again where they are still in use:
    PyTorch counts the compilations of a class together, and models beyond its limit of eight would go
    uncompiled, with no more than a warning.
    """
    torch.compiler.reset()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=False)


def tap_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter of every shift, in layer order."""
    return [parameter for module in shift_modules(model) for parameter in module.parameters()]


@torch.no_grad()
def effective_taps(model: nn.Module, name: str) -> list[list[list[float]]] | None:
    """`taps[layer][head][column]` of `k_weight` or `v_weight`, averaged over channels; None if unshifted."""
    layers = []
    for module in shift_modules(model):
        if (taps := module.taps(name)) is not None:
            layers.append((taps if taps.dim() == 2 else taps.mean(dim=1)).tolist())
    return layers or None


def _config(recipe: Learner, vocab_size: int, end_token: int | None) -> Any:
    given = {key: value for key, value in recipe.model.items() if key not in _NOT_ARCHITECTURE}
    model_type = given.pop("model_type", None)
    if not isinstance(model_type, str):
        raise UsageError(
            f"The model configuration's model_type is {model_type!r}; expected the name of an architecture, "
            "such as 'llama'. Take a complete config.json."
        )
    # The tokens' numbers are the data's; a padding token would also zero a row of the embedding.
    given |= {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": end_token, "pad_token_id": None}
    longest = given.setdefault("max_position_embeddings", recipe.sequence_length)
    if not isinstance(longest, int) or longest < recipe.sequence_length:
        raise UsageError(
            f"sequence_length is {recipe.sequence_length}, but the model's max_position_embeddings is "
            f"{longest!r}; expected at most that. Shorten the sequences or change the model."
        )
    try:
        return AutoConfig.for_model(model_type, **given)
    except (ValueError, KeyError) as error:
        if "Unrecognized model identifier" in str(error):
            raise UnsupportedModelError(
                f"Unknown architecture {model_type!r}; expected one that transformers knows, such as 'llama'."
            ) from error
        raise UsageError(f"The {model_type} configuration {recipe.model} is impossible: {error}") from error
    except Exception as error:  # configurations validate themselves with errors of huggingface_hub's own
        if type(error).__module__.startswith("huggingface_hub"):
            raise UsageError(
                f"The {model_type} configuration {recipe.model} is impossible: {error}"
            ) from error
        raise
