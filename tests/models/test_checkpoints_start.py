"""How taps start: as asked, by every way a model comes to have them, and never by chance."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import kvshift
from kvshift.errors import UsageError
from kvshift.models import shift_modules
from kvshift.models.derived import shifted_classes
from kvshift.models.families import family_of

STARTS = ("paper", "structured", "identity")
EXPECTED = {
    "identity": ([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]),
    "structured": ([[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]),
}


def check_start(model, init: str) -> None:
    modules = shift_modules(model)
    assert modules
    for taps in modules:
        for weight, index in ((taps.k_weight, 0), (taps.v_weight, 1)):
            assert weight.dtype == torch.float32
            if init == "paper":
                assert torch.allclose(weight.sum(-1), torch.ones(2))
                assert ((weight > 0) & (weight < 1)).all()
                assert not torch.equal(weight.bfloat16().float(), weight)  # not drawn in bfloat16
            else:
                assert torch.equal(weight, torch.tensor(EXPECTED[init][index]))


def shifted_config(plain, init: str):
    classes = shifted_classes(family_of(plain))
    return classes, classes.config(**plain.to_diff_dict(), kv_shift=kvshift.KVShiftConfig(init=init))


@pytest.mark.parametrize("init", STARTS)
def test_convert_takes_the_start_as_a_keyword(family, vanilla, init) -> None:
    model = kvshift.convert(vanilla(family), init=init)
    check_start(model, init)
    assert model.config.kv_shift["init"] == init
    other = kvshift.convert(vanilla(family), kvshift.KVShiftConfig(window=3), init=init)
    assert other.config.kv_shift == kvshift.KVShiftConfig(window=3, init=init).to_dict()


def test_a_start_that_contradicts_the_configuration_is_refused(vanilla) -> None:
    model = vanilla("llama")
    with pytest.raises(UsageError, match="init='identity' contradicts the configuration's init='paper'"):
        kvshift.convert(model, kvshift.KVShiftConfig(init="paper"), init="identity")
    with pytest.raises(UsageError, match="'zero'; expected one of paper, identity, structured"):
        kvshift.convert(model, init="zero")
    with pytest.raises(UsageError, match="contradicts"):
        kvshift.convert(model, kvshift.KVShiftConfig(init="paper", constraint="gate"), init="structured")
    assert model.config.model_type == "llama"
    kvshift.convert(model, kvshift.KVShiftConfig(init="paper"), init="paper")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_identity_changes_no_bit_of_any_step(architecture, vanilla, tokens, dtype, attention) -> None:
    """A full forward, a prefill and cached steps of a pretrained model, before and after."""
    plain = vanilla(architecture, dtype=dtype)
    if attention == "sdpa" and not type(plain)._supports_sdpa:
        pytest.skip(f"{architecture} has no sdpa attention")
    plain.set_attn_implementation(attention)
    batch = tokens(2, 9)

    def everything(model) -> list[torch.Tensor]:
        logits = [model(batch, use_cache=False).logits]
        output = model(batch[:, :6], use_cache=True)
        logits.append(output.logits)
        for column in range(6, 9):
            output = model(batch[:, column : column + 1], past_key_values=output.past_key_values)
            logits.append(output.logits)
        return logits

    before = everything(plain)
    after = everything(kvshift.convert(plain, init="identity"))
    assert all(map(torch.equal, after, before))


WAYS = {
    "plain": {},
    "device_map cpu": {"device_map": "cpu"},
    "device_map auto": {"device_map": "auto"},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, device_map": {"dtype": torch.bfloat16, "device_map": "auto"},
    "low memory": {"low_cpu_mem_usage": True},
}


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("shards", ["1GB", "4KB"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_base_checkpoint_starts_the_taps_as_asked(family, vanilla, tmp_path, way, shards, init) -> None:
    plain = vanilla(family)
    plain.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "4KB")
    classes, config = shifted_config(plain.config, init)
    for model in (
        classes.causal_lm.from_pretrained(tmp_path, config=config, **way),
        AutoModelForCausalLM.from_pretrained(tmp_path, config=config, **way),
    ):
        assert type(model) is classes.causal_lm
        check_start(model, init)
        for name, tensor in plain.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor.to(model.dtype))
    base = AutoModel.from_pretrained(tmp_path, config=config, **way)
    assert type(base) is classes.base_model
    check_start(base, init)


def test_every_family_loads_a_base_checkpoint(architecture, vanilla, tmp_path) -> None:
    """Families whose experts are stored one by one included."""
    plain = vanilla(architecture)
    plain.save_pretrained(tmp_path)
    classes, config = shifted_config(plain.config, "identity")
    model, report = classes.causal_lm.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert all(".kv_shift." in name for name in report["missing_keys"])
    assert not report["unexpected_keys"]
    kept = {name for name in model.state_dict() if ".kv_shift." not in name}
    assert kept == set(plain.state_dict())
    assert all(torch.equal(model.state_dict()[name], plain.state_dict()[name]) for name in kept)


@torch.no_grad()
def test_a_loaded_model_is_its_shifted_type_in_memory_too(family, vanilla, tmp_path) -> None:
    """A configuration that was read from a file carries the file's model_type on itself."""
    vanilla(family).save_pretrained(tmp_path / "plain")
    model = kvshift.convert(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"))
    assert model.config.model_type == f"kvshift_{family}"
    assert model.model.config.model_type == f"kvshift_{family}"
    model.save_pretrained(tmp_path / "shifted")
    assert kvshift.from_pretrained(tmp_path / "shifted").config.model_type == f"kvshift_{family}"
