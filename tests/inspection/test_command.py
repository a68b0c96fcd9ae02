"""`kvshift inspect`, and finding and loading what it is given."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import kvshift
from kvshift.cli import app, main
from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.inspection import Inspection
from kvshift.inspection.load import find_model, load_model


def model(shifted: bool = True, **changes):
    values = {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**{**values, **changes}))
    return kvshift.convert(made) if shifted else made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def run(*arguments: str):
    done = CliRunner().invoke(app, ["inspect", *arguments, "--sequences", "2"], env={"COLUMNS": "100"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_tables_json_and_picture(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "out"
    done = run(str(saved), "--out", str(out), "--plot", "png")
    assert done.exit_code == 0
    assert "induction quadrant" in done.stdout
    assert "inspection.json" in done.stdout
    assert sorted(os.listdir(out)) == ["inspection.json", "inspection.png"]
    found = Inspection.model_validate_json((out / "inspection.json").read_text())
    assert found.version == 1
    assert found.taps.quadrants["previous_current"] == 2
    assert found.model.name == str(saved)
    assert len(found.induction.heads) == 8


def test_json_is_all_there_is_on_standard_output(saved: Path, tmp_path: Path) -> None:
    done = run(str(saved), "--json")
    assert json.loads(done.stdout)["model"]["architecture"] == "KVShiftLlamaForCausalLM"
    again = run(str(saved), "--json", "--out", str(tmp_path / "out"))
    assert again.stdout == done.stdout == (tmp_path / "out" / "inspection.json").read_text()


def test_the_picture_is_written_here_without_out(saved: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert run(str(saved), "--plot", "svg", "--no-induction").exit_code == 0
    assert (tmp_path / "inspection.svg").read_text().startswith("<?xml")
    assert not (tmp_path / "inspection.json").exists()


def test_a_vanilla_model(tmp_path: Path) -> None:
    model(shifted=False).save_pretrained(tmp_path / "vanilla")
    found = Inspection.model_validate_json(run(str(tmp_path / "vanilla"), "--json").stdout)
    assert found.taps is None
    assert found.shift is None
    assert "no KV shift" in found.notes[0]
    assert len(found.induction.heads) == 8


def test_a_runs_folder_and_its_recorded_start(tmp_path: Path) -> None:
    run_folder = tmp_path / "runs" / "one"
    made = kvshift.convert(model(shifted=False), kvshift.KVShiftConfig(init="paper"))
    made.save_pretrained(run_folder / "final")
    keys, values = (
        [getattr(layer.self_attn.kv_shift, name).detach().tolist() for layer in made.model.layers]
        for name in ("k_weight", "v_weight")
    )
    keys[1][2][0] += 0.5
    point = {"event": "taps", "step": 0, "tokens": 0, "keys": keys, "values": values}
    recipe = {"data": "d", "model": {"model_type": "llama"}, "shift": {}, "tokens": 10}
    (run_folder / "recipe.json").write_text(json.dumps(recipe))
    (run_folder / "record.jsonl").write_text(json.dumps(point) + "\n")
    found = Inspection.model_validate_json(run(str(run_folder), "--json", "--no-induction").stdout)
    assert found.taps.largest_move == pytest.approx(0.5)
    assert "recorded" in found.taps.start


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "neither a folder nor in the local Hugging Face cache"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "no config.json"),
        (lambda path: (path.mkdir(), (path / "recipe.json").write_text("{}")), "has not finished"),
        (lambda path: (path / "runs" / "d48-L2-kvshift-seed0" / "final").mkdir(parents=True), "name one"),
        (lambda path: (path.mkdir(), (path / "adapter_config.json").write_text("{}")), "adapter"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), "cannot be loaded"),
    ],
)
def test_what_is_not_a_model(prepare, said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "given")
    assert main(["inspect", "given"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_path_that_does_not_exist(capsys) -> None:
    assert main(["inspect", "/no/such/folder"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_hub_name_is_not_downloaded(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["inspect", "someone/some-model"]) == 2
    assert "hf download someone/some-model" in capsys.readouterr().err


def test_a_hub_name_with_half_a_model_in_the_cache_is_not_completed(tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "models--someone--half" / "snapshots" / ("0" * 40)
    model(shifted=False).config.save_pretrained(snapshot)
    (tmp_path / "models--someone--half" / "refs").mkdir()
    (tmp_path / "models--someone--half" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="hf download someone/half"):
        load_model("someone/half")


def test_a_cached_model_is_found_by_its_name(tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "models--someone--whole" / "snapshots" / ("0" * 40)
    model().save_pretrained(snapshot)
    (tmp_path / "models--someone--whole" / "refs").mkdir()
    (tmp_path / "models--someone--whole" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = Inspection.model_validate_json(run("someone/whole", "--json", "--no-induction").stdout)
    assert found.model.name == "someone/whole"
    assert len(found.taps.heads) == 8


def test_an_adapter_beside_a_model_does_not_send_elsewhere(saved: Path) -> None:
    (saved / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(UsageError, match="merge it"):
        load_model(str(saved))


def _edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_an_unknown_architecture(saved: Path, capsys) -> None:
    _edit_config(saved, model_type="no_such_model", architectures=["NoSuchModel"])
    assert main(["inspect", str(saved)]) == 4
    assert "no_such_model" in capsys.readouterr().err


def test_a_model_with_code_of_its_own(saved: Path, capsys) -> None:
    _edit_config(
        saved, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    )
    (saved / "own.py").write_text("raise SystemExit('ran foreign code')")
    assert main(["inspect", str(saved)]) == 4
    assert "code of its own" in capsys.readouterr().err


def test_a_quantized_model(tmp_path: Path, capsys) -> None:
    model(shifted=False).save_pretrained(tmp_path)
    _edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert main(["inspect", str(tmp_path)]) == 4
    assert "quantized" in capsys.readouterr().err


def test_no_causal_language_model(tmp_path: Path, capsys) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 4
    assert "causal language model" in capsys.readouterr().err


def test_missing_weights_are_not_left_to_chance(tmp_path: Path, capsys) -> None:
    model(shifted=False).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert main(["inspect", str(tmp_path)]) == 2
    assert "v_proj" in capsys.readouterr().err


def test_a_damaged_file(saved: Path, capsys) -> None:
    (saved / "model.safetensors").write_bytes(b"\xff" * 100)
    assert main(["inspect", str(saved)]) in (2, 4)
    assert "Traceback" not in capsys.readouterr().err


def test_no_weights(saved: Path, capsys) -> None:
    (saved / "model.safetensors").unlink()
    assert main(["inspect", str(saved)]) in (2, 4)
    assert capsys.readouterr().err.startswith("Error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plot", "gif"], "expected one of png, svg"),
        (["--device", "tpu"], "expected one of auto, cpu, cuda"),
        (["--sequences", "0"], "--sequences 0"),
        (["--length", "1"], "--length 1"),
        (["--seed", "-1"], "--seed -1"),
        (["--length", "61"], "expected 2 to 60"),
    ],
)
def test_nonsense_is_refused(saved: Path, arguments: list[str], said: str, capsys) -> None:
    assert main(["inspect", str(saved), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_output_folder_that_cannot_be(saved: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["inspect", str(saved), "--out", str(tmp_path / "file" / "out")]) == 5
    assert "choose another folder" in capsys.readouterr().err
    assert main(["inspect", str(saved), "--out", str(tmp_path / "file")]) == 5


def test_a_plot_is_refused_before_the_model_is_loaded(saved: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("kvshift.inspection.load.load_model", None)
    assert main(["inspect", str(saved), "--plot", "png"]) == 2
    assert "pip install 'kvshift[plots]'" in capsys.readouterr().err


def test_loading_by_function(saved: Path) -> None:
    assert find_model(str(saved)) == str(saved)
    assert not load_model(str(saved)).training
    with pytest.raises(UsageError):
        load_model(str(saved / "nothing"))
    _edit_config(saved, model_type="no_such_model", architectures=["NoSuchModel"])
    with pytest.raises(UnsupportedModelError):
        load_model(str(saved))
