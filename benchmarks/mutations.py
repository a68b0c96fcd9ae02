"""Do the tests of models bite? `python benchmarks/mutations.py` switches off parts of the code, one by one.

Each mutation is made in a copy of the source tree, and the tests named with it must fail there. Writes
docs/results/mutations.md; exit code 1 if a mutation survives.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from checkout import commit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "mutations.md"
LIST = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Mutation:
    """Each of `old` in the file becomes the `new` beside it; `tests` must notice, as pytest takes them."""

    trap: str
    what: str
    file: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.trap}: {self.what}"

    def fits(self, source: str) -> bool:
        """Whether each `old` is there, once."""
        return all(source.count(old) == 1 for old in self.old)

    def made_in(self, source: str) -> str:
        for old, new in zip(self.old, self.new, strict=True):
            source = source.replace(old, new)
        return source


def listed(part: str) -> list[Mutation]:
    """The mutations whose trap or description has this part."""
    with LIST.open("rb") as file:
        entries = tomllib.load(file)["mutation"]
    mutations = [Mutation(**{name: _read(name, value) for name, value in entry.items()}) for entry in entries]
    return [m for m in mutations if part in m.name]


def _read(name: str, value: str | list[str]) -> str | tuple[str, ...]:
    if name not in ("old", "new", "tests"):
        return str(value)
    return (value,) if isinstance(value, str) else tuple(value)


def run(mutation: Mutation, place: Path) -> tuple[str, float]:
    """The first test that failed, or an empty string if none did, and the seconds it took."""
    source = place / "src" / "kvshift" / mutation.file
    whole = source.read_text(encoding="utf-8")
    if not mutation.fits(whole):
        raise SystemExit(f"{mutation.file}: {mutation.old!r} is not there once each; mend the list.")
    source.write_text(mutation.made_in(whole), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(place / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests],
            cwd=place, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        source.write_text(whole, encoding="utf-8")
    if ended.returncode not in (0, 1):
        raise SystemExit(
            f"The tests of {mutation.what!r} could not run:\n{ended.stdout[-3000:]}{ended.stderr[-1000:]}"
        )
    failed = re.search(r"^FAILED (\S+(?: \S+)*?)(?: - |$)", ended.stdout, re.MULTILINE)
    return (failed[1] if failed else "") if ended.returncode else "", time.monotonic() - began


def copied(folder: Path) -> Path:
    """A place of its own for what a mutation needs."""
    folder.mkdir()
    for name in ("src", "tests", "pyproject.toml"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder)
    return folder


def run_all(mutations: list[Mutation], jobs: int, keep: Path | None) -> dict[str, list[str]]:
    """The first test that noticed each, and the commit; so many run beside each other, each in its own place.

    Args:
        keep: a file of what is known, read at first and written as more becomes known.
    """
    known: dict[str, list[str]] = json.loads(keep.read_text()) if keep and keep.exists() else {}
    now = commit()
    with tempfile.TemporaryDirectory(prefix="kvshift-mutations-") as folder:
        places: queue.Queue[Path] = queue.Queue()
        for job in range(jobs):
            places.put(copied(Path(folder) / str(job)))

        def in_a_place(mutation: Mutation) -> tuple[str, float]:
            place = places.get()
            try:
                return run(mutation, place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(jobs) as pool:
            missing = [mutation for mutation in mutations if mutation.name not in known]
            running = {pool.submit(in_a_place, mutation): mutation for mutation in missing}
            try:
                for done in as_completed(running):
                    (test, seconds), name = done.result(), running[done].name
                    print(f"{'noticed' if test else 'SURVIVED':9} {seconds:4.0f} s  {name}", flush=True)
                    known[name] = [test, now]
                    if keep:
                        keep.write_text(json.dumps(known))
            finally:
                pool.shutdown(cancel_futures=True)
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a mutation's trap or description")
    parser.add_argument("--list", action="store_true", help="check that every mutation fits, run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="mutations beside each other, a copy each")
    parser.add_argument("--keep", type=Path, help="a file of what is done, to go on from if interrupted")
    chosen = parser.parse_args()
    wanted = listed(chosen.only)
    if chosen.list:
        for mutation in wanted:
            source = (ROOT / "src" / "kvshift" / mutation.file).read_text(encoding="utf-8")
            print(f"{'fits' if mutation.fits(source) else 'DOES NOT':8} {mutation.name}")
        return 0
    found = run_all(wanted, chosen.jobs, chosen.keep)
    noticed = sum(bool(found[mutation.name][0]) for mutation in wanted)
    if not chosen.only:
        rows = []
        for mutation in wanted:
            test, at = found[mutation.name]
            by = f"`{test.removeprefix('tests/')}`" if test else "**survived**"
            rows.append(f"| {mutation.trap} | {mutation.what} | `{mutation.file}` | {by} | {at} |")
        PAGE.write_text(
            "# Mutations\n\nParts of the code switched off, one by one, by `python benchmarks/mutations.py`, "
            f"and the first test that noticed. {noticed} of {len(wanted)} were noticed. {date.today()}, "
            f"PyTorch {version('torch')}, Transformers {version('transformers')}; each at the commit in its "
            "line, for a run goes on from what an earlier one kept.\n\n"
            "| trap | what was switched off | file | first test that failed | commit |\n"
            "| --- | --- | --- | --- | --- |\n"
            + "\n".join(rows) + "\n",
            encoding="utf-8",
        )  # fmt: skip
    print(f"{noticed} of {len(wanted)} noticed")
    return 0 if noticed == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
