"""Every family in every way of running it: `python benchmarks/modes.py` fills docs/results/models.md.

The ways and the tiny models are those of tests/models/helpers. A cell is the largest difference of its logits
from full forwards without cache, padding or packing, in units of the logits' standard deviation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers
from checkout import commit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "models.md"
sys.path.insert(0, str(ROOT / "tests" / "models" / "helpers"))

from compiled_modes import COMPILED  # noqa: E402
from modes import MODES, Mode  # noqa: E402
from tiny_models import TINY, make_shifted, make_vanilla  # noqa: E402

import kvshift  # noqa: E402
from kvshift.errors import UnsupportedModelError  # noqa: E402

SHIFT = kvshift.KVShiftConfig(init="paper", window=3)
WIDE = 8  # models beside each other
WRONG = 0.5  # more than rounding in any type
MUCH = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 0.08}
"""So that one wants to know what the unshifted model's is: the library does some things in float32 only."""
EVERY = {**MODES, **COMPILED}


def build(name: str, dtype: torch.dtype, shifted: bool) -> transformers.PreTrainedModel:
    # A configuration of these may say how many KV heads there are, but all heads are.
    changes = {"num_key_value_heads": 4} if name in ("gpt2", "gpt_neox", "opt") else {}
    with torch.device("cpu"):
        made = make_shifted(name, SHIFT, dtype=dtype, **changes) if shifted else make_vanilla(name, **changes)
    if dtype == torch.float64:
        made.set_experts_implementation("eager")  # the library's default has no float64
    return made.to(torch.get_default_device(), dtype)


def largest(mode: Mode, model: transformers.PreTrainedModel) -> float:
    """In units of the standard deviation of what is expected; NaN where something is not a number."""
    worst = 0.0
    with torch.no_grad():
        for found, expected in mode(model):
            spread = expected.double().std() if expected.numel() > 1 else torch.ones(())
            worst = max(
                worst, float((found.double() - expected.double()).abs().max() / spread), key=_nan_last
            )
    return worst


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def cell(name: str, mode: str, models: dict[bool, transformers.PreTrainedModel]) -> str:
    torch._dynamo.reset()
    much = MUCH[models[True].dtype]
    try:
        found = largest(EVERY[mode], models[True])
        if not found < WRONG and not largest(EVERY[mode], models[False]) < WRONG:
            return "as theirs"
        if found > much:
            return f"{_short(found)} (unshifted {_short(largest(EVERY[mode], models[False]))})"
        return _short(found)
    except UnsupportedModelError:
        return "refused"
    except Exception as error:
        try:
            largest(EVERY[mode], models[False])
        except Exception:
            return "—"  # the library cannot, shifted or not
        print(f"  {name}, {mode}: {type(error).__name__}: {error}", file=sys.stderr)
        return "**FAILS**"


def _short(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def column(name: str, modes: list[str], device: str, dtype: torch.dtype) -> dict[str, str]:
    """The cells of one model."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_default_device(device)
    models = {shifted: build(name, dtype, shifted) for shifted in (True, False)}
    return {mode: cell(name, mode, models) for mode in modes}


def table(names: list[str], rows: dict[str, dict[str, str]]) -> str:
    blocks = []
    for first in range(0, len(names), WIDE):
        part = names[first : first + WIDE]
        head = f"| way of running | {' | '.join(part)} |\n| --- |{' --- |' * len(part)}\n"
        lines = [f"| {mode} | {' | '.join(cells[name] for name in part)} |" for mode, cells in rows.items()]
        blocks.append(head + "\n".join(lines))
    return "\n\n".join(blocks)


def write(section: str, text: str) -> None:
    """Replaces a section of the page, from its mark to the next one's end."""
    begin, end = f"<!-- modes: {section} -->", f"<!-- end of modes: {section} -->"
    page = PAGE.read_text(encoding="utf-8")
    block = f"{begin}\n{text}\n{end}\n"
    if begin in page:
        page = page[: page.index(begin)] + block + page[page.index(end) + len(end) + 1 :]
    else:
        page = page.rstrip("\n") + "\n\n" + block
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16"))
    parser.add_argument("--models", nargs="+", default=sorted(TINY), choices=sorted(TINY))
    parser.add_argument("--modes", nargs="+", default=list(EVERY), choices=list(EVERY))
    parser.add_argument("--jobs", type=int, default=1, help="models beside each other, a process each")
    parser.add_argument("--keep", type=Path, help="a file of what is done, to go on from if interrupted")
    parser.add_argument("--print", action="store_true", help="print the table instead of writing it")
    chosen = parser.parse_args()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # each process compiles for itself
    known: dict[str, dict[str, str]] = {}
    if chosen.keep and chosen.keep.exists():
        known = json.loads(chosen.keep.read_text())
    missing = [name for name in chosen.models if name not in known]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=fresh) as pool:
        dtype = getattr(torch, chosen.dtype)
        columns = {pool.submit(column, name, chosen.modes, chosen.device, dtype): name for name in missing}
        for done in as_completed(columns):
            name = columns[done]
            known[name] = done.result()
            print(f"{name}: {', '.join(sorted(set(known[name].values())))}", flush=True)
            if chosen.keep:
                chosen.keep.write_text(json.dumps(known))
    rows = {mode: {name: known[name][mode] for name in chosen.models} for mode in chosen.modes}
    versions = f"PyTorch {torch.__version__}, Transformers {transformers.__version__}"
    device = torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "CPU"
    said = (
        f"## Every way of running, {chosen.dtype}, {device}\n\n"
        f"`python benchmarks/modes.py --device {chosen.device} --dtype {chosen.dtype} --jobs {chosen.jobs}`, "
        f"{datetime.date.today()}, commit {commit()}, {versions}. Largest difference from full forwards, in "
        "units of the logits' standard deviation. *refused*: with a sentence, because the library's own "
        "layers would be wrong; *as theirs*: the unshifted model is off there as well; —: the library "
        f"cannot, shifted or not. Over {_short(MUCH[dtype])}, the unshifted model's difference stands beside "
        "it.\n\n" + table(chosen.models, rows)
    )
    if chosen.print:
        print(said)
    else:
        write(f"{chosen.dtype} {device}", said)


if __name__ == "__main__":
    main()
