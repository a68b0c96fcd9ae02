"""The path a GPU takes: bfloat16, a compiled model, resuming. Skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch

import kvshift
from kvshift.training import measure_speed, read_record, run
from kvshift.training.trainer import RunTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(device="auto", precision="auto", micro_batch_size=2, tokens=40 * 128)


@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_run_agrees_with_the_cpus(recipe, tmp_path, compiled):
    gpu = run(recipe.model_copy(update={"compile": compiled}), tmp_path / "gpu")
    cpu = run(recipe.model_copy(update={"device": "cpu"}), tmp_path / "cpu")
    assert gpu.extra["precision"] == "bfloat16"
    assert gpu.peak_memory_bytes > 0
    assert gpu.steps[0].loss == pytest.approx(cpu.steps[0].loss, abs=5e-3)
    assert gpu.final_loss == pytest.approx(cpu.final_loss, abs=5e-2)
    assert kvshift.from_pretrained(tmp_path / "gpu" / "final").dtype == torch.float32


def test_gpu_run_goes_on_after_an_interruption(recipe, tmp_path, monkeypatch):
    original = RunTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 20:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            run(recipe.model_copy(update={"checkpoint_seconds": 0}), tmp_path / "run")
    assert read_record(tmp_path / "run").status == "unfinished"
    resumed, whole = run(recipe, tmp_path / "run"), run(recipe, tmp_path / "whole")
    assert [point.step for point in resumed.steps] == [point.step for point in whole.steps]
    assert resumed.final_loss == pytest.approx(whole.final_loss, abs=1e-2)


def test_gpu_speed(recipe):
    speed = measure_speed(recipe, seconds=0.5)
    assert 0 < speed.step_seconds < 1
    assert speed.peak_memory_bytes > 0
