from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import kvshift
from kvshift.errors import UnsupportedModelError
from kvshift.pilot.worker import Job, JobFailedError, call


def test_a_job_runs_in_another_process_and_returns_its_result() -> None:
    assert call("fake_runs:pid", {}) != os.getpid()


def test_a_second_job_starts_in_a_moment() -> None:
    call("fake_runs:pid", {})
    quickest = min(_timed() for _ in range(5))
    assert quickest < 1.5  # importing torch and transformers again would take several seconds


def _timed() -> float:
    started = time.monotonic()
    call("fake_runs:pid", {})
    return time.monotonic() - started


def test_a_mistake_of_the_users_keeps_its_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    arguments = {"path": str(tmp_path), "vocab_size": 100, "sequence_length": 64}
    with pytest.raises(UnsupportedModelError, match="bert"):
        call("kvshift.pilot.jobs:derive", arguments)


def test_a_defect_is_told_with_its_type() -> None:
    with pytest.raises(JobFailedError, match=r"AttributeError.*nonesuch"):
        call("fake_runs:nonesuch", {})


def test_a_killed_job_is_told_with_its_signal() -> None:
    job = Job("fake_runs:sleep", {"seconds": 60})
    os.kill(job.process.pid, signal.SIGKILL)
    with pytest.raises(JobFailedError, match=r"SIGKILL.*memory"):
        job.result()


def test_stopping_ends_the_process() -> None:
    job = Job("fake_runs:sleep", {"seconds": 60})
    job.stop()
    assert not psutil.pid_exists(job.process.pid) or psutil.Process(job.process.pid).status() == "zombie"


def test_what_a_job_prints_goes_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(JobFailedError):
        Job("fake_runs:nonesuch", {}, log=log).result()
    assert "AttributeError" in log.read_text()


PARENT = """
import sys
sys.path.insert(0, {helpers!r})
from kvshift.pilot.worker import Job
if __name__ == "__main__":
    job = Job("fake_runs:sleep", {{"seconds": 100}})
    while not (messages := job.messages()):
        pass
    print(messages[0]["pid"], flush=True)
    job.result()
"""


def test_a_job_ends_soon_after_its_pilot_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(helpers=str(Path(__file__).parent / "helpers")))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=10)  # raises if it lives on
    parent.stdout.close()


def pilot_program(folder: Path, call: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A pilot of its own that makes one call, in `folder` but not from there."""
    script = folder / "elsewhere" / "script.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        f"from kvshift.pilot.worker import call\n{before}\nif __name__ == '__main__': print({call})\n"
    )
    helpers = Path(__file__).parent / "helpers"
    without_gpus = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    path = os.pathsep.join((str(Path(kvshift.__file__).parents[1]), str(helpers), str(script.parent)))
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**without_gpus, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_server_ignores_files_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('imported from the current folder')")
    done = pilot_program(tmp_path, "call('kvshift.pilot.jobs:probe', {'device': 'cpu'})['kind']")
    assert done.stdout.strip() == "cpu", done.stderr


def test_what_a_job_leaves_behind_is_cleaned_up_in_silence(tmp_path: Path) -> None:
    done = pilot_program(tmp_path, "call('fake_runs:leak', {})")
    name = done.stdout.strip()
    assert name.startswith("/"), done.stderr
    assert done.stderr == ""
    assert not Path("/dev/shm", f"sem.{name[1:]}").exists()


def test_no_child_is_left_behind() -> None:
    call("fake_runs:pid", {})
    assert multiprocessing.active_children() == []


CUDA_IS_LOST_IN_FORKS = """
import os
import torch
os.register_at_fork(after_in_child=lambda: setattr(torch.cuda, "_is_in_bad_fork", lambda: True))
"""


def test_where_an_import_wakes_cuda_jobs_are_fresh_processes(tmp_path: Path) -> None:
    """As flash-linear-attention does when the library imports it: a fork could not use the GPU."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "wakes_cuda.py").write_text(CUDA_IS_LOST_IN_FORKS)
    # The script is imported again in a fresh process, before anything of ours.
    before = (
        "import os\nfrom kvshift.pilot import worker\nworker.PRELOAD += ('wakes_cuda',)\n"
        "os.environ['SEEN'] = os.environ.get('CUDA_VISIBLE_DEVICES', 'all')"
    )
    calls = "call('fake_runs:gpu', {}), worker.Job('fake_runs:gpu', {}, gpu='1').result()"
    done = pilot_program(tmp_path, f"({calls}, worker.seconds_to_start() > 5)", before)
    assert done.stdout.strip() == "([False, 'all'], [False, '1'], True)", done.stderr


def test_a_forked_job_sees_its_gpu(tmp_path: Path) -> None:
    before = "import os\nfrom kvshift.pilot import worker"
    job = "worker.Job('fake_runs:gpu', {}, gpu='1').result()"
    done = pilot_program(tmp_path, f"({job}, os.environ.get('CUDA_VISIBLE_DEVICES'))", before)
    assert done.stdout.strip() == "([False, '1'], None)", done.stderr


FRESH = "from kvshift.pilot import worker\nworker.PRELOAD += ('wakes_cuda',)\n"


def test_fresh_processes_ignore_files_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "wakes_cuda.py").write_text(CUDA_IS_LOST_IN_FORKS)
    (tmp_path / "struct.py").write_text("raise SystemExit('imported from the current folder')")
    done = pilot_program(tmp_path, "call('kvshift.pilot.jobs:probe', {'device': 'cpu'})['kind']", FRESH)
    assert done.stdout.strip() == "cpu", done.stderr


INTERRUPTS = """
import os, signal, time
def interrupted():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker._context()
    for seconds in (0.0, 0.05, 0.2):  # while its Python starts, and while it imports
        job = worker.Job("fake_runs:pid", {})
        time.sleep(seconds)
        os.kill(job.process.pid, signal.SIGINT)
        job.result()
    return "done"
"""


def test_a_fresh_process_is_not_interrupted_while_it_starts(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "wakes_cuda.py").write_text(CUDA_IS_LOST_IN_FORKS)
    done = pilot_program(tmp_path, "interrupted()", FRESH + INTERRUPTS)
    assert done.stdout.strip() == "done", done.stderr
    assert done.stderr == ""


INTERRUPTED_START = """
import os, signal
from kvshift.pilot import worker
from multiprocessing import forkserver

def interrupt(number, frame):
    raise KeyboardInterrupt

def connect_and_interrupt(descriptors, connect=forkserver.connect_to_new_process):
    connected = connect(descriptors)
    os.kill(os.getpid(), signal.SIGTERM)
    return connected

def interrupted(call, at_the_first):
    if not at_the_first:
        worker._context()
    signal.signal(signal.SIGTERM, interrupt)
    forkserver.connect_to_new_process = connect_and_interrupt
    try:
        return call("fake_runs:pid", {})
    except KeyboardInterrupt:
        return "interrupted"
"""


@pytest.mark.parametrize("at_the_first", [True, False])
def test_a_request_to_end_waits_until_a_process_has_started(tmp_path: Path, at_the_first: bool) -> None:
    """The first is asked whether it can use CUDA, the second is the job."""
    done = pilot_program(tmp_path, f"interrupted(call, {at_the_first})", INTERRUPTED_START)
    assert done.stdout.strip() == "interrupted"
    assert done.stderr == ""
