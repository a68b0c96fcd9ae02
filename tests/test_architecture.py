"""The house keeps its shape: rooms import downwards only, and no file grows past what a reader can hold."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kvshift"
FILES = sorted(SOURCE.rglob("*.py"))
_FOR_EXPERIMENTS = {
    "training",
    "inspection",
    "tasks",
    "models",
    "shift",
    "durations",
    "processes",
    "files",
    "errors",
}
ROOMS = {
    # What each room may import, besides itself.
    "errors": set(),
    "files": {"errors"},
    "durations": {"errors"},
    "processes": set(),
    "shift": {"errors"},
    "kernels": {"shift", "errors"},
    "models": {"kernels", "shift", "files", "errors"},
    "bench": {"models", "kernels", "shift", "files", "errors"},
    "tasks": {"files", "errors"},
    "training": {"tasks", "models", "shift", "files", "errors"},
    "inspection": {"models", "shift", "errors"},
    "paper": _FOR_EXPERIMENTS,
    "pilot": {"paper", *_FOR_EXPERIMENTS},
    "cli": {
        "pilot",
        "paper",
        "training",
        "inspection",
        "tasks",
        "bench",
        "models",
        "shift",
        "durations",
        "processes",
        "files",
        "errors",
    },
}
LONGEST = 450


def room_of(path: Path) -> str:
    """`models` for models/starts.py, `errors` for errors.py, the empty string for the package's own file."""
    first = path.relative_to(SOURCE).parts[0]
    name = first.removesuffix(".py")
    return "" if name.startswith("__") else name


def rooms_imported(path: Path) -> dict[str, int]:
    """Rooms of this package that a file imports anywhere in it, each with a line."""
    package = ("kvshift", *path.relative_to(SOURCE).parts[:-1])
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "kvshift" and len(parts) > 1:
                found.setdefault(parts[1], node.lineno)
    return found


def test_there_is_something_to_check() -> None:
    assert {room_of(path) for path in FILES} >= {"shift", "models", "errors"}
    assert rooms_imported(SOURCE / "models" / "convert.py").keys() >= {"errors", "models", "shift"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_lies_below(path) -> None:
    room = room_of(path)
    if room == "":
        return  # the package's own file gathers the public names, and `python -m` starts the command line
    assert room in ROOMS, f"{room} is a new room: say here what it may import"
    for imported, line in rooms_imported(path).items():
        is_version = imported == "__version__"
        assert imported == room or imported in ROOMS[room] or is_version, (
            f"{path.relative_to(SOURCE)}:{line} imports {imported}, which does not lie below {room}"
        )


def test_no_cycle_between_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if room := room_of(path):
            graph.setdefault(room, set()).update(set(rooms_imported(path)) & set(ROOMS) - {room})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the cycle
    graphlib.TopologicalSorter(ROOMS).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_short_enough_to_read(path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
