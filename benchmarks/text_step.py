"""What recording saves of a text run's step: `python benchmarks/text_step.py` on a GPU, `--cpu` to try it.

The pilot's own models and text: kernel by kernel, as CUDA graphs, both again with compiled layers. Each
number is the median step of a run of `--seconds` (`measure_speed`, which is what the pilot plans with), in
milliseconds, and behind it the seconds until the first step.
"""

from __future__ import annotations

import argparse
import gc
import os

import torch
from checkout import commit

from kvshift.pilot.ladder import rung
from kvshift.pilot.plan import learning_rate
from kvshift.shift import KVShiftConfig
from kvshift.tasks.text import TextData, TextRequest, prepare
from kvshift.training import Recipe, measure_speed
from kvshift.training.cores import usable_cores
from kvshift.training.graphed import VARIABLE

WAYS = {
    # what the environment says of graphs, and whether layers are compiled
    "kernel by kernel": ("0", False),
    "recorded": ("1", False),
    "compiled, kernel by kernel": ("0", True),
    "compiled, recorded": ("1", True),
}


def recipe(data: TextData, name: str, shifted: bool, device: str, compiled: bool) -> Recipe:
    """As the pilot has it, of 32 windows."""
    length = 1024 if device == "cuda" else 64
    size = rung(name, data.vocab_size, length)
    return Recipe(
        data=data.folder,
        model=size.model,
        shift=KVShiftConfig().to_dict() if shifted else None,
        tokens=10_000_000,
        sequence_length=length,
        batch_size=32 if device == "cuda" else 2,
        learning_rate=learning_rate(size.hidden),
        evaluation_tokens=8 * length,
        device=device,
        compile=compiled,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--sizes", nargs="+", default=["d128-L3", "d256-L5", "d512-L8", "d768-L12"])
    parser.add_argument("--seconds", type=float, default=1.5)
    chosen = parser.parse_args()
    device = "cpu" if chosen.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU; --cpu tries the benchmark itself.")
    where = "CPU" if chosen.cpu else torch.cuda.get_device_name()
    data = prepare(TextRequest(max_bytes=4_000_000) if chosen.cpu else TextRequest())
    print(f"Commit {commit()}, {where}, {len(usable_cores())} cores, PyTorch {torch.__version__}\n")
    ways = WAYS if device == "cuda" else {"kernel by kernel": WAYS["kernel by kernel"]}
    print(f"| model | {' | '.join(ways)} |")
    print("| --- |" + " --- |" * len(ways), flush=True)
    for name in chosen.sizes:
        for shifted in (False, True):
            cells = []
            for graphs, compiled in ways.values():
                os.environ[VARIABLE] = graphs
                gc.collect()  # the trainer before, whose graphs hold memory
                speed = measure_speed(recipe(data, name, shifted, device, compiled), seconds=chosen.seconds)
                cells.append(f"{1e3 * speed.step_seconds:.2f} ({speed.startup_seconds:.1f})")
            arm = "KV shift" if shifted else "vanilla"
            print(f"| {name}, {arm} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
