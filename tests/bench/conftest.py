from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's front alone: it still refuses what breaks a graph."""
    monkeypatch.setattr(torch, "compile", partial(_compile_without_mode, torch.compile))


def _compile_without_mode(original, function, **settings):
    settings.pop("mode", None)
    return original(function, **{**settings, "backend": "eager"})
