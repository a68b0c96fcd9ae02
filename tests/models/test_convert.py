"""Conversion in place: what changes, what stays, and what is refused."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import accelerate
import pytest
import torch
from tiny_models import TINY
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    BloomConfig,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3nConfig,
    T5Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import kvshift
from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models import check_supported, is_shifted, shift_modules, supported_architectures


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [2, 4])
def test_identity_leaves_the_logits_bit_for_bit(family, vanilla, tokens, dtype, window) -> None:
    model = vanilla(family, dtype=dtype)
    expected = model(tokens(2, 9)).logits
    converted = kvshift.convert(model, kvshift.KVShiftConfig(init="identity", window=window))
    assert converted is model
    assert torch.equal(model(tokens(2, 9)).logits, expected)


def test_no_other_weight_changes_and_the_taps_come_in_layer_order(family, vanilla) -> None:
    model = vanilla(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kvshift.convert(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    new = [name for name in after if name not in before]
    assert new == [
        f"model.layers.{layer}.self_attn.kv_shift.{part}_weight" for layer in (0, 1) for part in "kv"
    ]
    assert [after[new[0]].shape, after[new[2]].shape] == [(2, 2), (2, 2)]  # KV heads, not query heads
    assert shift_modules(model) == [layer.self_attn.kv_shift for layer in model.model.layers]
    assert is_shifted(model)


def test_grouped_queries_have_one_set_of_taps_a_query_head(family, shifted) -> None:
    taps = shift_modules(shifted(family, kvshift.KVShiftConfig(init="paper", shift_queries=True)))[0]
    assert taps.q_weight.shape == (4, 2)
    assert taps.k_weight.shape == (2, 2)


def test_the_generator_alone_decides_the_taps(family, vanilla) -> None:
    paper = kvshift.KVShiftConfig(init="paper")

    def draw(seed: int) -> list[torch.Tensor]:
        state = torch.random.get_rng_state()
        model = kvshift.convert(copy.deepcopy(whole), paper, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        return [parameter for taps in shift_modules(model) for parameter in taps.parameters()]

    whole = vanilla(family)
    assert all(map(torch.equal, draw(1), draw(1)))
    assert not any(map(torch.equal, draw(1), draw(2)))
    first, second = (taps.k_weight for taps in shift_modules(kvshift.convert(whole, paper)))
    assert not torch.equal(first, second)


def test_taps_stay_float32_in_a_bfloat16_model(family, vanilla, tokens) -> None:
    model = kvshift.convert(vanilla(family, dtype=torch.bfloat16), kvshift.KVShiftConfig(init="paper"))
    assert {parameter.dtype for taps in shift_modules(model) for parameter in taps.parameters()} == {
        torch.float32
    }
    assert model.dtype == torch.bfloat16
    assert model(tokens(1, 5)).logits.dtype == torch.bfloat16
    model.to(torch.float16)
    assert shift_modules(model)[0].k_weight.dtype == torch.float32


def test_a_model_of_bfloat16_built_from_its_configuration_has_float32_taps(family, shifted) -> None:
    made = AutoModelForCausalLM.from_config(shifted(family).config, dtype=torch.bfloat16)
    for taps in shift_modules(made):
        assert taps.k_weight.dtype == torch.float32
        assert not torch.equal(taps.k_weight.bfloat16().float(), taps.k_weight)  # not drawn in bfloat16


@torch.no_grad()
def test_offloaded_taps_are_brought_back_for_their_layer(family, shifted, tokens) -> None:
    """Accelerate keeps weights elsewhere and hooks onto modules as they are called."""
    model, batch = shifted(family), tokens(2, 9)
    expected = model(batch).logits
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert shift_modules(model)[0].k_weight.is_meta
    assert torch.equal(model(batch).logits, expected)


def test_a_shared_configuration_stays_unshifted(config, family) -> None:
    shared = config(family)
    kind = type(AutoModelForCausalLM.from_config(shared))
    one, other = kind(shared), kind(shared)
    assert one.config is other.config
    kvshift.convert(one)
    assert one.config.model_type == f"kvshift_{family}"
    assert other.config.model_type == shared.model_type == family
    assert not hasattr(shared, "kv_shift")
    assert {module.config.model_type for module in one.modules() if hasattr(module, "layer_idx")} == {
        f"kvshift_{family}"
    }


def test_shifted_classes_are_known_to_the_library(family, shifted, vanilla) -> None:
    model = shifted(family)
    assert isinstance(model, type(vanilla(family)))
    assert model.can_generate()
    assert type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    made = AutoConfig.for_model(f"kvshift_{family}")
    assert type(made) is type(model.config)
    assert kvshift.KVShiftConfig.from_dict(made.kv_shift) == kvshift.KVShiftConfig()
    assert type(pickle.loads(pickle.dumps(model.config))) is type(model.config)


@torch.no_grad()
def test_recorded_outputs_of_a_converted_model(family, vanilla, tokens) -> None:
    """The library records layers by class; a converted model's must still be found."""
    model = vanilla(family, attn_implementation="eager")
    batch = tokens(1, 6)
    expected = model(batch, output_hidden_states=True, output_attentions=True)
    for other in (model, vanilla(family, attn_implementation="eager")):
        kvshift.convert(other, kvshift.KVShiftConfig(init="identity"))
        found = other(batch, output_hidden_states=True, output_attentions=True)
        assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
        assert all(map(torch.equal, found.attentions, expected.attentions))
        assert len(found.hidden_states) == 3
        assert len(found.attentions) == 2


def test_supported_architectures() -> None:
    assert supported_architectures() == sorted({model_type for model_type, _ in TINY.values()})


def test_the_guide_lists_every_family() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "families.md"
    listed = guide.read_text(encoding="utf-8").split("## ")[0].split("`model_type`:")[1]
    assert sorted(re.findall(r"`(\w+)`", listed)) == supported_architectures()


def test_check_supported(config, family, shifted) -> None:
    check_supported(config(family))
    with pytest.raises(
        UnsupportedModelError,
        match=r"'bloom' is not supported: nobody has .*families\.md tells how to\. Supported: cohere, ",
    ):
        check_supported(BloomConfig())
    with pytest.raises(UnsupportedModelError, match="'t5' is not supported: it is an encoder–decoder"):
        check_supported(T5Config())
    with pytest.raises(UnsupportedModelError, match=r"Convert the language .* text_config \('gemma3_text'\)"):
        check_supported(Gemma3Config())
    with pytest.raises(UnsupportedModelError, match=r"text_config \('gemma3n_text', which is not supported"):
        check_supported(Gemma3nConfig())
    with pytest.raises(UnsupportedModelError, match="later layers read the keys and values of earlier ones"):
        check_supported(Gemma3nConfig().text_config)
    with pytest.raises(
        UnsupportedModelError, match=r"multi-head latent attention .kv_lora_rank=512.*compressed"
    ):
        check_supported(DeepseekV3Config())
    with pytest.raises(UnsupportedModelError, match=f"'kvshift_{family}' model already has KV shift"):
        check_supported(shifted(family).config)


def test_converting_twice_is_refused(family, shifted) -> None:
    model = shifted(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"cannot be converted twice.*load the model without"):
        kvshift.convert(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_unknown_architecture_is_refused() -> None:
    small = BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=7)
    with pytest.raises(UnsupportedModelError, match="'bloom' is not supported"):
        kvshift.convert(AutoModelForCausalLM.from_config(small))


def test_what_is_no_causal_language_model_is_refused(family, vanilla) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Linear is not a Hugging Face model"):
        kvshift.convert(torch.nn.Linear(1, 1))
    with pytest.raises(UnsupportedModelError, match=r"cannot be converted; expected .*ForCausalLM itself"):
        kvshift.convert(vanilla(family).model)


def test_a_configuration_of_another_kind_is_refused(family, vanilla) -> None:
    with pytest.raises(UsageError, match="expected a KVShiftConfig"):
        kvshift.convert(vanilla(family), {"window": 2})


def test_meta_weights_are_refused(family, config) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(family))
    with pytest.raises(UnsupportedModelError, match="meta device"):
        kvshift.convert(model)


@pytest.mark.parametrize(
    "mark", [{"is_quantized": True}, {"hf_quantizer": object()}], ids=["is_quantized", "hf_quantizer"]
)
def test_quantized_models_are_refused(family, vanilla, mark) -> None:
    """As the library marks them, GPTQ's too."""
    model = vanilla(family)
    vars(model).update(mark)
    with pytest.raises(UnsupportedModelError, match=r"is quantized\. Convert the unquantized model"):
        kvshift.convert(model)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_that_bitsandbytes_quantized_is_refused(vanilla, tmp_path, bits) -> None:
    pytest.importorskip("bitsandbytes")
    vanilla("llama", hidden_size=64).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), device_map="cpu"
    )
    with pytest.raises(UnsupportedModelError, match=r"is quantized\. Convert the unquantized model"):
        kvshift.convert(model)
    assert not is_shifted(model)


def test_weights_that_something_else_quantized_are_refused(vanilla) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    model = vanilla("llama")
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    with pytest.raises(UnsupportedModelError, match=r"sharded or quantized already\. Convert it first"):
        kvshift.convert(model)
    assert not is_shifted(model)


def test_adapters_are_refused(family, vanilla) -> None:
    model = vanilla(family)
    model.peft_config = {"default": object()}
    with pytest.raises(UnsupportedModelError, match="Convert the model first, then add the adapters"):
        kvshift.convert(model)


def test_a_replaced_forward_is_refused_and_nothing_is_changed(family, vanilla) -> None:
    model = vanilla(family)
    attention = model.model.layers[1].self_attn
    attention.forward = attention.forward
    with pytest.raises(UnsupportedModelError, match=r"replaced the forward of model\.layers\.1\.self_attn"):
        kvshift.convert(model)
    assert not is_shifted(model)
    assert model.config.model_type == family
