from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models import shift_modules
from kvshift.shift import TAP_LEARNING_RATE, KVShiftConfig
from kvshift.training.model import (
    build_model,
    compile_layers,
    effective_taps,
    parameter_groups,
    tap_parameters,
)


@pytest.mark.parametrize("init", ["paper", "structured"])
def test_arms_share_all_weights_outside_the_taps(make_recipe, init):
    shifted = build_model(make_recipe(shift=KVShiftConfig(init=init).to_dict(), seed=7)).state_dict()
    vanilla = build_model(make_recipe(shift=None, seed=7)).state_dict()
    extra = shifted.keys() - vanilla.keys()
    assert vanilla.keys() <= shifted.keys()
    assert len(extra) == 4
    assert all(name.endswith(("k_weight", "v_weight")) for name in extra)
    for name, weight in vanilla.items():
        assert torch.equal(weight, shifted[name]), name


def test_seed_decides_weights_and_taps_and_leaves_global_state_alone(make_recipe):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (build_model(make_recipe(seed=1)).state_dict() for _ in range(2))
    other = build_model(make_recipe(seed=2)).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    taps = [name for name in first if name.endswith("k_weight")]
    assert taps
    assert not any(torch.equal(first[name], other[name]) for name in taps)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_parameter_groups(make_recipe):
    recipe = make_recipe(shift=KVShiftConfig(lr_multiplier=7.0).to_dict(), learning_rate=0.01)
    model = build_model(recipe)
    groups = {group["name"]: group for group in parameter_groups(model, recipe)}
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {name: {named[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert members["taps"] == {name for name in named.values() if name.endswith(("k_weight", "v_weight"))}
    assert members["vectors"] == {name for name in named.values() if "norm" in name}
    assert set.union(*members.values()) == set(named.values())
    assert sum(len(names) for names in members.values()) == len(named)
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "matrices": 0.1,
        "vectors": 0.0,
        "taps": 0.0,
    }
    assert groups["matrices"]["lr"] == groups["vectors"]["lr"] == 0.01
    assert groups["taps"]["lr"] == pytest.approx(0.07)
    of_their_own = parameter_groups(model, make_recipe(shift=KVShiftConfig().to_dict(), learning_rate=0.01))
    assert {group["name"]: group["lr"] for group in of_their_own} == {
        "matrices": 0.01,
        "vectors": 0.01,
        "taps": TAP_LEARNING_RATE,
    }
    assert len(tap_parameters(model)) == 4


def test_per_channel_taps_are_matrices_yet_not_decayed(make_recipe):
    recipe = make_recipe(shift=KVShiftConfig(per_channel=True).to_dict())
    model = build_model(recipe)
    decayed = next(g for g in parameter_groups(model, recipe) if g["name"] == "matrices")["params"]
    assert not {id(p) for p in decayed} & {id(p) for p in tap_parameters(model)}
    taps = effective_taps(model, "k_weight")
    assert (len(taps), len(taps[0]), len(taps[0][0])) == (2, 2, 2)
    expected = shift_modules(model)[0].k_weight.mean(1)
    assert torch.equal(torch.tensor(taps[0]), expected)


def test_configuration_follows_the_data(make_recipe, text):
    model = build_model(make_recipe(model={**make_recipe().model, "pad_token_id": 100000, "vocab_size": 9}))
    assert model.config.vocab_size == text.vocab_size
    assert model.config.eos_token_id == text.end_token
    assert model.config.pad_token_id is None
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "nonesuch"}, UnsupportedModelError, "nonesuch"),
        ({"model_type": None}, UsageError, "model_type"),
        ({"model_type": "bloom", "n_head": 2}, UnsupportedModelError, "bloom"),
        ({"max_position_embeddings": 16}, UsageError, "max_position_embeddings"),
        ({"num_attention_heads": 3}, UsageError, "impossible|can be built"),
        ({"hidden_size": "wide"}, UsageError, "wide"),
    ],
)
def test_impossible_models_are_refused(make_recipe, change, error, words):
    recipe = make_recipe()
    with pytest.raises(error, match=words):
        build_model(recipe.model_copy(update={"model": {**recipe.model, **change}}))


def test_every_model_of_a_process_is_compiled(make_recipe, monkeypatch):
    """PyTorch counts all models' compilations of a layer's class together, and gives up beyond its limit."""
    plain = GradientCheckpointingLayer.compile
    monkeypatch.setattr(GradientCheckpointingLayer, "compile", partialmethod(plain, backend="aot_eager"))
    tokens = torch.randint(16, (2, 8))
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for shift in (None, {"init": "paper"}, {"init": "paper", "window": 3}):
            model = build_model(make_recipe(shift=shift))
            compile_layers(model)
            model(tokens, use_cache=False).logits.sum().backward()
            with torch.no_grad():
                model(tokens, use_cache=False)
