"""Pictures of a report to look at: `python tests/pilot/report/shoot.py report.html FOLDER`.

Without a page it makes the sample reports first, in both languages, and shoots those.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from kvshift.pilot.report import write_report

VIEWS = {"light": (1280, False), "dark": (1280, True), "phone": (375, False)}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def shoot(pages: dict[str, Path], folder: Path) -> None:
    """Light, dark and phone pictures and a print of each page; `top` is the first screen alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = load("browser").Browser(Path(profile))
        try:
            for name, page in pages.items():
                for view, (width, dark) in VIEWS.items():
                    browser.open(page, width, 900, dark)
                    browser.screenshot(folder / f"{name}-{view}.png")
                browser.open(page, 1280, 960)
                browser.screenshot(folder / f"{name}-top.png", whole=False)
                browser.pdf(folder / f"{name}.pdf")
        finally:
            browser.close()


def main(arguments: list[str]) -> None:
    if len(arguments) == 2:
        shoot({"report": Path(arguments[0])}, Path(arguments[1]))
        return
    samples, folder = load("samples"), Path(arguments[0])
    pages = {
        f"{kind}-{language}": write_report(samples.results(kind), folder / kind / language, language)
        for kind in samples.KINDS
        for language in ("en", "ja")
    }
    shoot(pages, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
