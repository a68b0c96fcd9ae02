from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kvshift
from kvshift.cli import main, values
from kvshift.cli.pilot import resume_line
from kvshift.errors import (
    BudgetError,
    DataError,
    OutputError,
    RunsFailedError,
    UnsupportedModelError,
    UsageError,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(kvshift.__file__).parents[1]), "COLUMNS": "200"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvshift", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; sys.argv = ['kvshift']; from kvshift.cli import main; code = main(['pilot', '--help']);"
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
    assert "--budget" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch brings another OpenMP")
def test_waiting_threads_soon_sleep() -> None:
    """As the OpenMP library itself tells, which reads its settings when PyTorch is imported."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    plain = {name: value for name, value in ENVIRONMENT.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-m", "kvshift", "reproduce", "nothing"],
        env={**plain, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "GOMP_SPINCOUNT = '2000'" in done.stderr


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "passive"}])
def test_what_the_user_says_of_waiting_threads_stands(given, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["reproduce", "--scale", "huge"]) == 2
    said = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    assert {name: os.environ[name] for name in said if name in os.environ} == given


def test_a_terminal_without_the_signs_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", lambda *a, **k: sys.stdout.write("2 × 3 ✔\n"))
    with open(tmp_path / "said.txt", "w", encoding="ascii") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(["pilot"]) == 0
    assert (tmp_path / "said.txt").read_text() == "2 ? 3 ?\n"


def test_a_name_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pilot", "--out", os.fsdecode(b"caf\xe9")]) == 2
    assert "'caf\ufffd' is not UTF-8" in capsys.readouterr().err


def test_the_home_folder_is_known_where_the_shell_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", lambda *a, **k: seen.append(a))
    monkeypatch.setenv("HOME", "/home/me")
    assert main(["pilot", "--out=~/pilot", "--model=~/model"]) == 0
    assert (seen[0][1], seen[0][0].model) == (Path("/home/me/pilot"), Path("/home/me/model"))


def test_help_is_quick() -> None:
    quickest = min(_timed() for _ in range(3))
    assert quickest < 1.5


def _timed() -> float:
    started = time.monotonic()
    assert run("--help").returncode == 0
    return time.monotonic() - started


def test_help_names_every_option_and_the_exit_codes() -> None:
    said = run("pilot", "--help").stdout
    options = "budget out arms sizes seeds tokens start multiplier model tokenizer text-column"
    for option in [*options.split(), "price", "currency", "lang", "device", "dry-run"]:
        assert f"--{option}" in said
    assert "130 interrupted" in run("--help").stdout


def test_version() -> None:
    assert run("--version").stdout.split() == ["kvshift", kvshift.__version__]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "soon"], "--budget 'soon'"),
        (["--budget", "-5m"], "--budget '-5m'"),
        (["--arms", "vanilla"], "expected two"),
        (["--arms", "vanilla,kvshift,paper"], "expected two"),
        (["--seeds", "-1"], "--seeds"),
        (["--seeds", "0"], "1 to 100"),
        (["--seeds", "1,1"], "twice"),
        (["--seeds", "many"], "--seeds"),
        (["--sizes", "d64-L2,,d96-L3"], "empty entry"),
        (["--tokens", "-5"], "--tokens"),
        (["--tokens", "0"], "--tokens"),
        (["--tokens", "1e99"], "--tokens"),
        (["--multiplier", "-1"], "--multiplier"),
        (["--multiplier", "nan"], "--multiplier"),
        (["--multiplier", "fast"], "--multiplier"),
        (["--price", "-3"], "--price"),
        (["--price", "inf"], "--price"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--sequence-length", "1"], "--sequence-length"),
        (["--batch-size", "0"], "--batch-size"),
        (["--start", "warm"], "--start"),
        (["--lang", "fr"], "expected one of en, ja"),
        (["--device", "tpu"], "--device"),
        (["--currency", ""], "--currency"),
        (["--nonsense"], "No such option"),
    ],
)
def test_nonsense_is_refused_in_one_line_that_names_it(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pilot", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "pilot" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [UsageError, DataError, UnsupportedModelError, OutputError, BudgetError, RunsFailedError]
)
def test_every_error_ends_with_its_code_and_without_a_traceback(
    error: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error("something [bold]the user[/bold] wrote")

    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", fail)
    assert main(["pilot"]) == error.exit_code
    assert capsys.readouterr().err == "Error: something [bold]the user[/bold] wrote\n"


def test_a_full_disk_anywhere_is_told_plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", "/data/tokens.bin")

    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", fail)
    assert main(["pilot"]) == OutputError.exit_code
    assert "disk is full while writing /data/tokens.bin" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", fail)
    with pytest.raises(ZeroDivisionError):
        main(["pilot"])


def test_interrupting_prints_the_line_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", interrupted)
    assert main(["pilot", "my notes", "--budget", "2h"]) == 130
    assert capsys.readouterr().err.strip().endswith("pilot 'my notes' --budget 2h")
    assert resume_line(["pilot", "--dry-run"]) is None


def test_what_is_typed_reaches_the_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("kvshift.pilot.pilot.run_pilot", lambda *a, **k: seen.append((a, k)))
    line = (
        "pilot notes more.txt --budget 1h30m --out here --arms paper,gate --sizes d64-L2,d96-L3 --seeds 3,5 "
        "--tokens 1.5M --start identity --multiplier 30 --tokenizer t.json --text-column body --price 2.5 "
        "--currency JPY --lang ja --device cpu --sequence-length 128 --batch-size 4 --learning-rate 0.001 "
        "--no-compile --dry-run"
    )
    assert main(line.split()) == 0
    (settings, out), options = seen[0]
    assert out == Path("here")
    assert options["dry_run"] is True
    assert options["spent_seconds"] >= 0
    assert settings.model_dump() == {
        "sources": ("notes", "more.txt"),
        "text_column": "body",
        "tokenizer": Path("t.json"),
        "budget_seconds": 5400,
        "arms": ("paper", "gate"),
        "sizes": ("d64-L2", "d96-L3"),
        "seeds": (3, 5),
        "tokens": 1_500_000,
        "sequence_length": 128,
        "batch_size": 4,
        "learning_rate": 0.001,
        "start": "identity",
        "multiplier": 30,
        "model": None,
        "price_per_hour": 2.5,
        "currency": "JPY",
        "language": "ja",
        "device": "cpu",
        "compile": False,
    }


@pytest.mark.parametrize(
    ("given", "seeds"),
    [("3", (0, 1, 2)), ("0,1,2", (0, 1, 2)), ("7,", (7,)), (" 4 , 2 ", (4, 2)), (None, None)],
)
def test_seeds_are_a_list_or_a_count(given: str | None, seeds: tuple[int, ...] | None) -> None:
    assert values.seeds(given) == seeds


def test_importing_the_package_in_a_program_registers_converted_models() -> None:
    program = "import kvshift, sys; print('kvshift.models' in sys.modules, kvshift.kv_shift.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "kv_shift"], done.stderr


@pytest.mark.parametrize(
    "content", [None, "{", '{"tokens": -1}', '{"data": "x", "model": {}, "tokens": 10, "a": 1}']
)
def test_a_recipe_that_cannot_be_read_is_told(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.json"
    if content is not None:
        recipe.write_text(content)
    assert main(["train", str(recipe), str(tmp_path / "run")]) == 2
    assert "recipe.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
