"""What a bench ran on."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from kvshift.bench.peers import PACKAGES
from kvshift.bench.schema import Machine

_OWN = ("kvshift", "torch", "triton", "transformers")
_CPU_CACHE = 32 << 20  # where the system does not tell


def describe(device: torch.device) -> Machine:
    """The machine, its software and the code that runs."""
    on_gpu = device.type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        kind="cuda" if on_gpu else "cpu",
        threads=torch.get_num_threads(),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        cache_bytes=torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else _cpu_cache(),
        python=platform.python_version(),
        packages={name: version for name in (*_OWN, *PACKAGES) if (version := _version(name))},
        commit=_commit(Path(__file__).parent),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # which says for which CUDA
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cpu_cache() -> int:
    """The largest of the first core's caches."""
    found = [_CPU_CACHE]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = file.read_text(encoding="ascii").strip()
        if size.endswith("K") and size[:-1].isdigit():
            found.append(int(size[:-1]) << 10)
    return max(found)


def _commit(folder: Path) -> str | None:
    """The checkout's commit, with + if files differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", __file__) is None:
        return None  # installed somewhere inside of another project
    return f"{commit}+" if git("status", "--porcelain", "--untracked-files=no") else commit
