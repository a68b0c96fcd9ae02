"""What a shifted model is known by, so that a cache which another one filled is not read as its own."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

_SAMPLE = 16  # numbers of each weight


def fingerprint(model: Any) -> str:
    """The model's class and a digest of its taps and of some of its key projections' weights.

    The same for two models that hold the same weights, in whatever process. Known without asking the device
    again until the first layer's weights change in place or are replaced; weights that are elsewhere
    (offloaded) count by their shapes.

    Args:
        model: a shifted base model.
    """
    known: tuple[Any, Any, str] | None = vars(model).get("kv_shift_known_by")
    if known is not None and known[1] == _state(model, known[0]):
        return known[2]
    attentions = [module for module in model.modules() if hasattr(type(module), "unshifted")]
    digest = hashlib.sha256()
    for attention in attentions:
        for weight in (model.family.layout.key_weight(attention), *attention.kv_shift.parameters()):
            digest.update(str(tuple(weight.shape)).encode())
            digest.update(_sample(weight))
    found = f"{type(model).__name__}@{digest.hexdigest()[:12]}"
    model.kv_shift_known_by = (attentions[0], _state(model, attentions[0]), found)  # in a tuple: no submodule
    return found


def _state(model: Any, attention: Any) -> list[tuple[int, int]]:
    """Changes when an optimizer steps, or other weights are put in."""
    watched = (model.family.layout.key_weight(attention), *attention.kv_shift.parameters())
    return [(id(each), 0 if each.is_inference() else each._version) for each in watched]


@torch.no_grad()
def _sample(weight: Tensor) -> bytes:
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.is_meta:
        return b""
    flat = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLE)][:_SAMPLE]
    return flat.to("cpu", torch.float64).numpy().tobytes()
