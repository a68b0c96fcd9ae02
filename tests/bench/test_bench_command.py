"""`kvshift bench`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers import MICRO
from typer.testing import CliRunner

from kvshift.bench import chart, configurations, run, settings, shapes
from kvshift.bench.attempts import attempt
from kvshift.bench.configurations import CONFIGURATIONS
from kvshift.bench.run import RESULTS, plan_operators, run_bench
from kvshift.bench.schema import BenchResult
from kvshift.bench.settings import Settings
from kvshift.bench.steps import measure_steps
from kvshift.bench.watch import Watch
from kvshift.cli import app, main
from kvshift.errors import UsageError


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A quick bench of next to nothing."""
    monkeypatch.setitem(CONFIGURATIONS, "tiny", MICRO)
    monkeypatch.setattr(shapes, "QUICK_ON_CPU", (shapes.Shape(1, 4, 1, 8, 1),))
    monkeypatch.setattr(configurations, "ON_CPU", ("tiny",))
    monkeypatch.setattr(Settings, "bandwidth_bytes", 1 << 16)
    monkeypatch.setattr("kvshift.bench.machine._cpu_cache", lambda: 1 << 10)


def bench(*arguments: str):
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", *arguments], env={"COLUMNS": "120"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_everything_is_measured_written_and_printed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = bench("--quick", "--out", str(out))
    found = BenchResult.model_validate_json((out / RESULTS).read_text())
    assert found.finished
    assert found.quick
    assert {row.contender for row in found.operators} == {"kvshift", "formula"}
    both = {"vanilla", "vanilla-again", "formula", "kvshift"}
    assert {row.arm for row in found.steps} == {*both, "kvshift-recomputing"}
    assert {row.arm for row in found.decoding} == both
    assert all(row.status == "timed" for row in (*found.operators, *found.steps, *found.decoding))
    assert found.machine.kind == "cpu"
    assert found.machine.packages["torch"] == str(torch.__version__)
    assert found.bandwidth.bytes_per_second.median > 0
    for said in ("shift [1, 4, 1, 8]", "training step, micro, eager", "decoding, micro", "bench.json"):
        assert said in done.stdout
    assert "operators 1 of 1" in done.stderr
    written = {"bench.json", "bench.png"} if chart.can_draw() else {"bench.json"}
    assert set(os.listdir(out)) == written


def test_one_section_of_a_named_model(tmp_path: Path) -> None:
    bench("--quick", "--only", "steps", "--config", "tiny", "--layers", "1", "--out", str(tmp_path))
    found = BenchResult.model_validate_json((tmp_path / RESULTS).read_text())
    assert found.operators == found.decoding == []
    assert {row.layers for row in found.steps} == {1}


def test_without_matplotlib_there_is_no_chart(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chart, "can_draw", lambda: False)
    done = bench("--quick", "--only", "operators", "--out", str(tmp_path))
    assert done.exit_code == 0
    assert "kvshift[plots]" in done.stdout
    assert os.listdir(tmp_path) == ["bench.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "kernels"], "operators, steps, decoding"),
        (["--only", "steps,,"], "empty entry"),
        (["--config", "7b"], "tiny, 1.5b, 2.9b, 19b-layer"),
        (["--layers", "0"], "--layers 0"),
        (["--minutes", "0"], "--minutes 0"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--device", "tpu"], "auto, cpu, cuda"),
    ],
)
def test_bad_input(arguments, said, tmp_path: Path, capsys) -> None:
    assert main(["bench", "--quick", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_gpu(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        run, "measure_bandwidth", lambda *given, **named: pytest.fail("something was measured")
    )
    assert main(["bench", "--device", "cpu", "--out", str(tmp_path / "file" / "out")]) == 5
    assert "a part of the path is a file" in capsys.readouterr().err


def test_what_was_measured_is_kept_when_a_bench_is_killed(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*given, **named):
        yield from islice(measure_steps(*given, **named), 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_bench(Settings("cpu", quick=True), tmp_path, Watch(), command="test")
    found = BenchResult.model_validate_json((tmp_path / RESULTS).read_text())
    assert found.operators
    assert [row.arm for row in found.steps] == ["vanilla"]
    assert not found.finished


def test_a_part_that_fails_is_noted_and_the_rest_goes_on(tmp_path: Path, monkeypatch) -> None:
    def broken(*given, **named):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run, "measure_operator", broken)
    done = bench("--quick", "--only", "operators,steps", "--layers", "1", "--out", str(tmp_path))
    found = BenchResult.model_validate_json((tmp_path / RESULTS).read_text())
    assert found.finished
    assert found.steps
    assert "illegal memory access" in found.notes[0]
    assert "illegal memory access" in done.stdout
    assert "Traceback" in (tmp_path / "errors.txt").read_text()


def test_when_the_time_is_over_the_rest_is_left_out_and_named(tmp_path: Path) -> None:
    watch = Watch(budget=0.0)
    found = run_bench(Settings("cpu", quick=True), tmp_path, watch, command="test")
    assert found.finished
    assert len(found.notes) == 3
    assert all(note.startswith("Left out") for note in found.notes)


def test_a_section_uses_its_part_of_the_time(monkeypatch) -> None:
    watch = Watch(budget=100.0)
    watch.may_use(0.5)
    monkeypatch.setattr(Watch, "elapsed", 49.0)
    assert not watch.over
    monkeypatch.setattr(Watch, "elapsed", 51.0)
    assert watch.over
    watch.may_use(1.0)
    assert not watch.over
    assert not Watch().over


@pytest.fixture
def gpu(monkeypatch) -> None:
    monkeypatch.setattr(settings.torch.cuda, "is_available", lambda: True)


def test_what_a_gpu_is_given(gpu) -> None:
    whole, quick = Settings("cuda"), Settings("cuda", quick=True)
    assert [each.name for each in whole.trained] == ["1.5b", "2.9b", "19b-layer"]
    assert [each.name for each in whole.decoded] == ["1.5b"]
    assert whole.dtype == torch.bfloat16
    assert whole.budget is None
    assert whole.decoding_effort.batches == (1, 32)
    assert [each.name for each in quick.trained] == ["1.5b"]
    assert quick.most_layers == 2
    assert quick.budget < 120
    assert Settings("cuda", minutes=3).budget == 180
    assert [each.name for each in Settings("cuda", models=("2.9b",)).decoded] == ["2.9b"]
    some = Settings("cuda", arms=("kvshift",), only_modes=("compiled",))
    assert [arm.name for arm in some.compared] == ["vanilla", "kvshift"]
    assert some.modes == ("compiled",)
    names = {operator.name for operator, _ in plan_operators(whole)}
    assert names == {"shift", "shift + rotary", "shift + norm + rotary", "decode"}
    assert {operator.name for operator, _ in plan_operators(quick)} == names - {"shift + norm + rotary"}


def test_settings_refuse_what_they_do_not_know() -> None:
    unknown = [{name: ("speed",)} for name in ("only", "models", "arms", "only_modes")]
    for wrong in (*unknown, {"layers": 0}, {"device": "tpu"}):
        with pytest.raises(UsageError):
            Settings(**{"device": "cpu", **wrong})


def test_settings_with_nothing_to_measure_are_refused() -> None:
    with pytest.raises(UsageError, match="No configuration that was named has decoding to measure"):
        Settings("cpu", only=("decoding",), models=("19b-layer",))
    with pytest.raises(UsageError, match="No arm beside vanilla that was named has decoding"):
        Settings("cpu", only=("decoding",), arms=("kvshift-recomputing",))
    Settings("cpu", models=("19b-layer",))  # where a section was not asked for by name, there is the next


def test_an_attempt_says_what_is_missing_and_what_is_broken() -> None:
    def missing():
        import nobody_has_this  # noqa: F401

    def damaged():
        raise ImportError("libcudart.so.12: cannot open shared object file")

    assert attempt(lambda: 3).value == 3
    assert attempt(missing).failure.status == "not installed"
    broken = attempt(damaged).failure
    assert broken.status == "failed"
    assert "libcudart" in broken.reason
    assert "libcudart" in broken.trace
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
