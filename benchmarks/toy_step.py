"""What a step of the toy tasks takes: `python benchmarks/toy_step.py` on a GPU, `--scale tiny` on a CPU.

Of runs of the paper's experiments: kernel by kernel, as one CUDA graph (where `compile` makes it one), and as
the run itself has it, with lessons that worker processes make meanwhile. The last over the second tells
whether the task starves the GPU. Milliseconds by the clock, median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from checkout import commit

from kvshift.paper.experiments import EXPERIMENTS
from kvshift.training.cores import usable_cores
from kvshift.training.task_data import Lesson, lessons, worker_count
from kvshift.training.task_recipe import TaskRecipe
from kvshift.training.task_run import TaskModel

WARM_UP = 10
NAMED = ("fig9", "fig3", "fig1b", "fig1a", "table7")


def step_seconds(model: TaskModel, upcoming: Iterator[Lesson], steps: int, repeats: int) -> float:
    """Of one step, after a warm-up."""

    def learn(count: int) -> None:
        for _ in range(count):
            model.learn(next(upcoming), 0)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    learn(WARM_UP)
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        learn(steps)
        found.append((time.perf_counter() - begin) / steps)
    return statistics.median(found)


def again(lesson: Lesson) -> Iterator[Lesson]:
    while True:
        yield lesson


def row(name: str, recipe: TaskRecipe, steps: int, repeats: int) -> str:
    model = TaskModel(recipe)
    one = next(iter(lessons(model.task, recipe.batch_size, 0, 1, model.device, workers=0)))
    graphed, model._step = model._step, model._learn_from
    found = [step_seconds(model, again(one), steps, repeats)]
    model._step = graphed
    found.append(step_seconds(model, again(one), steps, repeats))
    needed = WARM_UP + steps * repeats
    made = lessons(model.task, recipe.batch_size, 0, needed, model.device, workers=worker_count(model.device))
    found.append(step_seconds(model, iter(made), steps, repeats))
    return f"| {name} | " + " | ".join(f"{1e3 * seconds:.2f}" for seconds in found) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=["gpu", "tiny"], default="gpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.scale == "gpu" and not torch.cuda.is_available():
        parser.error("--scale gpu needs a CUDA GPU; take --scale tiny.")
    where = torch.cuda.get_device_name() if chosen.scale == "gpu" else "CPU"
    print(f"Commit {commit()}, {where}, {len(usable_cores())} cores, PyTorch {torch.__version__}\n")
    print("| run | ms kernel by kernel | as it runs, one lesson repeated | with its lessons |")
    print("| --- | --- | --- | --- |")
    for name in NAMED:
        seen = set()
        for run in EXPERIMENTS[name].runs[chosen.scale]:
            recipe = TaskRecipe(**run.settings)
            size = str(recipe.model)
            if recipe.shift is not None and size not in seen:
                seen.add(size)
                print(row(f"{name} {run.name}", recipe, chosen.steps, chosen.repeats), flush=True)


if __name__ == "__main__":
    main()
