"""Saving and loading: exact, by every way in, and never under the unshifted architecture's name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import kvshift
from kvshift.errors import UnsupportedModelError
from kvshift.models import shift_modules

CONFIGS = {
    "default": kvshift.KVShiftConfig(),
    "paper": kvshift.KVShiftConfig(init="paper"),
    "all of it": kvshift.KVShiftConfig(
        init="paper", window=4, shift_queries=True, per_channel=True, constraint="clamp", lr_multiplier=3
    ),
    "gate": kvshift.KVShiftConfig(init="paper", constraint="gate"),
    "values only": kvshift.KVShiftConfig(shift_keys=False),
}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


@pytest.mark.parametrize("load", [kvshift.from_pretrained, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize("shift", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_round_trip_is_exact(family, shifted, tokens, tmp_path, shift, load) -> None:
    model = shifted(family, shift)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(model)
    assert same(model, loaded)
    assert [taps.config for taps in shift_modules(loaded)] == [shift, shift]
    assert torch.equal(loaded(tokens(2, 7)).logits, model(tokens(2, 7)).logits)


@torch.no_grad()
def test_bfloat16_round_trip_keeps_float32_taps(family, vanilla, tokens, tmp_path) -> None:
    model = kvshift.convert(vanilla(family, dtype=torch.bfloat16), kvshift.KVShiftConfig(init="paper"))
    model.save_pretrained(tmp_path)
    for dtype in ("auto", torch.bfloat16):
        loaded = kvshift.from_pretrained(tmp_path, dtype=dtype)
        assert same(model, loaded)
        assert loaded.dtype == torch.bfloat16
        assert shift_modules(loaded)[0].k_weight.dtype == torch.float32
    assert (
        shift_modules(kvshift.from_pretrained(tmp_path, dtype=torch.float16))[0].k_weight.dtype
        == torch.float32
    )


@torch.no_grad()
def test_float64_round_trip_is_exact(family, shifted, tmp_path) -> None:
    model = shifted(family, kvshift.KVShiftConfig(init="paper"), dtype=torch.float64)
    for taps in shift_modules(model):
        taps.k_weight.add_(1e-12)  # lost in float32
    model.save_pretrained(tmp_path)
    loaded = kvshift.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float64
    assert same(model, loaded)


def test_the_checkpoint_names_its_own_architecture_and_its_shift(family, shifted, tmp_path) -> None:
    for model in (shifted(family, kvshift.KVShiftConfig()), shifted(family, kvshift.KVShiftConfig()).model):
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["model_type"] == f"kvshift_{family}"
        assert saved["architectures"] == [type(model).__name__]
        # Written although it is the default: a later version's default may be another.
        assert saved["kv_shift"] == kvshift.KVShiftConfig().to_dict()
        assert not list(tmp_path.glob("*.bin"))


def test_the_base_model_round_trips(family, shifted, tmp_path) -> None:
    base = shifted(family).model
    base.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(base)
    assert same(base, loaded)


def test_saving_under_another_configuration_is_refused(family, shifted, config, tmp_path) -> None:
    model = shifted(family)
    model.config = config(family)
    with pytest.raises(UnsupportedModelError, match="would load as another model"):
        model.save_pretrained(tmp_path)
    model = shifted(family)
    model.config.kv_shift = kvshift.KVShiftConfig(window=3).to_dict()
    with pytest.raises(UnsupportedModelError, match="would load as another model"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("init", ["paper", "identity", "structured"])
def test_from_config_starts_the_taps_as_configured(family, shifted, vanilla, init) -> None:
    """And draws every other weight as the unshifted model of the same seed."""
    shift = kvshift.KVShiftConfig(init=init)
    made_by = shifted(family, shift).config
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made_by)
    plain = vanilla(family, seed=0).state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in plain.items())
    check_start(model, init)


@pytest.mark.parametrize("init", ["paper", "identity", "structured"])
def test_a_base_checkpoint_loads_into_the_shifted_class(family, shifted, vanilla, tmp_path, init) -> None:
    shift = kvshift.KVShiftConfig(init=init)
    plain = vanilla(family, seed=3)
    plain.save_pretrained(tmp_path)
    kind = type(shifted(family, shift))
    model, report = kind.from_pretrained(
        tmp_path, config=shifted(family, shift).config, output_loading_info=True
    )
    assert {key.rsplit(".", 1)[0].rsplit(".", 1)[1] for key in report["missing_keys"]} == {"kv_shift"}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    check_start(model, init)


def test_taps_a_checkpoint_lacks_start_as_configured_and_the_others_stay(family, shifted, tmp_path) -> None:
    model = shifted(family, kvshift.KVShiftConfig(init="structured"))
    with torch.no_grad():
        for taps in shift_modules(model):
            taps.k_weight.fill_(0.25)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: [weights.pop(name) for name in list(weights) if "v_weight" in name])
    for taps in shift_modules(kvshift.from_pretrained(tmp_path)):
        assert torch.equal(taps.k_weight, torch.full((2, 2), 0.25))
        assert torch.equal(taps.v_weight, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize("load", [kvshift.from_pretrained, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize(
    "other",
    [
        kvshift.KVShiftConfig(window=3),
        kvshift.KVShiftConfig(per_channel=True),
        kvshift.KVShiftConfig(shift_values=False),
        kvshift.KVShiftConfig(init="paper", constraint="gate"),
    ],
    ids=["window", "per channel", "keys only", "gate"],
)
def test_taps_that_disagree_with_the_configuration_are_refused(
    family, shifted, tmp_path, other, load
) -> None:
    shifted(family).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["kv_shift"] = other.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UnsupportedModelError, match="taps in this checkpoint do not fit"):
        load(tmp_path)
    with pytest.raises(UnsupportedModelError, match="taps in this checkpoint do not fit"):
        load(tmp_path, ignore_mismatched_sizes=True)


def test_other_weights_of_another_shape_are_refused(family, shifted, tmp_path) -> None:
    shifted(family).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 32)}))
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight has another shape"):
        kvshift.from_pretrained(tmp_path)
    kvshift.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize(
    ("layers", "match"),
    [(3, r"lacks model\.layers\.2\.\S+, which its configuration needs"), (1, "do not fit|does not have")],
)
@pytest.mark.parametrize("start", ["shifted", "base"])
def test_another_number_of_layers_is_refused(shifted, vanilla, tmp_path, layers, match, start) -> None:
    """The library itself draws the layers that are missing, and drops those that are left over."""
    model = shifted("llama") if start == "shifted" else vanilla("llama")
    model.save_pretrained(tmp_path)
    config = shifted("llama", num_hidden_layers=layers).config
    with pytest.raises(UnsupportedModelError, match=rf"(?s)({match}).*configuration it was saved with"):
        AutoModelForCausalLM.from_pretrained(tmp_path, config=config)


def test_a_model_without_shift_is_refused(family, vanilla, tmp_path) -> None:
    vanilla(family).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"'{family}' model without KV shift.*kvshift.convert"):
        kvshift.from_pretrained(tmp_path)


def check_start(model, init: str) -> None:
    expected = {
        "identity": ([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]),
        "structured": ([[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]),
    }
    for taps in shift_modules(model):
        if init == "paper":
            for weight in (taps.k_weight, taps.v_weight):
                assert torch.allclose(weight.sum(-1), torch.ones(2))
                assert ((weight > 0) & (weight < 1)).all()
                assert weight.dtype == torch.float32
        else:
            for weight, values in zip((taps.k_weight, taps.v_weight), expected[init], strict=True):
                assert torch.equal(weight, torch.tensor(values))


def rewrite(folder, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
