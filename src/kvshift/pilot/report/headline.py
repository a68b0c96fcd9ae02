"""The top of the report: the verdict in one sentence, and the few numbers behind it."""

from __future__ import annotations

from typing import Any

from kvshift.durations import format_duration
from kvshift.pilot.report.context import Context, decided_side
from kvshift.pilot.report.details import command
from kvshift.pilot.results import Estimate


def verdict(context: Context) -> dict[str, Any]:
    """Kind (colour and icon), word, sentence, explanation and what to do next."""
    result = context.results.verdict
    kind: str = result.decision
    word = context.text(f"verdict.{result.decision}_word")
    reason = result.reason if f"reason.{result.reason}.head" in context.text else result.decision
    head, why = _filled(context, reason, "head"), _filled(context, reason, "why")
    next_step = _next_step(context)
    if context.self_test:
        kind, word, next_step = "neutral", context.text("verdict.aa_word"), None
        head = context.text("verdict.aa_different" if decided_side(context.gain) else "verdict.aa_same")
        why = context.text("verdict.aa_explained")
    elif context.gain is None and result.decision == "bigger_pilot":
        kind, word, next_step = "missing", context.text("verdict.missing_word"), None
        head = context.text("verdict.missing")
    return {
        "kind": kind,
        "word": word,
        "undecided": not result.decided and not context.self_test,
        "head": head,
        "why": why,
        "baseline_note": _baseline_note(context),
        "spans_zero": context.gain is not None and _spans_zero(context.gain),
        "next": next_step,
        "failed": failed(context),
        "numbers": key_numbers(context),
    }


def failed(context: Context) -> str | None:
    """How many runs did not end well, and how; None when all did."""
    if not context.fallen:
        return None
    reasons = ", ".join(f"{context.status(status)}: {count}" for status, count in context.fallen.items())
    total = len(context.results.runs)
    count = sum(context.fallen.values())
    key = "verdict.failed" if count < total else "verdict.failed_all"
    return context.text(key, failed=count, total=total, reasons=reasons)


def _spans_zero(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.high is not None and not estimate.clear_of_zero


def _filled(context: Context, reason: str, part: str) -> str:
    """A reason's text with the verdict's values, or the decision's own text should a value be missing."""
    numbers, values = context.numbers, context.results.verdict.values
    ready: dict[str, str] = {}
    if "throughput_ratio" in values:
        ready["speed"] = numbers.faster(values["throughput_ratio"])
    if "margin" in values:
        ready["margin"] = numbers.nats(values["margin"])
    for name, value in (("diverged", "candidate_diverged"), ("pairs", "pairs")):
        if value in values:
            ready[name] = numbers.plain(values[value])
    try:
        return context.say(f"reason.{reason}.{part}", **ready)
    except KeyError:
        return context.say(f"reason.{context.results.verdict.decision}.{part}")


def _next_step(context: Context) -> dict[str, str] | None:
    result = context.results.verdict
    if result.next_budget_seconds is None:
        return None
    # Given seeds and lengths would spend nothing of a larger budget.
    free = {"budget_seconds": result.next_budget_seconds, "seeds": None, "tokens": None}
    bigger = context.results.settings.model_copy(update=free)
    out = f"kvshift-pilot-{format_duration(result.next_budget_seconds)}"  # this one's holds another pilot
    key = "verdict.bigger_capped" if result.values.get("capped") else "verdict.bigger"
    return {
        "text": context.text(key, time=context.numbers.duration(result.next_budget_seconds)),
        "command": command(bigger, out),
    }


def _baseline_note(context: Context) -> str | None:
    """Where the baseline is itself a variant, what the page's "standard model" means."""
    if context.self_test or context.results.arms[0].shift is None:
        return None
    return context.say("verdict.baseline_note")


def key_numbers(context: Context) -> list[dict[str, Any]]:
    """Three or four cards: gain, data, time, and money where there is a price, else model size."""
    results = context.results
    top = context.top
    cards = [_gain_card(context)]
    where = top.size if top else ""
    cards.append(
        _saved_card(
            context, "data", top.data_saved if top else None, context.text("key.data_note", size=where)
        )
    )
    cards.append(_saved_card(context, "time", top.time_saved if top else None, context.text("key.time_note")))
    if results.cost is not None:
        cards.append(_money_card(context))
    elif results.model_saved is not None and results.model_saved.parameters is not None:
        saved = results.model_saved
        note = context.text("key.model_note", size=saved.reference_size)
        cards.append(_saved_card(context, "model", saved.parameters, note))
    return cards


def _gain_card(context: Context) -> dict[str, Any]:
    gain, numbers = context.gain, context.numbers
    if gain is None:
        return _empty_card(context, "gain")
    worse = gain.value < 0
    return {
        "title": context.text("key.gain_worse" if worse else "key.gain"),
        "value": numbers.nats(gain.value, sign=True),
        "note": context.text(
            "key.gain_note_worse" if worse else "key.gain_note", probability=context.probability(gain.value)
        ),
        "unit": context.text("key.gain_unit"),
        "interval": context.gain_interval(gain),
        "undecided": not gain.clear_of_zero,
        "missing": False,
    }


def _saved_card(context: Context, key: str, estimate: Estimate | None, note: str) -> dict[str, Any]:
    if estimate is None:
        return _empty_card(context, key)
    return {
        "title": context.text(f"key.{key}"),
        "value": context.numbers.percent(estimate.value),
        "unit": "",
        "note": note,
        "interval": context.share_interval(estimate),
        "undecided": _spans_zero(estimate),
        "missing": False,
    }


def _money_card(context: Context) -> dict[str, Any]:
    cost = context.results.cost
    if cost is None or cost.saved_per_thousand is None:
        return _empty_card(context, "money")
    saved = cost.saved_per_thousand
    lost = saved.value < 0
    saved = saved.turned if lost else saved
    show = lambda amount: context.numbers.money(amount, cost.currency)  # noqa: E731
    return {
        "title": context.text("key.money_lost" if lost else "key.money_saved"),
        "value": show(saved.value),
        "unit": "",
        "note": context.text("key.money_note", thousand=show(1000)),
        "interval": context.numbers.interval(saved, show),
        "undecided": _spans_zero(saved),
        "missing": False,
    }


def _empty_card(context: Context, key: str) -> dict[str, Any]:
    return {
        "title": context.text(f"key.{key}"),
        "value": context.text("key.none"),
        "unit": "",
        "note": context.text("key.none_note"),
        "interval": "",
        "undecided": False,
        "missing": True,
    }
