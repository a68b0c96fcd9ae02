"""Adapter files: what they hold, that they give the same model again, and what is no adapter."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import kvshift
from kvshift.errors import OutputError, UnsupportedModelError, UsageError
from kvshift.models import is_shifted, shift_modules

SHIFTS = {
    "paper": kvshift.KVShiftConfig(init="paper"),
    "all of it": kvshift.KVShiftConfig(
        init="paper", window=4, shift_queries=True, per_channel=True, constraint="clamp", lr_multiplier=3
    ),
    "gate": kvshift.KVShiftConfig(init="paper", constraint="gate"),
    "values only": kvshift.KVShiftConfig(shift_keys=False),
}


@pytest.fixture
def file(shifted, tmp_path):
    kvshift.save_adapter(shifted("llama"), tmp_path / "taps.safetensors")
    return tmp_path / "taps.safetensors"


def rewritten(path, *, metadata=None, tensors=None):
    with safe_open(path, framework="pt") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = json.loads(opened.metadata()["kvshift"])
    about = metadata(about) or about if metadata else about
    if tensors:
        tensors(held)
    save_file(held, path, metadata={"format": "pt", "kvshift": json.dumps(about)})


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@torch.no_grad()
def test_the_same_model_again(family, shifted, vanilla, tokens, tmp_path, shift) -> None:
    model = shifted(family, shift)
    for taps in shift_modules(model):
        for parameter in taps.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)  # trained
    kvshift.save_adapter(model, tmp_path / "taps.safetensors")
    base = vanilla(family)
    again = kvshift.load_adapter(base, tmp_path / "taps.safetensors")
    assert again is base
    assert again.config.kv_shift == shift.to_dict()
    assert torch.equal(again(tokens(2, 7)).logits, model(tokens(2, 7)).logits)
    assert os.path.getsize(tmp_path / "taps.safetensors") < 8000


def test_every_family(architecture, shifted, vanilla, tokens, tmp_path) -> None:
    model = shifted(architecture)
    kvshift.save_adapter(model, tmp_path / "taps.safetensors")
    again = kvshift.load_adapter(vanilla(architecture), tmp_path / "taps.safetensors").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_loading_draws_no_random_number(vanilla, file) -> None:
    model = vanilla("llama")
    state = torch.random.get_rng_state()
    kvshift.load_adapter(model, file)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_the_file_holds(shifted, file) -> None:
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
        about = json.loads(opened.metadata()["kvshift"])
    assert names == {
        f"model.layers.{layer}.self_attn.kv_shift.{part}_weight" for layer in (0, 1) for part in "kv"
    }
    assert about["format"] == 1
    assert about["model_type"] == "llama"
    assert about["shift"] == shifted("llama").config.kv_shift
    assert about["shape"]["num_hidden_layers"] == 2
    assert about["shape"]["num_key_value_heads"] == 2


@torch.no_grad()
def test_taps_stay_float32_on_a_bfloat16_base(shifted, vanilla, file) -> None:
    model = kvshift.load_adapter(vanilla("llama", dtype=torch.bfloat16), file)
    expected = shift_modules(shifted("llama"))
    for mine, theirs in zip(shift_modules(model), expected, strict=True):
        assert mine.k_weight.dtype == torch.float32
        assert torch.equal(mine.k_weight, theirs.k_weight)


@torch.no_grad()
def test_a_shifted_model_gets_other_taps_of_the_same_kind(shifted, file) -> None:
    model = shifted("llama", kvshift.KVShiftConfig(init="identity"))
    kvshift.load_adapter(model, file)
    expected = shift_modules(shifted("llama"))
    for mine, theirs in zip(shift_modules(model), expected, strict=True):
        assert torch.equal(mine.v_weight, theirs.v_weight)
    with pytest.raises(UnsupportedModelError, match=r"and this model has .*window=3"):
        kvshift.load_adapter(shifted("llama", kvshift.KVShiftConfig(window=3)), file)


def test_a_file_is_replaced_at_once(shifted, file) -> None:
    kvshift.save_adapter(shifted("llama", seed=9), file)
    assert os.listdir(file.parent) == [file.name]


def test_saving_what_has_no_taps_is_refused(vanilla, shifted, tmp_path) -> None:
    with pytest.raises(UsageError, match="LlamaForCausalLM has no KV shift; convert it first"):
        kvshift.save_adapter(vanilla("llama"), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="Linear has no KV shift"):
        kvshift.save_adapter(torch.nn.Linear(1, 1), tmp_path / "x.safetensors")
    with pytest.raises(OutputError, match="Cannot write"):
        kvshift.save_adapter(shifted("llama"), tmp_path / "not" / "there.safetensors")
    with pytest.raises(OutputError, match="Cannot write"):
        kvshift.save_adapter(shifted("llama"), tmp_path)
    assert not os.listdir(tmp_path)


def test_missing(vanilla, tmp_path) -> None:
    with pytest.raises(
        UsageError, match=r"does not exist; expected the file that kvshift.save_adapter wrote"
    ):
        kvshift.load_adapter(vanilla("llama"), tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="is a folder; expected the file"):
        kvshift.load_adapter(vanilla("llama"), tmp_path)


def refused(model, path, match: str) -> None:
    shifted_before, kind = is_shifted(model), type(model)
    with pytest.raises(UnsupportedModelError, match=match):
        kvshift.load_adapter(model, path)
    assert is_shifted(model) == shifted_before
    assert type(model) is kind


def test_foreign_files(vanilla, shifted, tmp_path) -> None:
    save_file({"x.lora_A.weight": torch.ones(1)}, tmp_path / "lora.safetensors", metadata={"format": "pt"})
    refused(vanilla("llama"), tmp_path / "lora.safetensors", "is a LoRA adapter without KV shift")
    shifted("llama").save_pretrained(tmp_path)
    refused(
        vanilla("llama"), tmp_path / "model.safetensors", "a file without KV shift; expected what save_ad"
    )
    torch.save({}, tmp_path / "pickle.pt")
    refused(vanilla("llama"), tmp_path / "pickle.pt", "is damaged or no safetensors file")


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:-3], lambda b: b"\xff" * 8 + b[8:], lambda b: b[:8] + b"[" + b[9:]],
)
def test_damaged_files(vanilla, file, damage) -> None:
    file.write_bytes(damage(file.read_bytes()))
    refused(vanilla("llama"), file, "is damaged or no safetensors file")


def test_another_family(vanilla, file) -> None:
    refused(vanilla("mistral"), file, "is of a 'llama' model, and this one is 'mistral'")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers=2, and this one has 3"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=2, and this one has 4"),
        ({"head_dim": 16}, "head_dim=8, and this one has 16"),
        ({"hidden_size": 64}, "hidden_size=32, and this one has 64"),
    ],
)
def test_another_shape(vanilla, file, changes, match) -> None:
    refused(vanilla("llama", **changes), file, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda about: about.update(format=2), "has format 2; this kvshift reads 1. Upgrade"),
        (lambda about: about.pop("format"), "its description cannot be read"),
        (lambda about: about.pop("shift"), "its description cannot be read"),
        (lambda about: about["shift"].update(window=9), "its description cannot be read .*window is 9"),
        (lambda about: about["shift"].update(version=7), "Upgrade kvshift"),
        (lambda about: about["shift"].update(unknown=1), "Unknown KV shift setting"),
        (lambda about: about.update(shape=3), "its description cannot be read"),
        (lambda about: [1], "its description cannot be read"),
        (lambda about: about["shift"].update(window=3), "of shape .2, 2., and .2, 3. is needed"),
    ],
)
def test_a_changed_description(vanilla, file, change, match) -> None:
    rewritten(file, metadata=change)
    refused(vanilla("llama"), file, match)


KEY = "model.layers.0.self_attn.kv_shift.k_weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda held: held.pop(KEY), "holds .*k_weight of shape none, and .2, 2. is needed"),
        (lambda held: held.update({KEY: torch.ones(4, 2)}), "of shape .4, 2., and .2, 2. is needed"),
        (lambda held: held.update(more=torch.ones(1)), "holds more of shape .1,., and none is needed"),
        (lambda held: held.update({KEY: torch.full((2, 2), torch.nan)}), "not made of finite numbers"),
        (lambda held: held.update({KEY: torch.ones(2, 2, dtype=torch.int64)}), "not made of finite numbers"),
    ],
)
def test_changed_taps(vanilla, file, change, match) -> None:
    rewritten(file, tensors=change)
    refused(vanilla("llama"), file, match)


def test_a_wrapped_base_is_refused(vanilla, file) -> None:
    with pytest.raises(UnsupportedModelError, match="not a Hugging Face model; load the adapter before"):
        kvshift.load_adapter(torch.compile(vanilla("llama")), file)


def test_a_compiled_models_taps_are_saved(shifted, vanilla, tmp_path) -> None:
    model = shifted("llama")
    kvshift.save_adapter(torch.compile(model), tmp_path / "taps.safetensors")
    kvshift.load_adapter(vanilla("llama"), tmp_path / "taps.safetensors")
