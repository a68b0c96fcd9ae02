"""The interpreter forgives what the compiler does not; the compiler needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvshift

pytest.importorskip("triton", reason="Triton is not installed")


def test_every_kernel_compiles_for_an_h100() -> None:
    script = Path(__file__).parent / "helpers" / "compile_kernels.py"
    path = str(Path(kvshift.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 28
