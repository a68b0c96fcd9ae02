"""Checkpoints on disk that cannot be converted: each refused with the reason, nothing written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DeepseekV3Config

from kvshift.errors import KVShiftError, UnsupportedModelError, UsageError
from kvshift.models import convert_folder


def change_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def change_bytes(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(change(path.read_bytes()))


def refused(folder: Path, match: str, kind: type[KVShiftError] = UnsupportedModelError) -> None:
    beside = sorted(os.listdir(folder.parent))
    with pytest.raises(kind, match=match):
        convert_folder(folder, folder.parent / "out")
    assert sorted(os.listdir(folder.parent)) == beside


@pytest.fixture
def plain(vanilla, tmp_path) -> Path:
    vanilla("llama").save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def sharded(vanilla, tmp_path) -> Path:
    vanilla("llama").save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    return tmp_path / "sharded"


def test_a_path_that_is_no_model(tmp_path) -> None:
    refused(tmp_path / "nowhere", "does not exist; expected a folder with a model", UsageError)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file; expected a folder", UsageError)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no config.json", UsageError)


def test_a_folder_without_weights(plain) -> None:
    (plain / "model.safetensors").unlink()
    refused(plain, "no weights: neither model.safetensors nor", UsageError)
    (plain / "pytorch_model.bin").write_bytes(b"")
    refused(plain, r"pytorch_model\.bin; only safetensors are read.*save it again")


def test_a_converted_checkpoint(shifted, tmp_path) -> None:
    shifted("llama").save_pretrained(tmp_path / "done")
    sentence = r"\(kvshift_llama\) already has KV shift.*Load it with kvshift\.from_pretrained"
    refused(tmp_path / "done", sentence)


def test_taps_under_a_plain_configuration(shifted, vanilla, plain) -> None:
    """Someone wrote the plain name back into the configuration."""
    change_weights(
        plain,
        lambda weights: weights.update({"model.layers.0.self_attn.kv_shift.k_weight": torch.ones(2, 2)}),
    )
    refused(plain, r"holds taps already .*kv_shift\.k_weight")


def test_a_peft_adapter(plain) -> None:
    (plain / "adapter_config.json").write_text("{}")
    refused(plain, "PEFT adapter. Convert the base model.*merge_and_unload")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"auto_map": {"AutoConfig": "x.Y"}}, "its own model code .auto_map.*remove auto_map"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized \(gptq\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantized \(bitsandbytes\)"),
        ({"model_type": "bloom"}, "'bloom' is not supported: nobody has written its entry"),
        ({"model_type": "no_such_model"}, "'no_such_model' is not one that the installed transformers reads"),
        ({"model_type": None}, "is not one that the installed transformers reads"),
        ({"hidden_size": "wide"}, "is not one that the installed transformers reads"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "holds a LlamaForSequenceClassification"),
        ({"hidden_size": 64}, r"has shape \(61, 32\), and by .*config.json it should be \(61, 64\)"),
        (
            {"num_key_value_heads": 4},
            r"k_proj\.weight in model\.safetensors has shape \(16, 32\).*\(32, 32\)",
        ),
        ({"head_dim": 4}, "not of the same model"),
        ({"num_hidden_layers": 3}, r"needs model\.layers\.2\.self_attn"),
        ({"num_hidden_layers": 1}, r"holds model\.layers\.1\.self_attn.*a layer that .* does not have"),
        ({"attention_bias": True}, r"needs model\.layers\.0\.self_attn\.q_proj\.bias"),
        ({"num_attention_heads": 0}, "describes no model that can be built|is not one that"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_configuration(plain, changes, match) -> None:
    change_config(plain, **changes)
    refused(plain, match)


def test_whole_numbers_where_a_weight_should_be(plain) -> None:
    """As many bytes, so that nothing else tells."""
    change_weights(
        plain, lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"].view(torch.int32)})
    )
    refused(plain, r"lm_head\.weight in model\.safetensors holds I32, and the model needs floating-point")


def test_multi_head_latent_attention(tmp_path) -> None:
    DeepseekV3Config().save_pretrained(tmp_path / "mla")
    refused(tmp_path / "mla", "multi-head latent attention")


def test_a_classifier(config, tmp_path) -> None:
    AutoModelForSequenceClassification.from_config(config("llama")).save_pretrained(tmp_path / "classifier")
    refused(tmp_path / "classifier", "expected a LlamaForCausalLM")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00"])
def test_a_configuration_that_is_no_json_object(plain, text) -> None:
    (plain / "config.json").write_text(text)
    refused(plain, "cannot be read|expected a JSON object")


def with_header(content: bytes, change: Callable[[dict], object]) -> bytes:
    """A safetensors file's bytes with its header changed."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def first(header: dict) -> dict:
    return header[next(name for name in header if name != "__metadata__")]


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda content: b"",
        "truncated": lambda content: content[:-7],
        "truncated header": lambda content: content[:100],
        "appended": lambda content: content + b"more",
        "huge header": lambda content: struct.pack("<Q", 2**62) + content[8:],
        "pickle": lambda content: b"\x80\x04." + content,
        "header is no JSON": lambda content: content[:8] + b"#" + content[9:],
        "offsets overlap": lambda content: with_header(
            content, lambda h: first(h).update(data_offsets=[0, 4])
        ),
        "shape too large": lambda content: with_header(
            content, lambda h: first(h).update(shape=[9999, 9999])
        ),
        "unknown dtype": lambda content: with_header(content, lambda h: first(h).update(dtype="Q7")),
        "negative": lambda content: with_header(content, lambda h: first(h).update(shape=[-1])),
    }.values(),
    ids=lambda given: "",
)
def test_a_damaged_file(plain, damage) -> None:
    change_bytes(plain, damage)
    refused(plain, "is damaged or no safetensors file .*Download or save it again")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index.update(weight_map={}), "has no weight_map"),
        (
            lambda index: index["weight_map"].update({"x": "../../etc/passwd"}),
            "expected names of .safetensors",
        ),
        (
            lambda index: index["weight_map"].update({"x": "/model.safetensors"}),
            "expected names of .safetensors",
        ),
        (lambda index: index["weight_map"].update({"x": "model.bin"}), "expected names of .safetensors"),
        (
            lambda index: index["weight_map"].update({"x": "gone.safetensors"}),
            "gone.safetensors, which is not there",
        ),
        (lambda index: index["weight_map"].pop("lm_head.weight"), "needs lm_head.weight, and no file"),
        (
            lambda index: index["weight_map"].update({"x": index["weight_map"]["lm_head.weight"]}),
            "says x is in model-.*, and by the files' headers it is in none",
        ),
    ],
)
def test_an_index(sharded, change, match) -> None:
    change_index(sharded, change)
    refused(sharded, match)


def test_an_index_of_renamed_shards_points_at_the_right_ones(sharded) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    one, other = sorted(set(index.values()))[:2]
    (sharded / one).rename(sharded / "swap")
    (sharded / other).rename(sharded / one)
    (sharded / "swap").rename(sharded / other)
    refused(sharded, "and by the files' headers it is in")


def test_a_tensor_in_two_files(sharded) -> None:
    (sharded / "copy.safetensors").write_bytes(next(sharded.glob("model-00001*")).read_bytes())
    change_index(sharded, lambda index: index["weight_map"].update({"x": "copy.safetensors"}))
    refused(sharded, "and again in")


def test_what_is_refused_here_is_what_the_library_reads(plain) -> None:
    """The fixture itself is good: without a change it converts and loads."""
    convert_folder(plain, plain.parent / "out")
    AutoModelForCausalLM.from_pretrained(plain.parent / "out")
