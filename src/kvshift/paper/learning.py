"""What the experiments that train have in common: models, arms, learning curves, intervals over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scipy import stats

from kvshift.paper.experiment import Judgement, Measurement, Run, Scale, Settings, Verdict
from kvshift.paper.place import Place
from kvshift.shift import KVShiftConfig
from kvshift.training.task_recipe import TaskRecipe
from kvshift.training.task_run import train_task

SHIFT = KVShiftConfig(init="paper", lr_multiplier=1.0).to_dict()
"""The paper's own setting: its claims are what is checked, not this package's default."""


def llama(hidden: int, layers: int, heads: int, rotary_base: float | None = None) -> Settings:
    """A Llama whose feed-forward layers are as wide, beside its hidden size, as in the paper's 1.5B model.

    Without a `rotary_base` it is Llama's own, 10,000.
    """
    rotary: Settings = {}
    if rotary_base is not None:
        rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": rotary_base}}
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 43 // 16,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        **rotary,
    }


def gpt2(hidden: int, layers: int, heads: int, dropout: float = 0.0) -> Settings:
    """A GPT-2, whose positions are learned. `dropout`: of embeddings, attention, residuals (its own: 0.1)."""
    drop = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads, **drop}


def layers_name(count: int) -> str:
    """For people."""
    return f"{count} layer{'' if count == 1 else 's'}"


def arm_name(layers: int, shifted: bool) -> str:
    """For people."""
    return f"{kind_name(shifted)}, {layers_name(layers)}"


def kind_name(shifted: bool) -> str:
    """For people, where arms do not differ in their layers."""
    return "KV shift" if shifted else "vanilla"


def make_run(name: str, scale: Scale, *, shifted: bool, seed: int, **fields: Any) -> Run:
    """A run of one arm; at scale gpu on a GPU, compiled, elsewhere on the CPU wherever it is done."""
    where = {"device": "cuda", "compile": True} if scale == "gpu" else {}
    arm = "kv" if shifted else "vanilla"
    recipe = TaskRecipe(shift=SHIFT if shifted else None, seed=seed, **where, **fields)
    return Run(f"{name}-{arm}-seed{seed}", recipe.settings())


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """Trains, or goes on training, in the place's folder."""
    return dataclasses.asdict(train_task(TaskRecipe(**settings), place.folder))


@dataclass(frozen=True)
class Curve:
    """How one run learned."""

    shifted: bool
    layers: int
    width: int
    seed: int
    task_settings: Settings
    diverged: bool
    parameters: int
    steps: list[int]
    scores: list[dict[str, list[int]]]
    grades: dict[str, list[int]]

    @property
    def arm(self) -> str:
        return arm_name(self.layers, self.shifted)

    def accuracies(self, score: str) -> list[float]:
        """At each of `steps`."""
        return [_share(scores[score]) for scores in self.scores]

    def final(self, score: str) -> float:
        """At the end; NaN if the run diverged."""
        return math.nan if self.diverged else self.accuracies(score)[-1]

    def average(self, score: str) -> float:
        """Over all evaluations: how much was learned and how soon; NaN if the run diverged."""
        found = self.accuracies(score)
        return math.nan if self.diverged else sum(found) / len(found)

    def graded(self, score: str) -> float:
        """Of the derivations that the model wrote itself; NaN if the run diverged."""
        return math.nan if self.diverged else _share(self.grades[score])

    def reached(self, score: str, level: float) -> int | None:
        """The first evaluated step with an accuracy of at least `level`; None if there is none."""
        found = zip(self.steps, self.accuracies(score), strict=True)
        return next((step for step, accuracy in found if accuracy >= level), None)


def curve(measurement: Measurement) -> Curve:
    """A run's learning curve."""
    settings, measured = measurement.settings, measurement.measured
    model = settings["model"]
    return Curve(
        shifted=settings["shift"] is not None,
        layers=model.get("num_hidden_layers", model.get("n_layer")),
        width=model.get("hidden_size", model.get("n_embd")),
        seed=settings["seed"],
        task_settings=settings["task_settings"],
        diverged=measured["status"] == "diverged",
        parameters=measured["parameters"] - measured["tap_parameters"],
        steps=[point["step"] for point in measured["points"]],
        scores=[point["scores"] for point in measured["points"]],
        grades=measured["grades"],
    )


def lost(curves: Sequence[Curve]) -> Judgement | None:
    """The judgement of an experiment in which runs diverged: nothing can be decided. None if none did."""
    found = [f"{each.arm}, seed {each.seed}" for each in curves if each.diverged]
    if not found:
        return None
    return Judgement(
        verdict="undecided",
        ours=f"{len(found)} of {len(curves)} runs diverged",
        finding=f"Diverged: {'; '.join(found)}. A comparison with what is left would be unequal.",
    )


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and where the true one lies, by Student's t."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.rounded(3)

    @property
    def verdict(self) -> Verdict:
        """Of the claim that the true one is above 0."""
        if self.low > 0:
            return "reproduced"
        return "not" if self.high < 0 else "undecided"

    def _open(self) -> str:
        """Why it has no ends."""
        return "one seed" if math.isfinite(self.mean) else "a run diverged"

    def percent(self) -> str:
        """For people, where the numbers are shares."""
        low, high = (round(100 * end) if math.isfinite(end) else end for end in (self.low, self.high))
        return f"{self.mean:.0%}" + (f" ({self._open()})" if math.isinf(self.low) else f" [{low}, {high}]")

    def rounded(self, digits: int) -> str:
        """For people, with so many digits behind the point."""
        if math.isinf(self.low):
            return f"{self.mean:.{digits}f} ({self._open()})"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Of at least one value; one alone, or one that is not finite, leaves everything open.

    So a seed that is lost decides nothing, instead of the seeds that are left deciding alone.
    """
    count, mean = len(values), sum(values) / len(values)
    if count == 1 or not math.isfinite(mean):
        return Interval(mean, -math.inf, math.inf)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def gains(curves: Sequence[Curve], value: Callable[[Curve], float]) -> list[float]:
    """KV shift minus vanilla, seed by seed, over the seeds that both arms of `curves` have."""
    found: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for each in curves:
        found[each.shifted][each.seed] = value(each)
    both = sorted(found[True].keys() & found[False].keys())
    return [found[True][seed] - found[False][seed] for seed in both]


def final(score: str) -> Callable[[Curve], float]:
    """The accuracy at the end, as `gains` takes it."""
    return partial(Curve.final, score=score)


def average(score: str) -> Callable[[Curve], float]:
    """The accuracy averaged over the run, as `gains` takes it."""
    return partial(Curve.average, score=score)


def _share(count: list[int]) -> float:
    right, total = count
    return right / total if total else math.nan
