"""LoRA on k and v: the adapter's part is shifted like the projection's, before and after merging."""

from __future__ import annotations

import pytest
import torch

import kvshift
from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models import shift_modules

peft = pytest.importorskip("peft", reason="PEFT is not installed (pip install peft)")

FUSED = {
    "gpt2": ["c_attn"],
    "phi3": ["qkv_proj"],
    "gpt_neox": ["query_key_value"],
    "falcon-new": ["query_key_value"],
}


def with_lora(model, targets, **options):
    """An adapter that does something: PEFT starts its B at zero."""
    torch.manual_seed(3)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options)
    wrapped = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return wrapped


@torch.no_grad()
def test_merging_changes_no_logit(architecture, shifted, tokens) -> None:
    fused = FUSED.get(architecture)
    model = shifted(architecture)
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = fused or [name for name in ("k_proj", "v_proj") if name in names]
    if not targets:
        targets = ["query_key_value"]
    batch = tokens(2, 9)
    plain = model(batch).logits
    wrapped = with_lora(model, targets)
    on = wrapped(batch).logits
    with wrapped.disable_adapter():
        assert torch.allclose(wrapped(batch).logits, plain, atol=1e-5, rtol=1e-5)
    merged = wrapped.merge_and_unload()
    assert (on - plain).abs().max() > 1e-2  # the adapter does something
    assert torch.allclose(merged(batch).logits, on, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generating_with_the_adapter_equals_generating_merged(family, shifted, tokens) -> None:
    wrapped = with_lora(shifted(family), ["q_proj", "k_proj", "v_proj", "o_proj"])
    batch = tokens(2, 5)
    on = wrapped.generate(input_ids=batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(wrapped.merge_and_unload().generate(batch, max_new_tokens=6, do_sample=False), on)


def changed_by_a_step(wrapped, batch) -> set[str]:
    before = {name: parameter.detach().clone() for name, parameter in wrapped.named_parameters()}
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    wrapped.train()
    wrapped(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    return {
        name for name, parameter in wrapped.named_parameters() if not torch.equal(parameter, before[name])
    }


def test_a_step_changes_the_adapter_alone(family, shifted, tokens) -> None:
    wrapped = with_lora(shifted(family), ["k_proj", "v_proj"])
    changed = changed_by_a_step(wrapped, tokens(2, 9))
    assert changed == {
        f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_{part}.default.weight"
        for layer in (0, 1)
        for name in "kv"
        for part in "AB"
    }


def test_taps_train_beside_the_adapter_where_asked(family, shifted, vanilla, tokens, tmp_path) -> None:
    """`modules_to_save`: PEFT keeps a trained copy of the taps in its own file."""
    model = shifted(family)
    wrapped = with_lora(model, ["k_proj", "v_proj"], modules_to_save=["kv_shift"])
    changed = changed_by_a_step(wrapped, tokens(2, 9))
    assert len([name for name in changed if "kv_shift.modules_to_save" in name]) == 4
    assert not [name for name in changed if "original_module" in name]
    wrapped.eval()
    with torch.no_grad():
        on = wrapped(tokens(2, 9)).logits
    wrapped.save_pretrained(tmp_path / "lora")
    again = peft.PeftModel.from_pretrained(shifted(family), tmp_path / "lora").eval()
    with torch.no_grad():
        assert torch.equal(again(tokens(2, 9)).logits, on)
        merged = again.merge_and_unload()
        assert torch.allclose(merged(tokens(2, 9)).logits, on, atol=1e-5, rtol=1e-5)
    assert len(shift_modules(merged)) == 2
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        loaded = kvshift.from_pretrained(tmp_path / "merged")
        assert torch.equal(loaded(tokens(2, 9)).logits, merged(tokens(2, 9)).logits)


def test_a_peft_model_is_not_converted(vanilla) -> None:
    wrapped = with_lora(vanilla("llama"), ["k_proj", "v_proj"])
    for model in (wrapped, wrapped.base_model.model):
        with pytest.raises(UnsupportedModelError, match="Convert the model first, then add the adapters"):
            kvshift.convert(model)


def test_a_model_with_leftover_lora_layers_is_not_converted(vanilla) -> None:
    """`inject_adapter_in_model` leaves no `peft_config` where it is looked for."""
    model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["k_proj"]), vanilla("llama"))
    model.__dict__.pop("peft_config", None)
    with pytest.raises(UnsupportedModelError, match="adapters"):
        kvshift.convert(model)


def test_taps_of_a_peft_model_are_saved(shifted, vanilla, tokens, tmp_path) -> None:
    model = shifted("llama")
    expected = [taps.k_weight.clone() for taps in shift_modules(model)]
    kvshift.save_adapter(with_lora(model, ["k_proj"]), tmp_path / "taps.safetensors")
    loaded = kvshift.load_adapter(vanilla("llama"), tmp_path / "taps.safetensors")
    assert all(map(torch.equal, [taps.k_weight for taps in shift_modules(loaded)], expected))


def test_trained_copies_of_taps_are_saved_from_the_merged_model(shifted, tmp_path) -> None:
    wrapped = with_lora(shifted("llama"), ["k_proj"], modules_to_save=["kv_shift"])
    with pytest.raises(UsageError, match="merge_and_unload"):
        kvshift.save_adapter(wrapped, tmp_path / "taps.safetensors")
    kvshift.save_adapter(wrapped.merge_and_unload(), tmp_path / "taps.safetensors")
