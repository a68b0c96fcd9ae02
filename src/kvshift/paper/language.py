"""What the experiments with language models have in common: arms, runs, what a run leaves, gains.

Both arms of a comparison read the same windows in the same order from the same weights; the recipe's seed
decides all three (`kvshift.training`). A gain is vanilla's loss minus the other's, in nats a token, so that
above zero is better; gains are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvshift.errors import OutputError
from kvshift.paper.copying import Count, count_copied, count_of_final
from kvshift.paper.experiment import Measurement, Run, Scale, Settings
from kvshift.paper.learning import llama
from kvshift.paper.place import Place
from kvshift.shift import TAP_LEARNING_RATE, KVShiftConfig
from kvshift.training import Recipe
from kvshift.training import run as train
from kvshift.training.run import Watch

PAPER = KVShiftConfig(init="paper", lr_multiplier=1.0)
"""The paper's own setting: its claims are what is checked, not this package's default."""
ABOVE_LOWEST = 0.5  # nats: a run that ends so far above its lowest loss has diverged
KEPT_LOSSES = 40

SIZES: dict[Scale, Settings] = {
    "tiny": {
        "text": {"vocab_size": 300, "max_bytes": 600_000},
        "model": llama(16, 1, 2),
        "tokens": 1024,
        "sequence_length": 32,
        "batch_size": 4,
        "evaluations": 2,
        "evaluation_tokens": 512,
    },
    "small": {
        "text": {"vocab_size": 2048, "max_bytes": 30_000_000},
        "model": llama(64, 2, 2),
        "tokens": 1_638_400,
        "sequence_length": 256,
        "batch_size": 16,
        "evaluations": 20,
        "evaluation_tokens": 65_536,
    },
    "gpu": {
        "text": {"vocab_size": 8192},
        "model": llama(384, 6, 6),
        "tokens": 16_777_216,
        "sequence_length": 512,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "evaluations": 20,
        "evaluation_tokens": 262_144,
        "compile": True,
    },
}
"""Beside the arm and the seed. The paper's learning rate is constant after its warm-up; ours fall to a tenth,
as in PAPER.md §7, whose CPU runs `small` repeats; `gpu` is a third of its GPU runs."""

MODEL_RATES: dict[Scale, float] = {
    scale: size.get("learning_rate", Recipe.model_fields["learning_rate"].default)
    for scale, size in SIZES.items()
}


def language_run(arm: str, scale: Scale, shift: KVShiftConfig | None, seed: int, **changes: Any) -> Run:
    """A run of an arm; `changes` are of `SIZES[scale]`."""
    fields = {**SIZES[scale], **changes, "seed": seed, "device": "cuda" if scale == "gpu" else "cpu"}
    text = fields.pop("text")
    recipe = Recipe(data=Path(), shift=None if shift is None else shift.to_dict(), **fields)
    # With the recipe's defaults: a record must not change its meaning when they do.
    return Run(f"{arm}-seed{seed}", {"text": text, **recipe.model_dump(mode="json", exclude={"data"})})


def multiple_of(tap_rate: float, model_rate: float) -> float:
    """A rate of the taps as a multiple of the model's, as arms have it whose taps' rate is fixed."""
    return round(tap_rate / model_rate, 6)


def default_multiple(model_rate: float) -> float:
    """`multiple_of` for the default's rate of the taps."""
    return multiple_of(TAP_LEARNING_RATE, model_rate)


def in_file_name(arm: str) -> str:
    """An arm's name as a run's, which is a folder's."""
    return arm.translate(_IN_FILES)


_IN_FILES = str.maketrans({"×": "x", ",": "", " ": "-"})


def arms_runs(
    scale: Scale, arms: dict[str, KVShiftConfig | None], seeds: int, *, first_seed: int = 0, **changes: Any
) -> tuple[Run, ...]:
    """Every arm at every seed, seed by seed, so that an interrupted experiment has whole pairs."""
    return tuple(
        language_run(arm, scale, shift, seed, **changes)
        for seed in range(first_seed, first_seed + seeds)
        for arm, shift in arms.items()
    )


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """Trains, or goes on training, and counts what the trained model predicts."""
    return _measure(settings, place, None)


def measure_copying(settings: Settings, place: Place) -> dict[str, Any]:
    """`measure`, and at each evaluation how many of the tokens that it could copy the model predicts."""
    return _measure(settings, place, count_copied)


def _measure(settings: Settings, place: Place, watch: Watch | None) -> dict[str, Any]:
    fields = dict(settings)
    text = place.texts.prepared(fields.pop("text"), fields["tokens"])
    recipe = Recipe(data=text, **fields)
    record = train(recipe, place.folder, watch=watch)
    finished = record.status == "finished"
    step = max(1, len(record.steps) // KEPT_LOSSES)
    copying = {"copying": [[point.tokens, *point.values["copied"]] for point in record.watched]}
    return {
        **(copying if watch is not None else {}),
        "text": text.name,
        "status": record.status,
        "parameters": record.parameters - record.tap_parameters,
        "tap_parameters": record.tap_parameters,
        "tokens_per_second": record.tokens_per_second,
        "evaluations": [[point.tokens, point.nats_per_token] for point in record.evaluations],
        "training": [[point.tokens, point.loss] for point in record.steps[::step]],
        "taps": [
            {"tokens": point.tokens, "keys": point.keys, "values": point.values} for point in record.taps
        ],
        "predicted": count_of_final(recipe, place.folder) if finished else None,
    }


@dataclass(frozen=True)
class Trained:
    """One language model, trained."""

    settings: Settings
    measured: dict[str, Any]

    @property
    def seed(self) -> int:
        found: int = self.settings["seed"]
        return found

    @property
    def shift(self) -> Settings | None:
        return self.settings["shift"]

    @property
    def parameters(self) -> int:
        """Without taps: the same in both arms."""
        found: int = self.measured["parameters"]
        return found

    @property
    def learning_rate(self) -> float:
        found: float = self.settings["learning_rate"]
        return found

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Training tokens, validation loss in nats a token."""
        return [(tokens, loss) for tokens, loss in self.measured["evaluations"]]

    @property
    def diverged(self) -> bool:
        """Whether its loss stopped being a number, or ended far above its lowest."""
        if self.measured["status"] == "diverged" or not self.curve:
            return True
        return self.curve[-1][1] > min(loss for _, loss in self.curve) + ABOVE_LOWEST

    @property
    def loss(self) -> float:
        """At the end; infinite if it is not a number."""
        return self.curve[-1][1] if self.measured["status"] == "finished" else math.inf

    @property
    def copying(self) -> list[tuple[int, float]]:
        """Training tokens, the share that is predicted right of the tokens to copy; of `measure_copying`."""
        return [(tokens, right / max(total, 1)) for tokens, right, total in self.measured["copying"]]

    def share(self, which: Count) -> float:
        """Of the tokens of that kind that it predicts right; NaN if it diverged."""
        right, total = (self.measured["predicted"] or {}).get(which, (0, 0))
        return right / total if total else math.nan

    def tokens_to(self, loss: float) -> float | None:
        """Training tokens until that loss; None: never."""
        return first_at(self.curve, loss)


def first_at(curve: Sequence[tuple[int, float]], level: float) -> float | None:
    """Where a falling curve first is at `level` or below, on straight lines between points; None: nowhere."""
    before: tuple[float, float] | None = None
    for place, found in curve:
        if found <= level:
            if before is None or before[1] == found:
                return float(place)
            share = (before[1] - level) / (before[1] - found)
            return before[0] + share * (place - before[0])
        before = (place, found)
    return None


class Arms:
    """Trained models by arm and seed.

    Args:
        measurements: of one experiment.
        named: each arm's shift, None for vanilla.

    Raises:
        OutputError: the runs learned from different texts.
    """

    def __init__(self, measurements: Sequence[Measurement], named: dict[str, KVShiftConfig | None]) -> None:
        self.all = [Trained(each.settings, each.measured) for each in measurements]
        texts = {(str(each.settings["text"]), each.measured["text"]) for each in self.all}
        if len(texts) > len({asked for asked, _ in texts}):
            raise OutputError(
                "The runs learned from different texts: the text has changed since the first of them. Give "
                "another --out, or delete the experiment's folder there."
            )
        self._names = {
            _key(None if shift is None else shift.to_dict()): name for name, shift in named.items()
        }
        self.names = list(named)

    @cached_property
    def by_name(self) -> dict[str, list[Trained]]:
        """In the order of `named`; arms without runs are left out."""
        found: dict[str, list[Trained]] = {name: [] for name in self.names}
        for each in self.all:
            found[self._names[_key(each.shift)]].append(each)
        return {name: runs for name, runs in found.items() if runs}

    def gains(
        self,
        name: str,
        over: str = "vanilla",
        value: Callable[[Trained], float] = lambda run: -run.loss,
        keep: Callable[[Trained], bool] = lambda run: True,
    ) -> list[float]:
        """`value` of one arm minus that of another, seed by seed; not finite where one of them diverged.

        Args:
            value: higher is better; not finite for a run that diverged.
            keep: which runs count, where an arm has several of a seed.
        """
        mine, theirs = (
            {run.seed: value(run) for run in self.by_name.get(arm, []) if keep(run)} for arm in (name, over)
        )
        both = sorted(mine.keys() & theirs.keys())
        return [mine[seed] - theirs[seed] for seed in both]


def _key(shift: Settings | None) -> str:
    return str(shift and sorted(shift.items()))


def data_saved(
    arms: Arms, name: str, over: str = "vanilla", keep: Callable[[Trained], bool] = lambda run: True
) -> list[float]:
    """Seed by seed, the share of the training tokens that an arm needs less for the other's final loss.

    0 where it does not get there: what it would need beyond the run is not known. NaN where the other
    diverged.
    """
    theirs = {run.seed: run for run in arms.by_name[over] if keep(run)}
    found = []
    for mine in filter(keep, arms.by_name[name]):
        other = theirs.get(mine.seed)
        if other is None:
            continue
        needed = mine.tokens_to(other.loss)
        if not math.isfinite(other.loss):
            found.append(math.nan)
        else:
            found.append(0.0 if needed is None else 1 - needed / other.curve[-1][0])
    return found


def taps_of(run: Trained, when: int) -> list[tuple[list[float], list[float]]]:
    """Keys' and values' taps of every head, where `when` indexes the evaluations: 0 the start, -1 the end."""
    last = run.measured["taps"][when]
    return [
        (keys, values)
        for of_keys, of_values in zip(last["keys"], last["values"], strict=True)
        for keys, values in zip(of_keys, of_values, strict=True)
    ]
