"""What a reader has to know before believing a pilot: notes from the plan, the runs and the text."""

from __future__ import annotations

from typing import Any

from kvshift.pilot.notes import Note, note
from kvshift.pilot.pairs import Pairs, diverged, end
from kvshift.pilot.results import DataSavedCheck, SizeResult
from kvshift.pilot.verdict import LEAST_PAIRS_FOR_RANKS

FEW_SEEDS = 3
FEW_SIZES = 3
FEW_TOKENS_PER_PARAMETER = 5.0
FEW_VALIDATION_DOCUMENTS = 20
MANY_EPOCHS = 4.0
WIDE_RATIO = 0.1  # a throughput ratio's interval, end to end

_SAID_AGAIN = {
    "two_seeds": "few_seeds",
    "one_size": "few_sizes",
    "two_sizes": "few_sizes",
    "text_repeated": "learned_by_heart",
    "far_from_trained": "few_tokens",
}
"""Notes of a plan, each with the note of its results that leaves nothing of it to say."""


def caveats(
    pairs: Pairs, by_size: list[SizeResult], check: DataSavedCheck | None, data: dict[str, Any]
) -> list[Note]:
    """The plan's own warnings, then what the runs, the design, the text and the clock add to them."""
    found = [*_runs(pairs), *_design(pairs), *_text(pairs, data), *_timing(pairs, by_size)]
    if check is not None and not check.agrees:
        found.append(note("curves_flatter"))
    keys = {one.key for one in found}
    found = [one for one in pairs.plan.warnings if _SAID_AGAIN.get(one.key) not in keys] + found
    return [one for index, one in enumerate(found) if one not in found[:index]]


def _runs(pairs: Pairs) -> list[Note]:
    """Pairs that were lost, and how."""
    found = []
    arms = (pairs.plan.arms[0].name, pairs.plan.arms[1].name)
    counts = [
        sum(diverged(pair.baseline) for pair in pairs),
        sum(diverged(pair.candidate) for pair in pairs),
    ]
    for arm, count in zip(arms, counts, strict=True):
        if count:
            found.append(note("diverged", runs=count, arm=arm))
    baseline_alone, candidate_alone = pairs.diverged_alone()
    if baseline_alone:
        found.append(
            note("baseline_diverged_alone", pairs=baseline_alone, baseline=arms[0], candidate=arms[1])
        )
    if candidate_alone:
        found.append(
            note("candidate_diverged_alone", pairs=candidate_alone, baseline=arms[0], candidate=arms[1])
        )
    runs = [run for pair in pairs for run in (pair.baseline, pair.candidate)]
    lost = sum(end(run) is None and not diverged(run) for run in runs)
    if lost:
        found.append(note("runs_lost", lost=lost, total=len(runs)))
    return found


def _design(pairs: Pairs) -> list[Note]:
    """Too few seeds, sizes or tokens to say much."""
    found = []
    seeds, sizes = len(pairs.plan.seeds), len(pairs.plan.sizes)
    if seeds < FEW_SEEDS:
        found.append(note("few_seeds", seeds=seeds))
    if sizes < FEW_SIZES:
        found.append(note("few_sizes", sizes=sizes))
    complete = sum(pair.complete for pair in pairs)
    if complete < LEAST_PAIRS_FOR_RANKS:
        found.append(note("few_pairs", pairs=complete))
    ratio = pairs.plan.tokens / pairs.top.parameters
    if ratio < FEW_TOKENS_PER_PARAMETER:
        found.append(note("few_tokens", ratio=ratio))
    return found


def _text(pairs: Pairs, data: dict[str, Any]) -> list[Note]:
    """What the text does to the comparison; keys are those of `TextData.summary()`."""
    found = []
    train = data.get("train_tokens")
    if train and pairs.plan.tokens / train > MANY_EPOCHS:
        found.append(note("learned_by_heart", epochs=pairs.plan.tokens / train))
    if data.get("passages"):
        found.append(note("passages_of_one_text"))
    documents = data.get("validation_documents")
    if documents is not None and documents < FEW_VALIDATION_DOCUMENTS:
        found.append(note("few_validation_documents", documents=documents))
    return found


def _timing(pairs: Pairs, by_size: list[SizeResult]) -> list[Note]:
    """How far to trust the clock."""
    found = []
    devices = [run.device for pair in pairs for run in (pair.baseline, pair.candidate) if run is not None]
    if any(device.upper().startswith("CPU") for device in devices):
        found.append(note("timed_on_a_cpu"))
    elif devices and pairs.plan.arms[1].shift and not any(run.recipe.compile for run in pairs.plan.runs):
        found.append(note("timed_uncompiled"))
    for result in by_size:
        ratio = result.throughput_ratio
        if ratio and ratio.low is not None and ratio.high is not None and ratio.high - ratio.low > WIDE_RATIO:
            found.append(note("unsteady_clock", size=result.size, low=ratio.low, high=ratio.high))
    return found
