"""What processes that work for another one have in common."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


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


def gpu_names(count: int) -> list[str]:
    """What the environment calls the GPUs that this process sees, of which there are `count`."""
    visible = os.environ.get(VISIBLE_GPUS)
    return visible.split(",") if visible else [str(number) for number in range(count)]


@contextlib.contextmanager
def seeing_gpu(gpu: str | None) -> Iterator[None]:
    """Processes started meanwhile see this GPU alone; None: they see what this one does.

    Once a process has imported what it works with, it is too late to choose one.
    """
    before = os.environ.get(VISIBLE_GPUS)
    if gpu is not None:
        os.environ[VISIBLE_GPUS] = gpu
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE_GPUS] = before
        elif gpu is not None:
            del os.environ[VISIBLE_GPUS]
