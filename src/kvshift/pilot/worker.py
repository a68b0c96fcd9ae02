"""Jobs in processes of their own: forked from a server that has already imported torch and transformers.

A fresh Python needs ten seconds for those imports; a fork of the server needs a fraction of one. Where a
library that they bring along has woken CUDA, no fork can use a GPU, and jobs are fresh processes. Nothing of
a job's life is shared with the pilot but a pipe of JSON messages, so a job may crash, be killed or run out of
memory without taking anything else with it, and a job whose pilot died stops by itself.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import kvshift.errors as errors
from kvshift.processes import (
    SILENT_TRACKER,
    VISIBLE_GPUS,
    end_with_parent,
    environment,
    interrupts_blocked,
    seeing_gpu,
    spin_briefly,
)

PRELOAD = ("kvshift.pilot.jobs",)
REQUESTS_TO_END = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_STOP_SECONDS = 5.0  # from the polite signal to the certain one
_START_SECONDS = {"forkserver": 0.5, "spawn": 12.0}  # forking or importing, opening the text, the record
_NO_CUDA = 3  # exit code
_OUT_OF_MEMORY_SCORE = "800"  # of 1000: the kernel ends a run before it ends the pilot


class JobFailedError(Exception):
    """A job ended without a result: killed, out of memory, or an unexpected exception."""


def start_server() -> None:
    """Starts the server that jobs are forked from, and its imports, in the background; once is enough."""
    from multiprocessing import forkserver, resource_tracker

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else asking for a GPU forbids forking
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    spin_briefly()
    multiprocessing.set_forkserver_preload(list(PRELOAD))
    # Ctrl-C on the terminal reaches every process: only the pilot itself acts on it.
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        with _safe_imports():
            resource_tracker.ensure_running()
            forkserver.ensure_running()
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, previous)


def _safe_imports() -> contextlib.AbstractContextManager[None]:
    """For a Python that starts meanwhile.

    A file of the user's called random.py must not be imported from the current folder.
    """
    return environment({"PYTHONSAFEPATH": "1", **SILENT_TRACKER})


@functools.cache
def _context() -> ForkServerContext | SpawnContext:
    """How jobs begin here; asks the server, whose first fork it waits for."""
    start_server()
    forks = multiprocessing.get_context("forkserver")
    first = forks.Process(target=_tell_whether_cuda_is_lost, daemon=True)
    with _signals_wait():
        first.start()
    first.join()
    lost = first.exitcode == _NO_CUDA
    first.close()
    return multiprocessing.get_context("spawn") if lost else forks


def _tell_whether_cuda_is_lost() -> None:
    import torch

    os._exit(_NO_CUDA if torch.cuda._is_in_bad_fork() else 0)


def seconds_to_start() -> float:
    """What a job takes until its function is called, roughly."""
    return _START_SECONDS[_context().get_start_method()]


class Job:
    """One call of a function in a process of its own.

    `function` is "module:name"; it is called with `arguments` (JSON values) and a keyword `report`, a
    function that takes a dictionary and sends it here. What it returns must be JSON.
    """

    def __init__(
        self, function: str, arguments: dict[str, Any], *, log: Path | None = None, gpu: str | None = None
    ) -> None:
        context = _context()
        self.pipe, child = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_child_main,
            args=(child, function, json.dumps(arguments), None if log is None else str(log), gpu),
            daemon=True,
        )
        self._outcome: dict[str, Any] | None = None
        self.silent = False  # the pipe is at its end
        with _signals_wait(), interrupts_blocked(), _safe_imports(), seeing_gpu(gpu):
            self.process.start()
        child.close()

    def messages(self) -> list[dict[str, Any]]:
        """What the job reported since the last call; does not wait."""
        reported = []
        try:
            while not self.silent and self.pipe.poll():
                message = json.loads(self.pipe.recv_bytes())
                if "report" in message:
                    reported.append(message["report"])
                else:
                    self._outcome = message
        except (EOFError, OSError):
            self.silent = True
        return reported

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return not self.process.is_alive()

    def result(self) -> Any:
        """What the function returned; waits for its end.

        Raises:
            KVShiftError: what the function raised, if it was one.
            JobFailedError: it ended in any other way.
        """
        while self._outcome is None and not self.ended:
            self.messages()
            self.process.join(0.02)
        self.messages()
        self.process.join()
        if self._outcome is None:
            raise JobFailedError(_how_it_died(self.process.exitcode))
        if "result" in self._outcome:
            return self._outcome["result"]
        kind = getattr(errors, self._outcome["error"], None)
        if isinstance(kind, type) and issubclass(kind, errors.KVShiftError):
            raise kind(self._outcome["text"])
        raise JobFailedError(self._outcome["text"])

    def stop(self) -> None:
        """Ends the process, politely first; returns when it is gone."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A request to end is acted on afterwards: a process that gets half of its start prints a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    previous = {name: signal.signal(name, note) for name in (signal.SIGINT, *REQUESTS_TO_END)}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


def call(function: str, arguments: dict[str, Any]) -> Any:
    """Runs one job to its end and returns its result; see `Job`."""
    job = Job(function, arguments)
    try:
        return job.result()
    finally:
        job.stop()


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = ", most often because the machine ran out of memory" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    return f"ended with code {code} before it was done"


def _child_main(pipe: Connection, function: str, arguments: str, log: str | None, gpu: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE)
    if gpu is not None:
        os.environ[VISIBLE_GPUS] = gpu
    _redirect_output(log)

    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(json.dumps(message).encode())

    try:
        module, name = function.split(":")
        run: Callable[..., Any] = getattr(importlib.import_module(module), name)
        outcome = {"result": run(**json.loads(arguments), report=lambda values: send({"report": values}))}
    except errors.KVShiftError as error:
        traceback.print_exc()
        outcome = {"error": type(error).__name__, "text": str(error)}
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = "the disk is full" if full else f"{type(error).__name__}: {error}"
        outcome = {"error": "OutputError" if full else "", "text": text}
    except BaseException as error:
        traceback.print_exc()
        outcome = {"error": "", "text": f"{type(error).__name__}: {error}"}
    send(outcome)
    pipe.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no clean-up of libraries that were never meant to be forked


def _redirect_output(log: str | None) -> None:
    """What libraries print goes to a file, not into the pilot's display."""
    try:
        target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        target = os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
