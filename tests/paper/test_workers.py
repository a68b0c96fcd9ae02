from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from kvshift.errors import RunsFailedError, UsageError
from kvshift.paper import workers
from kvshift.paper.reproduce import chosen, reproduce


def test_runs_beside_each_other_are_those_one_after_the_other(tmp_path) -> None:
    experiments, said = [*chosen("theorem1"), *chosen("theorem2"), *chosen("theorem3")], []
    beside = reproduce(experiments, "tiny", tmp_path / "beside", said.append, jobs=2)
    after = reproduce(experiments, "tiny", tmp_path / "after", print)
    for one, other in zip(beside, after, strict=True):
        assert [record.run for record in one.records] == [record.run for record in other.records]
        assert [record.settings for record in one.records] == [record.settings for record in other.records]
        assert one.judgement.verdict == other.judgement.verdict
        assert one.judgement.ours == other.judgement.ours
    assert len(said) == sum(len(each.records) for each in beside)


def test_a_failure_in_a_process_is_told_as_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_measure", _refused)
    with pytest.raises(UsageError, match="not today"):
        reproduce([*chosen("theorem1"), *chosen("theorem2")], "tiny", tmp_path, print, jobs=2)
    assert not multiprocessing.active_children()


def _refused(*given) -> None:
    raise UsageError("not today")


def test_a_process_that_died_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_measure", _killed)
    with pytest.raises(RunsFailedError, match="fewer than --jobs 2"):
        reproduce([*chosen("theorem1"), *chosen("theorem2")], "tiny", tmp_path, print, jobs=2)


def _killed(*given) -> None:
    os._exit(9)


def test_a_process_takes_its_share_of_the_machine() -> None:
    cores = sorted(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.Queue()
    numbers.put(1)
    settled = {"initializer": workers._settle, "initargs": (numbers, 2, ["3", "7"])}
    with ProcessPoolExecutor(1, mp_context=spawn, **settled) as pool:
        assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "7"
        assert pool.submit(os.sched_getaffinity, 0).result() == set(cores[len(cores) // 2 :])


def test_no_jobs_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="--jobs is 0; expected 1 or more"):
        reproduce(chosen("theorem1"), "tiny", tmp_path / "out", print, jobs=0)
    assert not (tmp_path / "out").exists()
