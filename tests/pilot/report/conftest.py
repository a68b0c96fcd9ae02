"""Sample results, their pages in both languages, and one real browser for all tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kvshift.pilot.report import write_report


def _load(name: str) -> ModuleType:
    """A helper module of this folder; importlib mode does not put the folder on the path."""
    full = f"kvshift_report_tests_{name}"
    spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    return _load("samples")


@pytest.fixture(scope="session")
def hostile() -> ModuleType:
    return _load("hostile")


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, samples: ModuleType) -> Callable[[str, str], Path]:
    """The report of a kind of pilot in a language, written once."""
    folder = tmp_path_factory.mktemp("reports")
    made: dict[tuple[str, str], Path] = {}

    def get(kind: str, language: str = "en") -> Path:
        if (kind, language) not in made:
            made[kind, language] = write_report(samples.results(kind), folder / kind / language, language)
        return made[kind, language]

    return get


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    driver = _load("browser")
    if driver.find() is None:
        pytest.skip("no chromium or google-chrome on PATH")
    running = driver.Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()
