"""What a reader has to know before believing a pilot: plain sentences from the plan and the runs."""

from __future__ import annotations

from typing import Any

from kvshift.pilot.pairs import Pairs, diverged, end
from kvshift.pilot.results import DataSavedCheck, SizeResult
from kvshift.pilot.verdict import LEAST_PAIRS_FOR_RANKS

FEW_SEEDS = 3
FEW_SIZES = 3
FEW_TOKENS_PER_PARAMETER = 5.0
FEW_VALIDATION_DOCUMENTS = 20
MANY_EPOCHS = 4.0
WIDE_RATIO = 0.1  # a throughput ratio's interval, end to end


def caveats(
    pairs: Pairs, by_size: list[SizeResult], check: DataSavedCheck | None, data: dict[str, Any]
) -> list[str]:
    """The plan's own warnings, then what the runs, the design, the text and the clock add to them."""
    found = [*pairs.plan.warnings, *_runs(pairs), *_design(pairs), *_text(pairs, data)]
    found += _timing(pairs, by_size)
    if check is not None and not check.agrees:
        found.append(
            "The learning curves suggest more data saved than the runs planned at a shorter length: the "
            "numbers at the largest size rest on the planned runs, those of the other sizes may be too high."
        )
    return list(dict.fromkeys(found))


def _runs(pairs: Pairs) -> list[str]:
    """Pairs that were lost, and how."""
    found = []
    arms = (pairs.plan.arms[0].name, pairs.plan.arms[1].name)
    counts = [
        sum(diverged(pair.baseline) for pair in pairs),
        sum(diverged(pair.candidate) for pair in pairs),
    ]
    for arm, count in zip(arms, counts, strict=True):
        if count:
            found.append(
                f"{_runs_of(count, arm)} diverged (the loss became infinite or not a number). "
                "Such a pair has no difference and is left out of every average."
            )
    baseline_alone, candidate_alone = pairs.diverged_alone()
    if baseline_alone:
        found.append(
            f"In {_count(baseline_alone, 'pair')} only {arms[0]} diverged while {arms[1]} finished. "
            f"That speaks for {arms[1]}'s stability, but it is not counted as a gain."
        )
    if candidate_alone:
        found.append(
            f"In {_count(candidate_alone, 'pair')} only {arms[1]} diverged while {arms[0]} finished: "
            "the pairs that are left may flatter it."
        )
    runs = [run for pair in pairs for run in (pair.baseline, pair.candidate)]
    lost = sum(end(run) is None and not diverged(run) for run in runs)
    if lost:
        found.append(
            f"{_count(lost, 'main run')} of {len(runs)} failed or did not finish; their pairs are missing. "
            "Start the same pilot again to run what is missing."
        )
    return found


def _design(pairs: Pairs) -> list[str]:
    """Too few seeds, sizes or tokens to say much."""
    found = []
    seeds, sizes = len(pairs.plan.seeds), len(pairs.plan.sizes)
    if seeds < FEW_SEEDS:
        found.append(
            f"Only {_count(seeds, 'seed')}: the spread between runs is hardly known. Use three or more."
        )
    if sizes < FEW_SIZES:
        found.append(
            f"Only {_count(sizes, 'model size')}: how the gain moves with size cannot be fitted. "
            "Use three or more."
        )
    complete = sum(pair.complete for pair in pairs)
    if complete < LEAST_PAIRS_FOR_RANKS:
        found.append(
            f"Only {_count(complete, 'complete pair')}: the verdict rests on the intervals alone, which "
            "suppose that runs spread like a bell curve."
        )
    ratio = pairs.plan.tokens / pairs.top.parameters
    if ratio < FEW_TOKENS_PER_PARAMETER:
        found.append(
            f"The largest model saw {ratio:.2g} tokens for each of its parameters, far from what a real "
            "training uses (20 or more). Gains of short runs tend to be larger than those of long ones."
        )
    return found


def _text(pairs: Pairs, data: dict[str, Any]) -> list[str]:
    """What the text does to the comparison; keys are those of `TextData.summary()`."""
    found = []
    train = data.get("train_tokens")
    if train and pairs.plan.tokens / train > MANY_EPOCHS:
        found.append(
            f"Each run reads the training text {pairs.plan.tokens / train:.1f} times: part of what is "
            "measured is how the arms learn by heart. More text would be fairer."
        )
    if data.get("passages"):
        found.append(
            "The text is one large file, split into passages: training and validation come from the same "
            "source, so both arms' losses are lower than on new documents."
        )
    documents = data.get("validation_documents")
    if documents is not None and documents < FEW_VALIDATION_DOCUMENTS:
        found.append(
            f"Validation rests on {_count(documents, 'document')}: the intervals cover the spread between "
            "seeds, not the choice of those documents."
        )
    return found


def _timing(pairs: Pairs, by_size: list[SizeResult]) -> list[str]:
    """How far to trust the clock."""
    found = []
    devices = [run.device for pair in pairs for run in (pair.baseline, pair.candidate) if run is not None]
    if any(device.upper().startswith("CPU") for device in devices):
        found.append(
            "Speeds were measured on a CPU, where other programs disturb them and the shift costs relatively "
            "more than on a GPU. Measure the speed again where you train."
        )
    for result in by_size:
        ratio = result.throughput_ratio
        if ratio and ratio.low is not None and ratio.high is not None and ratio.high - ratio.low > WIDE_RATIO:
            found.append(
                f"At {result.size} the speed of the two arms varied from pair to pair (ratio {ratio.low:.2f} "
                f"to {ratio.high:.2f}), so the time saved there is uncertain."
            )
    return found


def _runs_of(count: int, arm: str) -> str:
    return _count(count, f"{arm} run")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
