from __future__ import annotations

import math
import time

import pytest
import torch

from kvshift.errors import UsageError
from kvshift.training import measure_speed
from kvshift.training.meters import Clock, PeakMemory


def test_speed_is_that_of_the_steps(make_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe()
    started = time.perf_counter()
    speed = measure_speed(recipe, seconds=0.3)
    elapsed = time.perf_counter() - started
    assert speed.tokens_per_second == pytest.approx(128 / speed.step_seconds)
    assert 0 < speed.step_seconds < 0.3
    assert 0 < speed.startup_seconds < elapsed - 0.3
    assert 0 < speed.evaluation_seconds < elapsed
    assert list(tmp_path.iterdir()) == []


def test_impossible_seconds(make_recipe):
    with pytest.raises(UsageError, match="seconds"):
        measure_speed(make_recipe(), seconds=math.nan)


def test_clock_leaves_pauses_out_and_takes_the_median():
    clock = Clock(torch.device("cpu"), seconds=100.0, blocks=[(0.03, 3)])
    clock.start(3)
    for step in (4, 5):
        time.sleep(0.01)
        with clock.paused():
            time.sleep(0.1)
        clock.mark(step)
    time.sleep(0.08)
    clock.mark(6)
    assert 100.1 <= clock.seconds < 100.19
    assert clock.step_seconds() == pytest.approx(0.01, abs=0.006)  # of 0.01 three times, 0.01, 0.01, 0.08
    assert [steps for _, steps in clock.blocks] == [3, 1, 1, 1]


def test_a_gpu_s_peak_counts_what_a_replay_uses(monkeypatch):
    """A replay allocates nothing; PyTorch's peak is the recording's, when the optimizer had no state."""
    for name, value in {"init": None, "reset_peak_memory_stats": None, "max_memory_allocated": 1000}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 700)
    memory = PeakMemory(torch.device("cuda", 0))
    assert memory.sample(idle=200) == 1000
    assert memory.sample(idle=400) == 1100
    assert memory.sample() == 1100


def test_peak_memory_sees_what_has_been_given_back():
    memory = PeakMemory(torch.device("cpu"))
    if not memory._marked:
        pytest.skip("this system keeps no high-water mark for a process to reset")
    held = torch.ones(40_000_000)  # 160 MB, beyond what an allocator keeps
    del held
    assert 120e6 < memory.sample() < 400e6
