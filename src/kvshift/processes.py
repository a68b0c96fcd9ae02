"""What processes that work for another one have in common."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
SILENT_TRACKER = {"PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}
"""In the environment: what cleans up behind processes that end without doing so keeps it to itself."""


def spin_briefly() -> None:
    """Threads that wait for each other soon sleep, here if torch is not imported yet, and in new processes.

    Those that wait long in a spin slow steps threefold, at worst twentyfold, as soon as anything else wants a
    core; those that never spin lose up to a third on an idle machine (docs/results/pilot.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def end_with_parent() -> None:
    """From now on this process ends when the one that made it does, however that ended.

    A process that was killed cannot end its own, and they would wait for work forever.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start_silent_tracker() -> None:
    """Starts what cleans up behind processes that are ended by others; does nothing if one is there."""
    with environment(SILENT_TRACKER):
        resource_tracker.ensure_running()


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """A process that starts meanwhile gets none until it asks for them, as it does when it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gpu_names(count: int) -> list[str]:
    """What the environment calls the GPUs that this process sees, of which there are `count`."""
    visible = os.environ.get(VISIBLE_GPUS)
    return visible.split(",") if visible else [str(number) for number in range(count)]


def seeing_gpu(gpu: str | None) -> contextlib.AbstractContextManager[None]:
    """Processes started meanwhile see this GPU alone; None: they see what this one does.

    Once a process has imported what it works with, it is too late to choose one.
    """
    return environment({} if gpu is None else {VISIBLE_GPUS: gpu})


@contextlib.contextmanager
def environment(changed: dict[str, str]) -> Iterator[None]:
    """Processes started meanwhile find these values in their environment; afterwards it is as before."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
