"""What KV shift adds to a training step on a CPU: `python benchmarks/cpu_step.py --threads 2 1`.

Vanilla, the shift by its definition, and the shift as models run it take turns, step by step and in an order
drawn afresh for each turn, so that whatever else the machine does slows them alike. A step is forward,
backward and AdamW, on packed documents, of the pilot's own models. What is compared is each turn's ratio, by
the clock and, for one thread, by the CPU time of that thread, in which other programs matter less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kvshift.kernels import dispatch
from kvshift.pilot.ladder import rung
from kvshift.shift import KVShiftConfig
from kvshift.training.data import Batch
from kvshift.training.evaluation import token_losses
from kvshift.training.model import build_model, parameter_groups
from kvshift.training.recipe import Recipe

SIZES = ("d48-L2", "d64-L2", "d96-L3", "d256-L4")
VOCABULARY, LENGTH = 2048, 256
DOCUMENT = 100  # mean length
WARM_UP = 5
ARMS = {
    # name: whether the model is shifted, and the backend
    "vanilla": (False, "auto"),
    "definition": (True, "definition"),
    "ours": (True, "auto"),
}


def packed(batch: int) -> Batch:
    """Random tokens in documents of random lengths."""
    tokens = torch.randint(VOCABULARY, (batch, LENGTH + 1))
    starts = torch.rand(batch, LENGTH) < 1 / DOCUMENT
    starts[:, 0] = True
    columns = torch.arange(LENGTH)
    positions = columns - torch.where(starts, columns, 0).cummax(1).values
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].clone(), "position_ids": positions}


def stepper(size: str, batch: Batch, arm: str, shift: KVShiftConfig) -> Callable[[], None]:
    """A training step of one arm."""
    shifted, backend = ARMS[arm]
    recipe = Recipe(
        data=Path(),
        model=rung(size, VOCABULARY, LENGTH).model,
        shift=shift.to_dict() if shifted else None,
        tokens=1_000_000,
        sequence_length=LENGTH,
        device="cpu",
        learning_rate=1e-9,  # both models stay what they are: a softmax is slower for some values
    )
    model = build_model(recipe, VOCABULARY, end_token=0).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), betas=recipe.betas, fused=True)

    def step() -> None:
        with dispatch.forced(backend):
            token_losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def measure(size: str, sequences: int, threads: int, seconds: float, shift: KVShiftConfig) -> dict:
    """Milliseconds a step of each arm, and ratios to vanilla of each turn."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch = packed(sequences)
    steps = {arm: stepper(size, batch, arm, shift) for arm in ARMS}
    for _ in range(WARM_UP):
        for step in steps.values():
            step()
    clocks = {"wall": time.perf_counter} | ({"cpu": time.thread_time} if threads == 1 else {})
    times: dict = {clock: {arm: [] for arm in ARMS} for clock in clocks}
    order, end = list(ARMS), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["wall"]["vanilla"]) < 2:  # quartiles need two
        random.shuffle(order)
        for arm in order:
            began = {clock: now() for clock, now in clocks.items()}
            steps[arm]()
            for clock, now in clocks.items():
                times[clock][arm].append(1000 * (now() - began[clock]))
    found: dict = {"size": size, "batch": sequences, "threads": threads}
    return found | {clock: summary(each) for clock, each in times.items()}


def summary(times: dict[str, list[float]]) -> dict:
    """Medians in milliseconds, and of the turns' ratios to vanilla with their quartiles."""
    made: dict = {"turns": len(times["vanilla"]), "vanilla_ms": statistics.median(times["vanilla"])}
    for arm in ("definition", "ours"):
        ratios = [mine / plain for mine, plain in zip(times[arm], times["vanilla"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        made[arm] = {"ratio": middle, "quartiles": [low, high]}
    return made


def line(row: dict) -> str:
    """One row of the table."""
    parts = [f"{row['size']:8} {row['batch']:2} × {LENGTH}  {row['threads']} threads"]
    for clock in ("wall", "cpu"):
        if clock in row:
            found = row[clock]
            parts.append(f"{found['turns']:5} turns  {clock}: vanilla {found['vanilla_ms']:7.2f} ms")
            for arm in ("definition", "ours"):
                low, high = found[arm]["quartiles"]
                parts.append(f"{arm} {found[arm]['ratio']:.3f} [{low:.3f}, {high:.3f}]")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--seconds", type=float, default=20, help="for each row of the table")
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--queries", action="store_true", help="shift them too")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    shift = KVShiftConfig(window=chosen.window, per_channel=chosen.per_channel, shift_queries=chosen.queries)
    rows = []
    print(f"PyTorch {torch.__version__}, {os.cpu_count()} cores; medians, ratios to vanilla [quartiles]")
    for threads in chosen.threads:
        for size in chosen.sizes:
            for sequences in chosen.batches:
                row = measure(size, sequences, threads, chosen.seconds, shift)
                rows.append(row)
                print(line(row), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
