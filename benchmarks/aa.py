"""How often does the verdict claim a difference where there is none?

Runs A/A pilots (the vanilla model against itself on other seeds), each with seeds of its own, and counts
their verdicts:  python benchmarks/aa.py --pilots 20 --jobs 2 --out aa/  [-- options of kvshift pilot]
A claim is a verdict of adopt or harmful, or any other that calls a difference decided.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from small_pilots import spread, start


def pilot(number: int, core: int | None, out: Path, options: list[str]) -> dict[str, Any]:
    folder = out / f"aa-{number:03d}"
    seeds = ",".join(str(1000 * (number + 1) + i) for i in range(3))
    code = start(folder, ["--arms", "vanilla,vanilla-again", "--seeds", seeds, *options], core).wait()
    if code != 0:
        return {"pilot": number, "exit": code}
    results = json.loads((folder / "report.json").read_text())
    verdict, gain = results["verdict"], results["overall_gain"]
    shutil.rmtree(folder / "runs")
    claim = verdict["decision"] in ("adopt", "harmful") or (
        verdict["decided"] and verdict["decision"] != "no_benefit"
    )
    row = {"pilot": number, "exit": 0, "decision": verdict["decision"], "reason": verdict["reason"]}
    return row | {"decided": verdict["decided"], "claim": claim} | gain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pilots", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("options", nargs="*", default=["--sizes", "d32-L2,d48-L2,d64-L2", "--tokens", "100k"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = spread(
        list(range(given.pilots)),
        given.jobs,
        lambda number, core: pilot(number, core, given.out, given.options),
        given.first_core,
    )
    (given.out / "aa.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(json.dumps(row))
    done = [row for row in rows if row["exit"] == 0]
    clear = sum(row["low"] > 0 or row["high"] < 0 for row in done)
    print(
        f"{len(done)} of {len(rows)} pilots ended; {sum(row['claim'] for row in done)} claimed a difference; "
        f"{clear} had an overall interval clear of zero; "
        f"decisions: {dict(Counter(row['decision'] for row in done))}"
    )


if __name__ == "__main__":
    main()
