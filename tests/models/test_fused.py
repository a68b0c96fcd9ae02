"""Attention layers as one piece: the same logits and gradients as over shifted projections, in every mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from modes import COMPILED, MODES, draw, error
from tiny_models import TINY, make_shifted
from transformers import PreTrainedModel

import kvshift
from kvshift.kernels import dispatch
from kvshift.models import fused
from kvshift.models.families import FAMILIES

pytest.importorskip("triton", reason="Triton is not installed")
SHIFT = kvshift.KVShiftConfig(init="paper", window=3)
FUSED = {family.model_type for family in FAMILIES if family.rotary is not None}
MODELS = [name for name, (model_type, _) in TINY.items() if model_type in FUSED and name != "cohere-norm"]
LAYERS = {"smollm3": 1}
"""Of two layers those with rotary embedding."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often rows went through each of the two operators."""
    counts = {"_rotated": 0, "_decoded": 0}

    def counted(name: str):
        original = getattr(fused, name)

        def call(*args):
            counts[name] += 1
            return original(*args)

        return call

    for name in counts:
        monkeypatch.setattr(fused, name, counted(name))
    return counts


def training_step(model: PreTrainedModel, backend: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of two packed documents and a padded one."""
    model.zero_grad()
    tokens = draw(1, 7)
    with dispatch.forced(backend):
        out = model(
            tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), labels=tokens, use_cache=False
        )
        out.loss.backward()
    return out.logits.detach(), {name: x.grad.clone() for name, x in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_the_family_s_own(name: str, ran: dict[str, int]) -> None:
    model = make_shifted(name, SHIFT)
    found, gradients = training_step(model, "triton")
    assert ran["_rotated"] == LAYERS.get(name, 2)
    expected, right = training_step(model, "definition")
    assert ran["_rotated"] == LAYERS.get(name, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
    for parameter, gradient in gradients.items():
        assert (gradient - right[parameter]).norm() <= 1e-5 * right[parameter].norm() + 1e-8, parameter


@pytest.mark.parametrize(
    "shift",
    [
        kvshift.KVShiftConfig(init="paper", shift_values=False),
        kvshift.KVShiftConfig(init="paper", shift_keys=False, per_channel=True),
        kvshift.KVShiftConfig(init="paper", constraint="gate"),
    ],
    ids=["keys", "values-per-channel", "gate"],
)
def test_every_kind_of_shift(shift: kvshift.KVShiftConfig, ran: dict[str, int]) -> None:
    model = make_shifted("llama", shift)
    found, gradients = training_step(model, "triton")
    expected, right = training_step(model, "definition")
    assert ran["_rotated"] == 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
    for parameter, gradient in gradients.items():
        assert (gradient - right[parameter]).norm() <= 1e-5 * right[parameter].norm() + 1e-8, parameter


@pytest.mark.parametrize(
    ("name", "mode", "decoded"),
    [
        ("llama", "chunked prefill", 0),
        ("llama", "right padded then decoding", 0),
        ("llama", "static cache left padded", 8),
        ("qwen3", "static cache", 8),
        ("mistral", "static cache", 0),  # its windows slide
        ("phi3", "greedy", 0),
    ],
)
def test_modes(name: str, mode: str, decoded: int, ran: dict[str, int]) -> None:
    model = make_shifted(name, SHIFT)
    with dispatch.forced("triton"):
        assert error(MODES[mode], model) < 1
    assert ran["_rotated"] > 0
    assert ran["_decoded"] == decoded


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled(mode: str) -> None:
    model = make_shifted("llama", SHIFT)
    with dispatch.forced("triton"):
        assert error(COMPILED[mode], model) < 1


def test_what_the_operators_do_not_do_goes_the_family_s_own_way(ran: dict[str, int]) -> None:
    tokens = draw(1, 5)
    model = make_shifted("llama", SHIFT)
    model(tokens)  # on a CPU
    with dispatch.forced("triton"):
        make_shifted("llama", kvshift.KVShiftConfig(init="paper", shift_queries=True))(tokens)
        make_shifted("cohere-norm", SHIFT)(tokens)
        make_shifted("opt", SHIFT)(tokens)
        normed = make_shifted("qwen3", SHIFT)
        for layer in normed.model.layers:
            layer.self_attn.k_norm = torch.nn.Identity()
        normed(tokens)
    assert ran == {"_rotated": 0, "_decoded": 0}
