"""How fast the synthetic tasks make their data: `python benchmarks/tasks.py` prints one row a task.

One process with one thread. Time is the processor's, so that other work on the machine does not count; the
median of the repeats is shown, with the fastest and the slowest. Tokens are positions of a batch, padding and
what is not scored included.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from kvshift.tasks.gsm import GradeSchoolMaths, decode, prompt, solution
from kvshift.tasks.gsm.task import ANSWER
from kvshift.tasks.hops import Hops
from kvshift.tasks.induction import Induction
from kvshift.tasks.ngram import NGram
from kvshift.tasks.task import Task

# Each with the number of rows an experiment uses.
ROWS: list[tuple[Task, int]] = [
    (Induction(), 256),
    (NGram(), 256),
    (Hops(), 32),
    (Hops(), 1700),
    (GradeSchoolMaths(), 32),
    (GradeSchoolMaths(train_operations=21, test_operations=24), 32),
]


def seconds_a_batch(task: Task, size: int, repeats: int) -> list[float]:
    """Processor seconds of each repeat, for batches that differ."""
    task.batch(0, size)
    found = []
    for repeat in range(repeats):
        batches = max(1, 2_000 // size)  # small batches are too quick to be timed alone
        begin = time.process_time()
        for step in range(batches):
            task.batch(1 + repeat * batches + step, size)
        found.append((time.process_time() - begin) / batches)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--show", action="store_true", help="print a maths problem with its solution first")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.show:
        (problem,) = GradeSchoolMaths().problems(0, 1)
        print(decode(prompt(problem)), decode(solution(problem)[0]), sep="\n", end="\n\n")
    print("| task | rows × length | ms a batch | million tokens/s | problems/s |")
    print("| --- | --- | --- | --- | --- |")
    for task, size in ROWS:
        times = seconds_a_batch(task, size, chosen.repeats)
        middle = statistics.median(times)
        problems = "—"
        if isinstance(task, GradeSchoolMaths):
            packed = int((task.batch(1, size).groups == ANSWER).sum())
            problems = f"{packed / middle:,.0f}"
        settings = ", ".join(
            f"{name}={getattr(task, name)}"
            for name in ("train_operations", "most_hops")
            if hasattr(task, name)
        )
        print(
            f"| {type(task).__name__}({settings}) | {size} × {task.length} "
            f"| {middle * 1e3:.2f} [{min(times) * 1e3:.2f}, {max(times) * 1e3:.2f}] "
            f"| {size * task.length / middle / 1e6:.1f} | {problems} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
