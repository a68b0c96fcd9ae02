"""A model's shape without its weights: built on the meta device from a configuration."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from kvshift.models.derived import shifted_classes
from kvshift.models.families import family_of
from kvshift.models.model import add_taps
from kvshift.shift import KVShift, KVShiftConfig


def skeleton(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """An unshifted causal language model of `config`, without values."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)


def add_skeleton_taps(model: Any, shift: KVShiftConfig) -> dict[str, KVShift]:
    """Gives a skeleton taps, without values; returns them by their modules' names, in layer order."""
    add_taps(model, shifted_classes(family_of(model.config)).causal_lm, shift)
    return {name: module for name, module in model.named_modules() if isinstance(module, KVShift)}
