"""Conversion on disk: the same folder as loading, converting and saving gives, at once whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import kvshift
from kvshift.errors import OutputError
from kvshift.models import convert_folder, disk

PAPER = kvshift.KVShiftConfig(init="paper")
SHIFTS = {
    "default": kvshift.KVShiftConfig(),
    "paper": PAPER,
    "identity": kvshift.KVShiftConfig(init="identity", window=3),
    "all of it": kvshift.KVShiftConfig(init="paper", window=4, shift_queries=True, per_channel=True),
    "gate": kvshift.KVShiftConfig(init="paper", constraint="gate"),
    "values only": kvshift.KVShiftConfig(shift_keys=False),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return found


def in_memory(source: Path, target: Path, shift: kvshift.KVShiftConfig) -> None:
    model = AutoModelForCausalLM.from_pretrained(source)
    kvshift.convert(model, shift, generator=seeded()).save_pretrained(target)


def check_equal(made: Path, expected: Path) -> None:
    assert (made / "config.json").read_text() == (expected / "config.json").read_text()
    mine, theirs = tensors(made), tensors(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize("shards", ["1GB", "8KB"], ids=["one file", "sharded"])
def test_every_family_as_in_memory(architecture, vanilla, tmp_path, shards) -> None:
    vanilla(architecture).save_pretrained(tmp_path / "plain", max_shard_size=shards)
    before = {path: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    done = convert_folder(tmp_path / "plain", tmp_path / "disk", PAPER, generator=seeded())
    in_memory(tmp_path / "plain", tmp_path / "memory", PAPER)
    check_equal(tmp_path / "disk", tmp_path / "memory")
    assert {path: path.read_bytes() for path in (tmp_path / "plain").iterdir()} == before
    _, report = kvshift.from_pretrained(tmp_path / "disk", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    held = tensors(tmp_path / "disk")
    assert done.bytes == sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    assert done.taps == sum(tensor.numel() for name, tensor in held.items() if ".kv_shift." in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_every_shift_as_in_memory(family, vanilla, tmp_path, shift, dtype) -> None:
    vanilla(family, dtype=dtype).save_pretrained(tmp_path / "plain", max_shard_size="8KB")
    convert_folder(tmp_path / "plain", tmp_path / "disk", shift, generator=seeded())
    in_memory(tmp_path / "plain", tmp_path / "memory", shift)
    check_equal(tmp_path / "disk", tmp_path / "memory")
    model = kvshift.from_pretrained(tmp_path / "disk")
    assert model.dtype == dtype
    assert model.config.kv_shift == shift.to_dict()


@torch.no_grad()
def test_identity_on_disk_gives_the_plain_models_logits(family, vanilla, tokens, tmp_path) -> None:
    plain = vanilla(family, dtype=torch.bfloat16)
    plain.save_pretrained(tmp_path / "plain")
    convert_folder(tmp_path / "plain", tmp_path / "disk", kvshift.KVShiftConfig(init="identity"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "disk")
    assert torch.equal(loaded(tokens(2, 8)).logits, plain(tokens(2, 8)).logits)


def test_one_file_is_renamed_so_that_the_taps_are_read_with_it(vanilla, tmp_path) -> None:
    vanilla("llama").save_pretrained(tmp_path / "plain")
    convert_folder(tmp_path / "plain", tmp_path / "disk")
    assert {path.name for path in (tmp_path / "disk").glob("*.safetensors*")} == {
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "kv_shift.safetensors",
    }
    index = json.loads((tmp_path / "disk" / "model.safetensors.index.json").read_text())
    held = tensors(tmp_path / "disk")
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"] == {
        "total_parameters": sum(tensor.numel() for tensor in held.values()),
        "total_size": sum(tensor.numel() * tensor.element_size() for tensor in held.values()),
    }


def test_names_without_the_base_models_prefix(vanilla, tmp_path) -> None:
    """As in checkpoints saved from the base model, GPT-2's on the hub among them."""
    plain = vanilla("gpt2")
    plain.transformer.save_pretrained(tmp_path / "plain")
    convert_folder(tmp_path / "plain", tmp_path / "disk", PAPER, generator=seeded())
    expected = kvshift.convert(plain, PAPER, generator=seeded()).state_dict()
    loaded, report = kvshift.from_pretrained(tmp_path / "disk", output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_tokenizer_and_settings_come_along_and_code_does_not(vanilla, tmp_path) -> None:
    source = tmp_path / "plain"
    vanilla("llama").save_pretrained(source)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "README.md",
    ):
        (source / name).write_text(f"{name}'s")
    for name in ("modeling_llama.py", "pytorch_model.bin", ".hidden", "optimizer.pt", "extra.index.json"):
        (source / name).write_text("not to be copied")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("tools")
    (source / "runs").mkdir()
    convert_folder(source, tmp_path / "disk")
    names = {path.name for path in (tmp_path / "disk").iterdir()}
    assert names == {
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "README.md"),
        *("additional_chat_templates", "config.json", "generation_config.json", "kv_shift.safetensors"),
        *("model-00001-of-00001.safetensors", "model.safetensors.index.json"),
    }
    assert (tmp_path / "disk" / "tokenizer.model").read_text() == "tokenizer.model's"


def test_links_into_a_cache_are_followed(vanilla, tmp_path) -> None:
    vanilla("llama").save_pretrained(tmp_path / "blobs")
    (tmp_path / "plain").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "plain" / path.name).symlink_to(path)
    convert_folder(tmp_path / "plain", tmp_path / "disk")
    assert not any(path.is_symlink() for path in (tmp_path / "disk").iterdir())


def test_progress_comes_in_bytes(vanilla, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(disk, "_BLOCK", 4096)
    vanilla("llama").save_pretrained(tmp_path / "plain", max_shard_size="8KB")
    said: list[tuple[int, int]] = []
    convert_folder(tmp_path / "plain", tmp_path / "disk", on_progress=lambda *now: said.append(now))
    total = sum(path.stat().st_size for path in (tmp_path / "plain").glob("*.safetensors"))
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1] == (total, total)
    assert len(said) > len(list((tmp_path / "plain").glob("*.safetensors")))


def test_the_global_generator_is_left_alone(vanilla, tmp_path) -> None:
    vanilla("llama").save_pretrained(tmp_path / "plain")
    state = torch.random.get_rng_state()
    convert_folder(tmp_path / "plain", tmp_path / "disk", PAPER, generator=seeded())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_existing_destination_is_refused(vanilla, tmp_path) -> None:
    vanilla("llama").save_pretrained(tmp_path / "plain")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "plain", "link"):
        with pytest.raises(OutputError, match="exists already; name a new folder"):
            convert_folder(tmp_path / "plain", tmp_path / name)
    with pytest.raises(OutputError, match="is not a folder; make it first"):
        convert_folder(tmp_path / "plain", tmp_path / "not" / "there")


class Stop(BaseException):
    pass


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), Stop()], ids=["full", "stopped"])
def test_nothing_half_written_is_left(vanilla, tmp_path, failure) -> None:
    vanilla("llama").save_pretrained(tmp_path / "plain", max_shard_size="8KB")

    def fail(done: int, total: int) -> None:
        assert len(os.listdir(tmp_path)) == 2  # it is being written beside its place
        if done > total / 2:
            raise failure

    expected = OutputError if isinstance(failure, OSError) else Stop
    with pytest.raises(expected):
        convert_folder(tmp_path / "plain", tmp_path / "disk", on_progress=fail)
    assert os.listdir(tmp_path) == ["plain"]


def test_too_small_a_disk_is_noticed_before_anything_is_written(vanilla, tmp_path, monkeypatch) -> None:
    vanilla("llama").save_pretrained(tmp_path / "plain")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and Usage())
    with pytest.raises(OutputError, match=r"needs 0\.00 GB, and the disk of .* has 0\.00 GB free"):
        convert_folder(tmp_path / "plain", tmp_path / "disk")
    assert os.listdir(tmp_path) == ["plain"]


class Usage:
    free = 10
