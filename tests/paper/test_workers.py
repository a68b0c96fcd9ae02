from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time

import pytest

from kvshift.errors import RunsFailedError, UsageError
from kvshift.paper import workers
from kvshift.paper.place import Texts
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


def test_what_is_prepared_is_not_read_again_in_another_process(tmp_path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("".join(f"Line {number} of some text to prepare.\n\n" for number in range(2_000)))
    said: list[str] = []
    here = Texts((str(source),), said.append)
    prepared = here.prepared({"vocab_size": 300}, 10)
    there = pickle.loads(pickle.dumps(here.for_another_process()))
    source.unlink()
    assert there.prepared({"vocab_size": 300}, 10) == prepared
    assert len(said) == 1


def test_processes_are_given_what_is_prepared(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_measure", _told)
    with pytest.raises(UsageError, match="prepared: 1"):
        reproduce([*chosen("fig5a")], "tiny", tmp_path, print, jobs=2)


def _told(experiment, run, folder, texts) -> None:
    raise UsageError(f"prepared: {len(texts._prepared)}")


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


def test_processes_that_are_done_end_without_a_word(tmp_path) -> None:
    """A run on a GPU has semaphores of its own; that they are cleaned up behind it is nothing to tell."""
    program = tmp_path / "program.py"
    program.write_text(_WITH_A_SEMAPHORE)
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 done\n", "")


def test_processes_that_are_stopped_end_without_a_word(tmp_path) -> None:
    """Ctrl-C reaches them, too: one that works and one that waits for work."""
    program = tmp_path / "program.py"
    program.write_text(_WITH_A_SEMAPHORE)
    stopped = subprocess.run(
        [sys.executable, program, tmp_path, "stop"],
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "stopped\n", "")


_WITH_A_SEMAPHORE = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from kvshift.paper import workers
from kvshift.paper.place import Texts
from kvshift.paper.progress import Task
from kvshift.paper.records import ResultsFolder
from kvshift.paper.reproduce import chosen

def measure(*given):
    global kept
    kept = multiprocessing.Semaphore()
    if sys.argv[2:]:
        try:
            Path(sys.argv[1], "one").touch(exist_ok=False)
        except FileExistsError:
            Path(sys.argv[1], "other").touch()
        else:
            time.sleep(600)

def interrupt():
    while not Path(sys.argv[1], "other").exists():
        time.sleep(0.1)
    time.sleep(0.5)  # until that one waits for work
    os.killpg(0, signal.SIGINT)

workers.measured = measure  # in the processes too, which import this file

if __name__ == "__main__":
    (experiment,) = chosen("theorem2")
    tasks = [Task(experiment, experiment.runs["tiny"][0])] * 2
    folder = ResultsFolder(Path(sys.argv[1]), "tiny")
    jobs = 1
    if sys.argv[2:]:
        jobs = 2
        threading.Thread(target=interrupt).start()
    try:
        print(len(list(workers.measured_beside(tasks, folder, Texts((), print), jobs))), "done")
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="asks Linux")
def test_processes_end_with_the_one_that_made_them(tmp_path) -> None:
    """However that ended."""
    made = subprocess.Popen([sys.executable, "-c", _FOREVER, str(tmp_path)])
    try:
        while len(found := list(tmp_path.iterdir())) < 2:
            assert made.poll() is None
            time.sleep(0.1)
    finally:
        made.kill()
        made.wait()
    for process in found:
        for _ in range(100):
            if not os.path.exists(f"/proc/{process.name}"):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"process {process.name} goes on")


_FOREVER = """
import os, sys, time
from pathlib import Path
from kvshift.paper import workers

WORK = "import os, time; open(f'FOLDER/{os.getpid()}', 'w'); time.sleep(600)"

if __name__ == "__main__":
    with workers._pool(2, []) as pool:
        for number in range(2):
            pool.submit(exec, WORK.replace("FOLDER", sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are shared out on Linux")
def test_processes_share_the_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with workers._pool(2, []) as pool:
        shares = {frozenset(share) for share in pool.map(_cores, range(4))}
    half = len(cores) // 2
    assert shares == {frozenset(cores[:half] or cores[:1]), frozenset(cores[half:])}


def _cores(number: int) -> set[int]:
    time.sleep(1)  # so that the other process gets a task too
    return os.sched_getaffinity(0)


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="asks Linux")
def test_processes_are_born_with_a_gpu_each(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    with workers._pool(2, workers.gpu_names(2)) as pool:
        assert set(pool.map(_born_with, range(4))) == {"3", "7"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with workers._pool(1, ["5"]) as pool:
        assert set(pool.map(_born_with, range(1))) == {"5"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def _born_with(number: int) -> str:
    """Not what the process has set since, which is too late for CUDA once it was asked for anything."""
    time.sleep(1)
    with open("/proc/self/environ", "rb") as file:
        names = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if entry)
    return names[b"CUDA_VISIBLE_DEVICES"].decode()


def test_no_jobs_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="--jobs is 0; expected 1 or more"):
        reproduce(chosen("theorem1"), "tiny", tmp_path / "out", print, jobs=0)
    assert not (tmp_path / "out").exists()
