"""The timer, turns and graphs."""

from __future__ import annotations

import time

import pytest
import torch
from helpers import PretendedGraphs

from kvshift.bench import timing
from kvshift.bench.bandwidth import measure_bandwidth
from kvshift.bench.graphs import Flusher, Recorder, replay_seconds
from kvshift.bench.schema import Spread
from kvshift.bench.timing import enough_repeats, rotating, stopwatch, take_turns


def test_a_spread_is_median_and_quartiles() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert spread.samples == [5.0, 1.0, 2.0, 4.0, 3.0]
    assert Spread.of([7.0]).low == Spread.of([7.0]).high == 7.0


def test_ratios_are_of_one_round() -> None:
    # Both drift alike; the ratio of the medians would do as well, that of unpaired quartiles would not.
    ratio = Spread.of_ratios(Spread.of([2.0, 4.0, 8.0]), Spread.of([1.0, 2.0, 4.0]))
    assert ratio.low == ratio.median == ratio.high == 2.0
    with pytest.raises(ValueError):
        Spread.of_ratios(Spread.of([1.0, 2.0]), Spread.of([1.0]))


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def sample(name: str, seconds: float):
        def take() -> float:
            turns.append(name)
            return seconds

        return take

    found = take_turns({"a": sample("a", 1.0), "b": sample("b", 2.0)}, rounds=3)
    assert turns == ["a", "b"] * 3
    assert found["a"].samples == [1.0] * 3
    assert found["b"].samples == [2.0] * 3


def test_turns_end_with_the_time_and_never_within_a_round(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def sample() -> float:
        now[0] += 1.0
        return 1.0

    found = take_turns({"a": sample, "b": sample}, rounds=100, seconds=9.0)
    assert len(found["a"].samples) == len(found["b"].samples) == 5
    now[0] = 0.0
    assert len(take_turns({"a": sample}, rounds=100, seconds=0.5)["a"].samples) == 3  # at least


def test_results_are_kept_until_all_calls_are_done() -> None:
    """Else the allocator would give each call the memory of the one before, in the cache still."""
    places: list[int] = []

    def call() -> torch.Tensor:
        made = torch.empty(1 << 16)
        places.append(made.data_ptr())
        return made

    rotating([call] * 4, 1)()
    assert len(set(places)) == 4
    counted = []
    rotating([lambda: counted.append(1)] * 3, 5)()
    assert len(counted) == 15


def test_enough_repeats() -> None:
    assert enough_repeats(0.001, 0.01) == 10
    assert enough_repeats(1.0, 0.01) == 1
    assert enough_repeats(0.0, 1.0, most=50) == 50


def test_the_clock_of_a_cpu() -> None:
    assert 0.005 <= stopwatch(torch.device("cpu"))(lambda: time.sleep(0.005)) < 0.5


def test_events_time_a_gpu(monkeypatch) -> None:
    gpu = PretendedGraphs(monkeypatch)

    def call() -> None:
        gpu.happened.append("call")
        gpu.clock += 250.0

    assert stopwatch(torch.device("cuda"))(call) == 0.25
    assert gpu.happened == ["synchronize", "event", "call", "event"]


def test_a_call_is_recorded_after_warming_up(monkeypatch) -> None:
    gpu = PretendedGraphs(monkeypatch)
    calls: list[bool] = []
    replay = Recorder().record(lambda: calls.append(gpu.recording))
    assert calls == [False, False, True]
    assert gpu.happened.index("begin") > gpu.happened.index("on a side stream")
    flushed: list[str] = []
    gpu.happened.clear()
    seconds = replay_seconds(replay, lambda: flushed.append("flush") or gpu.happened.append("flush"))
    assert seconds == 0.005
    # Flushed before the first event, so that the device is busy while the host launches.
    assert gpu.happened == ["synchronize", "flush", "event", "replay", "event"]


def test_a_failed_recording_leaves_the_next_one_alone(monkeypatch) -> None:
    gpu = PretendedGraphs(monkeypatch)
    recorder = Recorder()

    def waits() -> None:
        if gpu.recording:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        recorder.record(waits)
    assert not gpu.recording
    assert recorder.record(lambda: None) is not None


def test_flushing_overwrites_more_than_the_cache() -> None:
    flush = Flusher(1 << 10, torch.device("cpu"))
    flush._buffer.fill_(1)
    flush()
    assert flush._buffer.numel() >= 4 << 10
    assert not flush._buffer.any()


def test_bandwidth_counts_bytes_read_and_written(monkeypatch) -> None:
    monkeypatch.setattr("kvshift.bench.bandwidth.stopwatch", lambda device: lambda call: call() or 0.01)
    found = measure_bandwidth(torch.device("cpu"), buffer_bytes=1 << 20, rounds=3)
    # 0.02 seconds are filled by two copies of 0.01 / 2 each
    assert found.bytes_per_second.median == pytest.approx(2 * (1 << 20) / 0.005)
