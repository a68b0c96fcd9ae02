"""`kvshift convert`: from the command line to a folder that loads, or to one line and an exit code."""

from __future__ import annotations

import pytest
from tiny_models import make_vanilla

import kvshift
from kvshift.cli import main


@pytest.fixture
def plain(tmp_path, capsys):
    make_vanilla("llama").save_pretrained(tmp_path / "plain", max_shard_size="8KB")
    capsys.readouterr()  # the library's own progress
    return tmp_path / "plain"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["convert", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_folder_that_loads(capsys, plain, tmp_path) -> None:
    code, out, err = run(capsys, plain, tmp_path / "out")
    assert (code, err) == (0, "")
    assert "kvshift_llama, 16 taps in 2 layers, 0.00 GB of weights" in out
    assert "start structured: until it is trained on, the model answers otherwise than before" in out
    model = kvshift.from_pretrained(tmp_path / "out")
    assert model.config.kv_shift == kvshift.KVShiftConfig().to_dict()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--init", "identity"], {"init": "identity"}),
        (
            ["--init", "paper", "--window", "3", "--queries"],
            {"init": "paper", "window": 3, "shift_queries": True},
        ),
        (["--constraint", "gate"], {"constraint": "gate", "init": "paper"}),
        (["--no-values", "--per-channel"], {"shift_values": False, "per_channel": True}),
        (["--no-keys", "--constraint", "clamp"], {"shift_keys": False, "constraint": "clamp"}),
    ],
)
def test_the_options_make_the_configuration(capsys, plain, tmp_path, options, expected) -> None:
    assert run(capsys, plain, tmp_path / "out", *options)[0] == 0
    model = kvshift.from_pretrained(tmp_path / "out")
    assert model.config.kv_shift == kvshift.KVShiftConfig(**expected).to_dict()


def test_the_seed_decides_the_papers_draw(capsys, plain, tmp_path) -> None:
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(capsys, plain, tmp_path / name, "--init", "paper", "--seed", seed)
        taps = kvshift.from_pretrained(tmp_path / name).model.layers[0].self_attn.kv_shift
        drawn[name] = taps.k_weight.tolist()
    assert drawn["a"] == drawn["b"] != drawn["c"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "out"], 2, "nowhere does not exist"),
        (["plain", "plain"], 5, "exists already"),
        (["plain", "out", "--window", "5"], 2, "--window 5: expected a whole number from 2 to 4"),
        (["plain", "out", "--init", "zero"], 2, "--init 'zero': expected one of identity, structured, paper"),
        (["plain", "out", "--constraint", "hard"], 2, "--constraint 'hard'"),
        (["plain", "out", "--no-keys", "--no-values"], 2, "at least one of keys, values and queries"),
        (["plain", "out", "--constraint", "gate", "--init", "identity"], 2, "'paper' with constraint='gate'"),
        (["plain"], 2, "Missing argument"),
    ],
)
def test_one_line_and_an_exit_code(capsys, plain, tmp_path, monkeypatch, arguments, code, message) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
