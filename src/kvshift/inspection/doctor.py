"""What KV shift would do to a model, told from its configuration alone, and tried on a tiny copy of it."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

import kvshift.models as models
from kvshift.errors import KVShiftError, UnsupportedModelError
from kvshift.inspection.tiny import VOCABULARY, attention_layers, tiny_config, tiny_model
from kvshift.models.families import Family, family_of
from kvshift.models.folder import check_plain
from kvshift.models.skeleton import skeleton
from kvshift.shift import KVShiftConfig

DOCTOR_VERSION = 1
TOLERANCE = 1e-4
"""Largest error of a check in float32, in units of the logits' standard deviation."""

_LENGTH = 11
Way = Callable[[PreTrainedModel], tuple[Tensor, Tensor]]
"""A way of running a model: the logits it gave, and those it must give."""


class Check(BaseModel):
    """One way of running the tiny copy, compared with a full forward."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    error: float | None = Field(description="Largest, in units of the logits' spread; None: not run.")
    refused: str | None = Field(None, description="Why this way is refused.")
    failed: str | None = Field(None, description="What went wrong instead of giving logits.")

    @property
    def passed(self) -> bool:
        """Whether it gave the right logits; a refusal is no failure, and no pass."""
        return self.error is not None and self.error <= TOLERANCE


class Examination(BaseModel):
    """What `kvshift doctor` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = DOCTOR_VERSION
    model_type: str
    family: str
    layers: int = Field(description="Of the model.")
    shifted_layers: list[int] = Field(description="Numbers of the layers whose keys and values are shifted.")
    query_heads: int
    kv_heads: int
    head_dim: int
    parameters: int = Field(description="Of the model without KV shift.")
    added_parameters: int
    state_bytes: int = Field(description="Beside the cache, for each sequence, at two bytes a number.")
    cache_bytes_per_token: int = Field(description="Of the shifted layers' keys and values, likewise.")
    packs: bool = Field(description="Whether packed documents can be trained on.")
    checks: list[Check]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.passed or check.refused for check in self.checks)


def examine(config: PretrainedConfig, shift: KVShiftConfig | None = None) -> Examination:
    """Examines an architecture. No weights of the model are needed or loaded.

    Args:
        config: of an unshifted causal language model.
        shift: what would be added; None: the default.

    Raises:
        UnsupportedModelError: the architecture, or this shift of it, cannot be had; with the reason.
    """
    shift = shift or KVShiftConfig()
    check_plain(config.to_dict(), f"This {config.model_type!r} model")
    family = family_of(config)
    family.check_shift(shift)
    model = skeleton(config, torch.bfloat16)
    layers = attention_layers(model, family)
    if not layers:
        raise UnsupportedModelError(f"This {config.model_type!r} model has no attention layer to shift.")
    first = next(iter(layers.values()))
    head_dim = family.head_dim(first)
    query_heads, kv_heads = family.layout.heads(first, head_dim)
    taps = 1 if shift.constraint == "gate" else shift.window
    heads = kv_heads * (shift.shift_keys + shift.shift_values) + query_heads * shift.shift_queries
    a_head = taps * (head_dim if shift.per_channel else 1)
    return Examination(
        model_type=str(config.model_type),
        family=family.name,
        layers=int(config.num_hidden_layers),
        shifted_layers=sorted(int(layer.layer_idx) for layer in layers.values()),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        added_parameters=len(layers) * heads * a_head,
        state_bytes=2 * len(layers) * heads * head_dim * (shift.window - 1),
        cache_bytes_per_token=2 * len(layers) * 2 * kv_heads * head_dim,
        packs=family.packs,
        checks=_checks(config, family, shift),
    )


def _checks(config: PretrainedConfig, family: Family, shift: KVShiftConfig) -> list[Check]:
    small = tiny_config(config)
    wide = KVShiftConfig.from_dict({**shift.to_dict(), "init": "paper"})
    if shift.constraint == "clamp":
        wide = shift
    plain = tiny_model(small)
    shifted = models.convert(copy.deepcopy(plain), wide, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(1, VOCABULARY, (2, _LENGTH), generator=torch.Generator().manual_seed(2))
    ways: dict[str, Way] = {
        "decoding with a cache": lambda model: _decoded(model, tokens, [4] + [1] * (_LENGTH - 4)),
        "prompt in chunks": lambda model: _decoded(model, tokens, [3, 5, _LENGTH - 8]),
        "padding on the left": lambda model: _padded(model, tokens, left=True),
        "padding on the right": lambda model: _padded(model, tokens, left=False),
        "packed documents": lambda model: _packed(model, tokens),
        "beam search": lambda model: _beams(model, tokens),
        "static cache": lambda model: _static(model, tokens),
        "saving and loading": lambda model: _reloaded(model, tokens),
    }
    identity = _check("without a shift: identity start", plain, plain, lambda model: _identity(model, tokens))
    return [identity, *(_check(name, shifted, plain, way) for name, way in ways.items())]


def _check(name: str, shifted: PreTrainedModel, plain: PreTrainedModel, way: Way) -> Check:
    try:
        with torch.no_grad():
            found, expected = way(shifted)
    except UnsupportedModelError as refusal:
        return Check(name=name, error=None, refused=str(refusal))
    except KVShiftError:
        raise
    except Exception as error:  # the library's, in whatever way this architecture differs
        said = f"{type(error).__name__}: {error}"[:400]
        if _fails(plain, way):
            return Check(name=name, error=None, refused=f"the library cannot, shifted or not: {said}")
        return Check(name=name, error=None, failed=said)
    largest = float((found - expected).abs().max() / expected.std())
    if math.isnan(largest):
        return Check(name=name, error=None, failed="some logits are NaN")
    return Check(name=name, error=largest)


def _fails(plain: PreTrainedModel, way: Way) -> bool:
    try:
        with torch.no_grad():
            way(plain)
    except Exception:
        return True
    return False


def _logits(model: PreTrainedModel, tokens: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False, **inputs).logits


def _identity(plain: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    same = models.convert(copy.deepcopy(plain), KVShiftConfig(init="identity"))
    return _logits(same, tokens), _logits(plain, tokens)


def _decoded(model: PreTrainedModel, tokens: Tensor, chunks: list[int]) -> tuple[Tensor, Tensor]:
    cache, found = None, []
    for chunk in tokens.split(chunks, dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, dim=1), _logits(model, tokens)


def _padded(model: PreTrainedModel, tokens: Tensor, *, left: bool) -> tuple[Tensor, Tensor]:
    count = 3
    padding = torch.full_like(tokens[:, :count], 5)  # not zero: padding that is read must show
    parts = [padding, tokens] if left else [tokens, padding]
    real = slice(count, None) if left else slice(0, _LENGTH)
    mask = torch.zeros(len(tokens), count + _LENGTH, dtype=torch.long)
    mask[:, real] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = _logits(model, torch.cat(parts, 1), attention_mask=mask, position_ids=positions)
    return found[:, real], _logits(model, tokens)


def _packed(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    first = 6
    positions = torch.cat((torch.arange(first), torch.arange(_LENGTH - first))).expand(len(tokens), -1)
    apart = torch.cat((_logits(model, tokens[:, :first]), _logits(model, tokens[:, first:])), dim=1)
    return _logits(model, tokens, position_ids=positions), apart


def _beams(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the best beams against the sum of their tokens' log probabilities in a full forward."""
    prompt, new = tokens[:, :5], 5
    made: Any = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=3,
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    chances = _logits(model, made.sequences).log_softmax(-1)[:, 4:-1]
    chosen = chances.gather(-1, made.sequences[:, 5:, None]).squeeze(-1)
    return made.sequences_scores, chosen.sum(-1)


def _static(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    prompt = tokens[:, :5]
    made: Any = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=5,
        min_new_tokens=5,
        cache_implementation="static",
        disable_compile=True,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return torch.stack(made.logits, 1), _logits(model, made.sequences)[:, 4:-1]


def _reloaded(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with tempfile.TemporaryDirectory(prefix="kvshift-doctor-") as folder:
        model.save_pretrained(Path(folder))
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
        return _logits(loaded, tokens), _logits(model, tokens)
