"""Does a pilot survive kill -9 at any moment with the same results?

Runs a small pilot to its end once, then again and again with a kill at a random moment (of its process,
or of the whole process group), resuming until it ends; compares every run's final weights, losses and the
report's gains with the uninterrupted pilot's:  python benchmarks/kills.py --kills 20 --jobs 2 --out kills/
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from small_pilots import spread, start

OPTIONS = ["--sizes", "d32-L2,d48-L2", "--seeds", "1", "--tokens", "60k"]


def fingerprint(folder: Path) -> dict[str, Any]:
    """Everything of a finished pilot that time does not enter."""
    results = json.loads((folder / "report.json").read_text())
    weights = {
        path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("runs/*/final/model.safetensors"))
    }
    runs = {row["name"]: (row["status"], row["final_nats_per_token"]) for row in results["runs"]}
    gains = [size["differences"] for size in results["by_size"]]
    return {"weights": weights, "runs": runs, "gains": gains, "curves": results["curves"]}


def killed(
    number: int, core: int | None, out: Path, seconds: float, wanted: dict[str, Any]
) -> dict[str, Any]:
    """One pilot, killed once at a random moment, then resumed to its end."""
    chance = random.Random(number)
    folder, moment, group = out / f"kill-{number:03d}", chance.uniform(0, seconds), chance.random() < 0.5
    process = start(folder, OPTIONS, core)
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    alive = process.poll() is None
    if alive:
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    done = sorted(path.parts[-2] for path in folder.glob("runs/*/status.json"))
    code = start(folder, OPTIONS, core).wait()
    same = code == 0 and json.loads(json.dumps(fingerprint(folder))) == wanted
    return {"kill": number, "after_seconds": round(moment, 2), "whole_group": group, "was_running": alive} | {
        "runs_done": len(done),
        "exit": code,
        "same": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    whole = given.out / "uninterrupted"
    if spread([whole], 1, lambda folder, core: start(folder, OPTIONS, core).wait(), given.first_core) != [0]:
        raise SystemExit(f"The uninterrupted pilot failed; see {whole}.log")
    seconds = time.monotonic() - began
    wanted = json.loads(json.dumps(fingerprint(whole)))
    rows = spread(
        list(range(given.kills)),
        given.jobs,
        lambda number, core: killed(number, core, given.out, seconds, wanted),
        given.first_core,
    )
    (given.out / "kills.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(json.dumps(row))
    print(
        f"{sum(row['was_running'] for row in rows)} of {len(rows)} pilots were killed while running; "
        f"{sum(row['same'] for row in rows)} ended with the same weights, losses and gains "
        f"({len(wanted['weights'])} runs each)."
    )


if __name__ == "__main__":
    main()
