from __future__ import annotations

import json

import pytest
import torch
from transformers import BloomConfig, DeepseekV3Config, GPT2Config, LlamaConfig

from kvshift import cli
from kvshift.errors import UnsupportedModelError
from kvshift.inspection import doctor
from kvshift.inspection.doctor import Check, examine
from kvshift.inspection.tiny import tiny_config, tiny_model
from kvshift.kernels import dispatch
from kvshift.models import families, is_shifted
from kvshift.shift import KVShiftConfig

NAMES = [family.name for family in families.FAMILIES]


@pytest.fixture(params=families.FAMILIES, ids=NAMES)
def family(request) -> families.Family:
    return request.param


def test_every_family_is_healthy_at_its_published_default_size(family) -> None:
    config = family.config()
    found = examine(config)
    assert found.healthy
    refused = {
        check.name for check in found.checks if check.refused and "the library cannot" not in check.refused
    }
    allowed = set() if family.packs else {"packed documents"}
    assert refused == (allowed if family.chunks else {*allowed, "prompt in chunks"})
    assert all(check.passed for check in found.checks if not check.refused)
    assert found.shifted_layers
    assert found.added_parameters == 4 * found.kv_heads * len(found.shifted_layers)
    assert found.query_heads == config.num_attention_heads


def test_a_tiny_copy_keeps_every_kind_of_layer(family) -> None:
    config = family.config()
    small = tiny_config(config)
    assert type(small) is type(config)
    for name in ("layer_types", "no_rope_layers"):
        if kinds := getattr(config, name, None):
            assert set(getattr(small, name)) == set(kinds)
    model = tiny_model(small)
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
    with torch.no_grad():
        assert model(torch.randint(1, 61, (1, 9))).logits.std() > 0.05


def test_numbers_of_a_known_model() -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    found = examine(config, KVShiftConfig(window=3, shift_queries=True))
    layer = 64 * 16 * (8 + 2 + 2 + 8) + 3 * 64 * 96 + 2 * 64
    assert found.parameters == 100 * 64 + 3 * layer + 64
    assert found.added_parameters == 3 * 3 * (2 + 2 + 8)
    assert found.state_bytes == 2 * 3 * 2 * (2 + 2 + 8) * 16
    assert found.cache_bytes_per_token == 2 * 3 * 2 * 2 * 16
    assert examine(config, KVShiftConfig(per_channel=True)).added_parameters == 3 * 2 * (2 + 2) * 16
    assert examine(config, KVShiftConfig(shift_values=False)).added_parameters == 3 * 2 * 2


def test_what_cannot_be_shifted_says_why() -> None:
    with pytest.raises(UnsupportedModelError, match="'bloom' is not supported"):
        examine(BloomConfig())
    with pytest.raises(UnsupportedModelError, match="multi-head latent attention"):
        examine(DeepseekV3Config())
    with pytest.raises(UnsupportedModelError, match="attends to an encoder"):
        examine(GPT2Config(add_cross_attention=True))


@pytest.mark.parametrize(("backend", "leaking"), [("auto", "shift_rotary"), ("definition", "shift")])
def test_a_leak_makes_it_sick(monkeypatch, backend, leaking) -> None:
    """The checks can fail: here nothing stops a row from reading across the beginning of a sequence.

    Neither in layers that run as one piece, nor where the family's own forward runs.
    """
    original = getattr(dispatch, leaking)
    monkeypatch.setattr(
        dispatch,
        leaking,
        lambda *args, **kwargs: original(*args, **{**kwargs, "starts": None}),
    )
    with dispatch.forced(backend):
        found = examine(LlamaConfig())
    wrong = {check.name for check in found.checks if not check.passed}
    assert not found.healthy
    assert {"packed documents", "padding on the left"} <= wrong


def test_forgotten_state_makes_it_sick(monkeypatch) -> None:
    monkeypatch.setattr("kvshift.models.attention.read_state", lambda cache, layer: None)
    wrong = {check.name for check in examine(LlamaConfig()).checks if not check.passed}
    assert {"decoding with a cache", "prompt in chunks", "beam search", "static cache"} <= wrong
    assert "packed documents" not in wrong


def test_an_error_of_the_library_is_told_not_hidden(monkeypatch) -> None:
    def broken(model, tokens):
        if only_shifted and not is_shifted(model):
            return torch.ones(1), torch.ones(1)
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(doctor, "_beams", broken)
    only_shifted = True
    found = examine(LlamaConfig())
    assert not found.healthy
    (check,) = [check for check in found.checks if not check.passed]
    assert (check.name, check.failed) == ("beam search", "RuntimeError: shapes do not fit")
    only_shifted = False
    found = examine(LlamaConfig())
    assert found.healthy
    (check,) = [check for check in found.checks if not check.passed]
    assert check.refused == "the library cannot, shifted or not: RuntimeError: shapes do not fit"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantized \(gptq\)\. Convert",
        ),
        ({"auto_map": {"AutoConfig": "x.Y"}}, "brings its own model code"),
    ],
)
def test_what_convert_refuses_is_refused_here(changes, said) -> None:
    with pytest.raises(UnsupportedModelError, match=f"This 'llama' model .*{said}"):
        examine(LlamaConfig(**changes))


def test_a_refusal_is_neither_pass_nor_failure() -> None:
    check = Check(name="any", error=None, refused="cannot")
    assert not check.passed
    assert not Check(name="any", error=2e-4).passed


def test_command(tmp_path, capsys) -> None:
    file = tmp_path / "config.json"
    LlamaConfig(num_hidden_layers=3).save_pretrained(tmp_path)
    assert cli.main(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "all 3" in said
    assert "kvshift.convert takes this model" in said
    assert "WRONG" not in said
    assert cli.main(["doctor", str(file), "--json", "--window", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["added_parameters"] == 3 * 32 * 6
    assert {check["name"] for check in found["checks"]} >= {"beam search", "static cache"}


def test_command_on_what_it_cannot_take(tmp_path, capsys, monkeypatch) -> None:
    assert cli.main(["doctor", str(tmp_path / "nowhere" / "at" / "all")]) == 2
    BloomConfig().save_pretrained(tmp_path)
    assert cli.main(["doctor", str(tmp_path)]) == 4
    assert "'bloom' is not supported" in capsys.readouterr().err.replace("\n", " ")
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    assert cli.main(["doctor", str(tmp_path)]) == 4
    (tmp_path / "config.json").write_text("{")
    assert cli.main(["doctor", str(tmp_path)]) == 2
    capsys.readouterr()
    LlamaConfig().save_pretrained(tmp_path)
    monkeypatch.setattr("kvshift.models.attention.read_state", lambda cache, layer: None)
    assert cli.main(["doctor", str(tmp_path)]) == 4
    assert "Do not use KV shift with this model" in capsys.readouterr().out
