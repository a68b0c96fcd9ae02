"""What a plan says to people: why the text or the budget is too small, and what to be wary of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvshift.durations import format_duration
from kvshift.errors import BudgetError, DataError, RunsFailedError
from kvshift.pilot import fit
from kvshift.pilot.notes import Note, note
from kvshift.pilot.settings import Arm, PilotSettings, Size

if TYPE_CHECKING:
    from kvshift.tasks.text import TextData

LEAST_VALIDATION_WINDOWS = 2


def check_text(settings: PilotSettings, data: TextData, length: int, smallest_batch: int) -> None:
    """Refuses a text on which no pilot could mean anything, before time goes into measuring.

    `length` is that of a window in tokens, `smallest_batch` the fewest windows a plan would take.

    Raises:
        DataError: says how much text is needed.
    """
    batch = settings.batch_size or smallest_batch
    if settings.tokens is not None:
        needed = batch * length
        why = f"a batch of {batch} windows of {length:,} tokens"
    else:
        needed = math.ceil(fit.LEAST_STEPS * batch * length / fit.MOST_EPOCHS)
        why = (
            f"{fit.LEAST_STEPS} steps of {batch * length:,} tokens, no text seen more than "
            f"{fit.MOST_EPOCHS:.0f} times"
        )
    have = len(data.train)
    if have < needed:
        bytes_ = int(data.summary().get("train_bytes") or 0)
        size = f", about {_bytes(bytes_ * needed / have)} of training text" if bytes_ and have else ""
        raise DataError(
            f"The text is too small for a pilot: {have:,} training tokens, but the least plan needs "
            f"{needed:,} ({why}){size}. Add text, or lower --sequence-length or --batch-size."
        )
    least = LEAST_VALIDATION_WINDOWS * length
    if len(data.validation) < least:
        raise DataError(
            f"Too little text is left for validation: {len(data.validation):,} tokens, but the plan needs "
            f"{least:,} ({LEAST_VALIDATION_WINDOWS} windows of {length:,}). Add text."
        )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def too_small(
    settings: PilotSettings,
    machine: fit.Machine,
    groups: Sequence[Sequence[Size]],
    arms: Sequence[Arm],
    limits: fit.Limits,
) -> BudgetError | RunsFailedError:
    """The error that names the least budget, or why nothing can be trained at all.

    `limits.seconds` is what was left of the budget for runs.
    """
    seconds, sizes = fit.least_seconds(machine, groups, arms, limits)
    if not sizes:
        name, error = next(iter(machine.failures.items()))
        reason = str(error).rstrip(".")
        return RunsFailedError(
            f"Size {name} cannot be trained on this machine: {reason}. {_smaller(settings)}."
        )
    left = 1 - fit.RESERVE[machine.kind]
    used = settings.budget_seconds * left - limits.seconds
    least = 1.1 * (seconds + used) / left
    least = math.ceil(least / 10) * 10 if least < 600 else math.ceil(least / 60) * 60
    seeds = len(limits.seeds or (0, 1, 2))
    steps = fit.LEAST_STEPS if limits.tokens is None else -(-limits.tokens // machine.step_tokens)
    names = " and ".join(size.name for size in sizes)
    ways = [f"Give --budget {format_duration(least)} or more"]
    ways += ["fewer --seeds"] if seeds > 1 else []
    ways += ["--sizes instead of --model"] if settings.model is not None else []
    return BudgetError(
        f"A budget of {format_duration(settings.budget_seconds)} is too small: on this machine the least "
        f"pilot ({names}, {seeds} seed{'s' if seeds > 1 else ''}, {steps:,} steps a run) needs about "
        f"{format_duration(least)}. {', or '.join(ways)}."
    )


def _smaller(settings: PilotSettings) -> str:
    """What to do about a model that cannot be trained here."""
    if settings.model is not None:
        return "Give a smaller --model, or --sizes in its place"
    if settings.sizes is not None:
        return "Give smaller --sizes"
    return "Free memory on this machine, or take another"


def warnings_of(
    settings: PilotSettings, train_tokens: int, machine: fit.Machine, choice: fit.Choice, expected: float
) -> list[Note]:
    """What a reader of the results must know; `expected` is the runs' time in seconds."""
    warnings = []
    seeds, sizes, tokens = len(choice.seeds), choice.sizes, choice.length.tokens
    if seeds <= 2:
        warnings.append(note("one_seed" if seeds == 1 else "two_seeds"))
    if len(sizes) < 3:
        warnings.append(note("one_size" if len(sizes) == 1 else "two_sizes"))
    epochs = tokens / max(1, train_tokens)
    if epochs > fit.MOST_EPOCHS:
        warnings.append(note("text_repeated", epochs=epochs))
    if choice.limited_by_text and expected < 0.7 * settings.budget_seconds:
        budget = settings.budget_seconds
        warnings.append(note("text_used_up", epochs=fit.MOST_EPOCHS, expected=expected, budget=budget))
    per_parameter = tokens / sizes[-1].non_embedding_parameters
    if per_parameter < fit.TOKENS_PER_PARAMETER:
        warnings.append(note("far_from_trained", ratio=per_parameter))
    steps = -(-tokens // machine.step_tokens)
    if steps < fit.LEAST_STEPS:
        warnings.append(note("few_steps", steps=steps))
    for name, error in machine.failures.items():
        if isinstance(error, fit.ModelTooLargeError):
            warnings.append(note("size_too_large", size=name, needed=error.needed, there=error.there))
        else:
            warnings.append(note("size_left_out", size=name, reason=str(error)))
    return warnings
