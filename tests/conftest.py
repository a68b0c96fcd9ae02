"""What every test relies on."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core each, also for the processes that tests start

import hypothesis
import pytest
import torch

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports the kernels

# The same examples each time, so that a change is not blamed for what another draw would have found before
# it; elsewhere they are drawn afresh.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

sys.path.insert(0, str(Path(__file__).parent / "models" / "helpers"))  # the tiny models of every family


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_interrupts() -> Iterator[None]:
    """A test run started in the background ignores Ctrl-C, and so would every process it starts."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True, scope="module")
def what_is_there_is_no_garbage() -> None:
    """Every training run has garbage collected: it shall not look through all modules and tests each time,
    which takes half a second, as long as a run of these tests itself."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def language_is_patched_once() -> Iterator[None]:
    """Triton's interpreter puts its own functions into Triton's language when a kernel starts, and again at
    each call of another function inside the kernel, where they are in place: two fifths of its time."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    if not (hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope")):
        yield  # another Triton: its tests take longer
        return
    original, patched = interpreter._patch_lang, set()

    def patch(function: Any) -> Any:
        seen = frozenset(
            each for each in function.__globals__.values() if each is language or each is language.core
        )
        if seen in patched:
            return interpreter._LangPatchScope()  # of no changes
        begins = not patched
        scope = original(function)
        patched.add(seen)
        if begins:  # at the kernel's end the language is what it was
            restore = scope.restore
            scope.restore = lambda: (restore(), patched.clear())
        return scope

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(interpreter, "_patch_lang", patch)
        yield
