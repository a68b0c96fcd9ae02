"""For the engineer: threats to validity, methods, every setting, the table of runs, the command."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from kvshift.durations import format_duration
from kvshift.pilot.arms import can_be_changed
from kvshift.pilot.notes import Note
from kvshift.pilot.report.context import Context
from kvshift.pilot.report.notes import in_html, skip_reason, skipped
from kvshift.pilot.results import Results
from kvshift.pilot.settings import Arm, PilotSettings
from kvshift.shift import TAP_LEARNING_RATE

USUAL_TOKENS_PER_PARAMETER = 20  # near the compute-optimal ratio of Hoffmann et al. 2022
ENOUGH_SEEDS = 5
LARGE_PARAMETERS = 1_000_000_000
METHODS = ("equal", "gain", "data", "model", "time", "projection", "verdict")


def trust(context: Context) -> list[str]:
    """The threats to validity that apply to this pilot."""
    results, numbers, text = context.results, context.numbers, context.text
    said = []
    largest = results.sizes[-1].parameters if results.sizes else 0
    if 0 < largest < LARGE_PARAMETERS:
        said.append(text("trust.size", parameters=numbers.big(largest)))
    if largest and results.tokens < USUAL_TOKENS_PER_PARAMETER * largest:
        ratio = numbers.plain(results.tokens / largest, 1)
        said.append(context.say("trust.short", tokens=numbers.big(results.tokens), ratio=ratio))
    if len(results.seeds) < ENOUGH_SEEDS:
        said.append(text("trust.seeds", seeds=len(results.seeds)))
    if len(results.sizes) == 1:
        said.append(text("trust.one_size"))
    said.append(text("trust.corpus"))
    train_tokens = results.data.get("train_tokens")
    if isinstance(train_tokens, int) and 0 < train_tokens < results.tokens:
        said.append(text("trust.repeated", epochs=numbers.plain(results.tokens / train_tokens, 1)))
    on_processor = "cpu" in results.device.lower()
    said.append(text("trust.cpu" if on_processor else "trust.gpu", device=context.device))
    said.append(text("trust.loss"))
    if context.fallen:
        said.append(text("trust.fallen", failed=sum(context.fallen.values()), total=len(results.runs)))
    return said


def noted(context: Context) -> list[Markup]:
    """What the plan and the analysis noted, in the page's language."""
    return [in_html(note, context.text, context.arm_labels) for note in context.results.warnings]


def methods(context: Context) -> list[dict[str, Any]]:
    """A heading and paragraphs for every method."""
    names = {"baseline": context.baseline, "candidate": context.candidate}
    return [
        {
            "key": key,
            "title": context.text(f"methods.{key}"),
            "paragraphs": context.text.all(f"methods.{key}_text", **names),
        }
        for key in METHODS
    ]


def settings(context: Context) -> list[dict[str, Any]]:
    """Every setting in groups of (label, field name, value)."""
    results, text = context.results, context.text
    groups = [("asked", _asked(context)), ("recipe", _plain(results.recipe))]
    groups += [
        (
            "shift",
            [(f"{arm.name}: {key}", "", _value(value)) for arm in results.arms for key, value in _shift(arm)],
        )
    ]
    groups += [
        ("sizes", [(size.name, "", json.dumps(size.model, ensure_ascii=False)) for size in results.sizes])
    ]
    groups += [("data", _data(context)), ("machine", _machine(context))]
    return [{"title": text(f"methods.settings_{name}"), "rows": rows} for name, rows in groups if rows]


def _shift(arm: Arm) -> list[tuple[str, Any]]:
    """With the taps' learning rate where it is none of the model's."""
    own = {"lr_multiplier": ("learning_rate", TAP_LEARNING_RATE)}
    return [
        own.get(key, (key, value)) if value is None else (key, value)
        for key, value in (arm.shift or {}).items()
    ]


def _asked(context: Context) -> list[tuple[str, str, str]]:
    asked, text = context.results.settings, context.text
    rows = []
    for field in PilotSettings.model_fields:
        value = getattr(asked, field)
        if field == "budget_seconds":
            shown = context.numbers.duration(value)
        elif value is None:
            shown = (
                text("page.none")
                if field in ("price_per_hour", "model", "text_column")
                else text("page.chosen")
            )
        elif value == ():
            shown = text("page.default_source")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else _value(value)
        rows.append((text(f"setting.{field}"), field, shown))
    return rows


def _data(context: Context) -> list[tuple[str, str, str]]:
    text = context.text
    rows = []
    for key, value in context.results.data.items():
        label = text(f"data.{key}") if f"data.{key}" in text else key
        if value is None:  # does not apply to this text
            continue
        if key in _TOLD:
            shown = _TOLD[key](context, value) if value else text("page.none")
        elif isinstance(value, bool):
            shown = text("page.yes" if value else "page.no")
        elif isinstance(value, int):
            shown = context.numbers.plain(value)
        elif isinstance(value, dict):
            shown = ", ".join(f"{name}: {_value(part)}" for name, part in value.items()) or text("page.none")
        else:
            shown = text(f"data.{value}") if value in _NAMED else _value(value)
        rows.append((label, "", shown))
    return rows


def _notes(context: Context, notes: list[dict[str, Any]]) -> Markup:
    told = (in_html(Note.model_validate(note), context.text, context.arm_labels) for note in notes)
    return Markup("<br>").join(told)


def _examples(context: Context, examples: dict[str, list[str]]) -> str:
    separator = context.text("skip.separator")
    reasons = ((skip_reason(why, context.text), separator.join(names)) for why, names in examples.items())
    return " · ".join(f"{reason}: {names}" for reason, names in reasons)


def _source(context: Context, title: str) -> str:
    return title if context.results.settings.sources else context.text("page.default_source")


_NAMED = ("trained", "Japanese", "Korean", "Chinese")  # values of `TextData.summary()` that are words
_TOLD: dict[str, Callable[[Context, Any], str]] = {
    "source": _source,
    "notes": _notes,
    "skipped": lambda context, counts: skipped(counts, context.text),
    "skipped_examples": _examples,
    "duplicates_removed": lambda context, counts: context.text("data.duplicates", **counts),
}
"""Parts of `TextData.summary()` that need words of the page's language, not only numbers."""


def _machine(context: Context) -> list[tuple[str, str, str]]:
    results, numbers, text = context.results, context.numbers, context.text
    return [
        (text("methods.device"), "", context.device),
        *((name, "", version) for name, version in results.versions.items()),
        (text("methods.wall_time"), "", numbers.duration(results.seconds)),
        (text("methods.peak_memory"), "", numbers.bytes(results.peak_memory_bytes)),
        (text("methods.created"), "", numbers.date(results.created)),
    ]


def _plain(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, "", _value(value)) for key, value in values.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict | list | tuple | bool) or value is None:
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def runs(context: Context) -> dict[str, Any]:
    """The table of runs, as people read it; runs.csv has the exact numbers."""
    numbers, text = context.numbers, context.text
    missing = text("number.missing")
    rows = []
    for run in context.results.runs:
        rows.append(
            [
                run.name,
                text(f"run.{run.role}") if f"run.{run.role}" in text else run.role,
                context.arm_labels.get(run.arm, run.arm),
                context.status(run.status),
                missing if run.final_nats_per_token is None else numbers.plain(run.final_nats_per_token, 4),
                missing if run.final_bits_per_byte is None else numbers.plain(run.final_bits_per_byte, 4),
                numbers.big(run.tokens),
                numbers.big(run.parameters),
                numbers.big(run.tokens_per_second),
                numbers.duration(run.train_seconds),
                numbers.bytes(run.peak_memory_bytes),
                Markup('<span lang="en">{}</span>').format(run.error) if run.error else "",
            ]
        )
    names = [
        "name",
        "role",
        "arm",
        "status",
        "loss",
        "bits",
        "tokens",
        "parameters",
        "speed",
        "seconds",
        "memory",
        "error",
    ]
    return {
        "caption": text("methods.runs"),
        "head": [text(f"run.{name}") for name in names],
        "rows": rows,
        "text_columns": (0, 1, 2, 3, 11),
        "fallen": [run.status != "finished" for run in context.results.runs],
    }


def reproduction(results: Results) -> str:
    """The command line of a pilot that trains the same models on as many tokens, whatever it measures.

    What this plan chose is given, and time enough for it.
    """
    asked, recipe = results.settings, results.recipe
    same = {
        "budget_seconds": max(asked.budget_seconds, 60 * math.ceil(2 * results.seconds / 60)),
        "seeds": tuple(results.seeds),
        "tokens": results.tokens,
        "sequence_length": recipe.get("sequence_length"),
        "batch_size": recipe.get("batch_size"),
        "sizes": None if asked.model is not None else tuple(size.name for size in results.sizes),
    }
    multiples = {arm.shift["lr_multiplier"] for arm in results.arms if arm.shift and can_be_changed(arm.name)}
    if multiples - {None}:  # of a pilot begun when taps learned at a multiple unless told otherwise
        same["multiplier"] = max(multiples - {None})
    if recipe.get("device") == "cuda":
        same["compile"] = recipe.get("compile")
    return command(asked.model_copy(update=same), "kvshift-pilot-again")


def command(asked: PilotSettings, out: str | None = None) -> str:
    """The command line of a pilot with these settings, in the folder `out`."""
    words = ["kvshift", "pilot", *asked.sources, "--budget", format_duration(asked.budget_seconds)]
    defaults = PilotSettings()

    def add(option: str, value: Any) -> None:
        if isinstance(
            value, tuple
        ):  # one seed alone keeps its comma: without it, it would be a number of seeds
            value = ",".join(map(str, value)) + ("," if option == "--seeds" and len(value) == 1 else "")
        words.extend((option, str(value)))

    for field, option in OPTIONS.items():
        value = getattr(asked, field)
        if value is not None and value != getattr(defaults, field):
            add(option, value)
    if asked.compile is not None:
        words.append("--compile" if asked.compile else "--no-compile")
    words += ["--out", out] if out is not None else []
    return shlex.join(words)


OPTIONS = {
    "text_column": "--text-column",
    "tokenizer": "--tokenizer",
    "arms": "--arms",
    "sizes": "--sizes",
    "seeds": "--seeds",
    "tokens": "--tokens",
    "sequence_length": "--sequence-length",
    "batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "start": "--start",
    "multiplier": "--multiplier",
    "model": "--model",
    "price_per_hour": "--price",
    "currency": "--currency",
    "language": "--lang",
    "device": "--device",
}
