"""Seeing what a model's attention does, layer by layer, whatever its family.

The library lets an attention function be registered by name. Ours runs the family's own plain one, which
gives the attention weights, and shows them to whoever watches before the next layer begins, so that the
weights of one layer are in memory at a time.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvshift.errors import UnsupportedModelError

See = Callable[[int, Tensor, Tensor], None]
"""Called with a layer's number, its attention weights `(batch, query_heads, time, time)` and the values that
attention read, `(batch, kv_heads, time, head_dim)`."""

Plain = Callable[..., tuple[Tensor, Tensor]]

WATCHED = "kvshift_watched"
SPLIT = "_split_heads"
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")

_watcher: ContextVar[tuple[Plain, See]] = ContextVar("watcher")


def _watched_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    plain, see = _watcher.get()
    output, weights = plain(module, query, key, value, attention_mask, **kwargs)
    see(int(module.layer_idx), weights, value)
    return output, None


ALL_ATTENTION_FUNCTIONS.register(WATCHED, _watched_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(WATCHED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextlib.contextmanager
def watching(model: PreTrainedModel, see: See) -> Iterator[None]:
    """Calls `see` for every attention layer of every forward inside the block; then all is as before.

    The model is in evaluation mode inside the block.

    Raises:
        UnsupportedModelError: the model's attention cannot be watched.
    """
    plain, was_training = _plain_attention(model), model.training
    with contextlib.ExitStack() as watched:
        watched.callback(model.train, was_training)
        if plain is not None:
            watched.enter_context(_by_name(model, plain, see))
        else:
            watched.enter_context(_written_out(model, see))
        model.eval()
        yield


def _plain_attention(model: PreTrainedModel) -> Plain | None:
    """The family's own attention function that computes the weights; None if it has none of its own."""
    for part in type(model).__mro__:
        found = getattr(sys.modules.get(part.__module__), "eager_attention_forward", None)
        if found is not None and issubclass(part, PreTrainedModel):
            return found
    return None


@contextlib.contextmanager
def _by_name(model: PreTrainedModel, plain: Plain, see: See) -> Iterator[None]:
    """For every family whose attention goes through the library's interface."""
    before = model.config._attn_implementation
    token = _watcher.set((plain, see))
    try:
        model.set_attn_implementation(WATCHED)
        yield
    finally:
        model.set_attn_implementation(before)
        _watcher.reset(token)


@contextlib.contextmanager
def _written_out(model: PreTrainedModel, see: See) -> Iterator[None]:
    """For Falcon, whose attention computes and returns its weights itself, from one fused projection."""
    layers = attention_layers(model)
    before = model.config._attn_implementation
    if before not in ("eager", "sdpa") or not all(hasattr(part, SPLIT) for _, part in layers.values()):
        raise UnsupportedModelError(
            f"The attention weights of {type(model).__name__} cannot be read: its attention does not go "
            "through the library's attention interface. Leave the scores out: --no-induction."
        )
    if getattr(model.config, "alibi", False):
        raise UnsupportedModelError(
            f"The attention weights of this {type(model).__name__} cannot be read: with alibi=True the "
            "library's attention that shows its weights adds the positions' bias twice, its other one once. "
            "Leave the scores out: --no-induction."
        )
    values: dict[int, Tensor] = {}

    def splitting(layer: int, split: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[..., Any]:
        def watched(fused: Tensor) -> tuple[Tensor, ...]:
            parts = split(fused)
            values[layer] = parts[2].transpose(1, 2)
            return parts

        return watched

    def attended(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            see(layer, output[1], values.pop(layer))

        return hook

    with contextlib.ExitStack() as undone:
        model.config._attn_implementation = "eager"
        undone.callback(setattr, model.config, "_attn_implementation", before)
        for layer, (_, attention) in layers.items():
            setattr(attention, SPLIT, splitting(layer, getattr(attention, SPLIT)))
            undone.callback(delattr, attention, SPLIT)
            undone.callback(attention.register_forward_hook(attended(layer)).remove)
        yield


@dataclass(frozen=True)
class Way:
    """How one attention layer's output reaches the residual stream."""

    projection: nn.Module
    """From the heads' outputs side by side to the hidden size."""

    after: tuple[nn.Module, ...]
    """What the output goes through before it is added: a norm in Gemma 2 and OLMo 2, nothing in most."""


def attention_layers(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Each attention layer's name and module, by its number in the model."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        is_attention = any("Attention" in part.__name__ for part in type(module).__mro__)
        if is_attention and isinstance(getattr(module, "layer_idx", None), int) and projection(module):
            found.setdefault(int(module.layer_idx), (name, module))
    return dict(sorted(found.items()))


def projection(attention: nn.Module) -> nn.Module | None:
    """An attention layer's output projection."""
    return next((part for name, part in attention.named_children() if name in OUTPUT_PROJECTIONS), None)


@torch.no_grad()
def find_ways(model: PreTrainedModel, tokens: Tensor) -> dict[int, Way]:
    """How each attention layer's output reaches the residual stream, seen in one forward over `tokens`.

    A module beside the attention layer belongs to the way if the very tensor that attention returned, or that
    the way's last module made of it, is handed to it.
    """
    ways: dict[int, list[nn.Module]] = {}
    latest: dict[int, Tensor] = {}
    layers = attention_layers(model)

    def attended(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            latest[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def passed(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and inputs[0] is latest.get(layer) and isinstance(output, Tensor):
                ways[layer].append(module)
                latest[layer] = output

        return hook

    with contextlib.ExitStack() as hooks:
        for layer, (name, attention) in layers.items():
            ways[layer] = []
            hooks.callback(attention.register_forward_hook(attended(layer)).remove)
            for sibling in model.get_submodule(name.rpartition(".")[0]).children():
                if sibling is not attention:
                    hooks.callback(sibling.register_forward_hook(passed(layer)).remove)
        model(tokens, use_cache=False)
    return {
        layer: Way(found, tuple(ways[layer]))
        for layer, (_, attention) in layers.items()
        if (found := projection(attention)) is not None
    }


def to_logits(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """What the residual stream goes through on its way to the unembedding, in order."""
    outside = [
        (name, part) for name, part in model.named_modules() if not any(map(str.isdigit, name.split(".")))
    ]
    norms = [part for name, part in outside if name.rpartition(".")[2] in FINAL_NORMS]
    narrowed = [part for name, part in outside if name.endswith(".project_out")]  # of the smallest OPT
    return (*norms[:1], *narrowed[:1])
