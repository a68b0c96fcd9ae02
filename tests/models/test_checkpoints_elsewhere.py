"""A converted checkpoint is never a plain model to a program that does not know KV shift."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

import kvshift
from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models import shift_modules

WITHOUT_KVSHIFT = """
import json, sys
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import pipeline
folder = sys.argv[1]
ways = {
    "config": lambda: AutoConfig.from_pretrained(folder),
    "auto": lambda: AutoModelForCausalLM.from_pretrained(folder),
    "auto trusting": lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    "forced": lambda: LlamaForCausalLM.from_pretrained(folder),
    "forced config": lambda: LlamaConfig.from_pretrained(folder),
    "pipeline": lambda: pipeline("text-generation", folder),
    "tokenizer": lambda: AutoTokenizer.from_pretrained(folder)("a b")["input_ids"],
}
said = {}
for name, way in ways.items():
    try:
        said[name] = [None, repr(way())]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
assert "kvshift" not in sys.modules
print(json.dumps(said))
"""


@pytest.fixture
def folder(shifted, tmp_path):
    shifted("llama").save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    return tmp_path


def test_without_kvshift_no_way_of_loading_succeeds(folder) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KVSHIFT, str(folder)], capture_output=True, text=True, timeout=120
    )
    said = json.loads(done.stdout.splitlines()[-1])
    tokenizer = said.pop("tokenizer")
    assert tokenizer[0] is None, tokenizer  # text can be prepared without kvshift
    for name, (error, message) in said.items():
        assert error is not None, f"{name} gave {message}"
    for name in ("config", "auto", "pipeline"):
        assert "kvshift_llama" in said[name][1]
    for name in ("forced", "forced config"):
        assert "import kvshift" in said[name][1]


@pytest.mark.parametrize("plain", [LlamaForCausalLM, MistralForCausalLM, LlamaConfig])
def test_a_plain_class_refuses_the_folder_with_the_fix(folder, plain) -> None:
    with pytest.raises(Exception, match=r"import kvshift, then load it as .*KVShiftLlamaForCausalLM"):
        plain.from_pretrained(folder)


def test_every_family_refuses_its_shifted_folder(architecture, vanilla, shifted, tmp_path) -> None:
    shifted(architecture).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="import kvshift, then load it as"):
        type(vanilla(architecture)).from_pretrained(tmp_path)


def test_a_configuration_forced_on_the_folder_at_least_reports_the_taps(folder, config) -> None:
    """The one way around: `config=` keeps the library from reading the folder's. Known, and in the guide."""
    _, report = LlamaForCausalLM.from_pretrained(folder, config=config("llama"), output_loading_info=True)
    assert {name.rsplit(".", 1)[1] for name in report["unexpected_keys"]} == {"k_weight", "v_weight"}


def test_the_seal_is_on_the_file_alone(family, shifted, tmp_path) -> None:
    model = shifted(family)
    model.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.hidden_size == model.config.hidden_size == 32
    assert "hidden_size" not in {
        name for name, value in loaded.to_dict().items() if value != model.config.to_dict()[name]
    }
    assert json.loads(loaded.to_json_string())["hidden_size"] == 32
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hidden_size"].startswith("32 of a model with KV shift")
    assert type(loaded).from_dict(written).hidden_size == 32


def test_a_folder_without_the_seal_still_loads(shifted, tmp_path) -> None:
    model = shifted("llama")
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "hidden_size": 32}))
    assert kvshift.from_pretrained(tmp_path).config.hidden_size == 32


def test_another_text_is_no_seal(shifted, tmp_path) -> None:
    model = shifted("llama")
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "hidden_size": "many"}))
    with pytest.raises(Exception, match="hidden_size"):
        kvshift.from_pretrained(tmp_path)


@pytest.mark.parametrize("way", [{}, {"device_map": "auto"}, {"device_map": "cpu", "dtype": torch.bfloat16}])
@torch.no_grad()
def test_sharded_checkpoints_round_trip_through_the_auto_classes(
    family, shifted, tokens, tmp_path, way
) -> None:
    model = shifted(family)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert not list((tmp_path / "sharded").glob("*.bin"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded", **way)
    for mine, theirs in zip(shift_modules(loaded), shift_modules(model), strict=True):
        assert torch.equal(mine.k_weight, theirs.k_weight)
        assert torch.equal(mine.v_weight, theirs.v_weight)
    batch = tokens(2, 7)
    whole = kvshift.from_pretrained(tmp_path / "whole", dtype=loaded.dtype)
    assert torch.equal(loaded(batch).logits, whole(batch).logits)
    if loaded.dtype == model.dtype:
        assert torch.equal(loaded(batch).logits, model(batch).logits)


def test_every_family_round_trips(architecture, shifted, tmp_path) -> None:
    model = shifted(architecture)
    model.save_pretrained(tmp_path)
    loaded, report = kvshift.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_pickled_weights_are_not_read(shifted, tmp_path) -> None:
    model = shifted("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        kvshift.from_pretrained(tmp_path)


def test_a_tokenizer_loads_beside_the_model(folder) -> None:
    assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"] == [0, 1]


def test_a_path_without_a_model_is_refused(shifted, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for name in ("empty", "file", "nowhere", "other"):
        with pytest.raises(UsageError, match=r"No model can be loaded from .*Expected a folder"):
            kvshift.from_pretrained(tmp_path / name, local_files_only=True)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:-9], lambda b: b"\xff" * 8 + b[8:], lambda b: b[:8] + b"#" + b[9:]],
    ids=["empty", "truncated", "huge header", "header is no JSON"],
)
@pytest.mark.parametrize("load", [kvshift.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_damaged_file_is_named_as_such(shifted, tmp_path, damage, load) -> None:
    shifted("llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnsupportedModelError, match=r"is damaged .*Download or save it again"):
        load(tmp_path)
