"""KV shifting attention for Hugging Face models."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvshift.models import convert, from_pretrained, load_adapter, save_adapter
    from kvshift.shift import KVShiftConfig, kv_shift

__version__ = "0.1.0"
__all__ = ["KVShiftConfig", "convert", "from_pretrained", "kv_shift", "load_adapter", "save_adapter"]

_ROOMS = {
    "KVShiftConfig": "shift",
    "convert": "models",
    "from_pretrained": "models",
    "kv_shift": "shift",
    "load_adapter": "models",
    "save_adapter": "models",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"kvshift.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'kvshift' has no attribute {name!r}")


def _is_the_command_line() -> bool:
    """Whether this process is `kvshift …` or `python -m kvshift …`, whose --help must not wait for torch."""
    called, original = sys.argv[0] if sys.argv else "", sys.orig_argv
    by_module = called == "-m" and "kvshift" in original[original.index("-m") + 1 :][:1]
    return by_module or Path(called).stem == "kvshift"


if not _is_the_command_line():
    import_module("kvshift.models")  # so that AutoModelForCausalLM knows converted models from here on
