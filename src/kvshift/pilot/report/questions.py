"""The three questions of a decision-maker, answered: is it better, what does it save, how hard is it."""

from __future__ import annotations

from typing import Any

from kvshift.pilot.report.charts import Scale
from kvshift.pilot.report.context import Context, decided_side
from kvshift.pilot.results import Estimate


def better(context: Context) -> str:
    """Question 1 in one or two sentences."""
    gain = context.gain
    if gain is None:
        return context.text("better.missing")
    side = decided_side(gain)
    values = {
        "gain": context.numbers.nats(abs(gain.value) if side else gain.value, sign=not side),
        "interval": context.gain_interval(gain.turned if side < 0 else gain),
    }
    if side > 0:
        return context.say("better.yes", probability=context.probability(gain.value), **values)
    if side < 0:
        return context.say("better.worse", **values)
    return context.text("better.undecided" if gain.low is not None else "better.undecided_one", **values)


def saves(context: Context) -> str:
    """Question 2 in one sentence."""
    top = context.top
    data = top.data_saved if top else None
    time = top.time_saved if top else None
    if data is None:
        return context.text("saves.missing")
    side = decided_side(data)
    if side < 0:
        return context.say("saves.worse")
    if side == 0:
        return context.say("saves.undecided")
    numbers = context.numbers
    phrase = context.text("saves.data_phrase", x=numbers.percent(1 - data.value))
    with_time = ""
    if time is not None and decided_side(time):
        share = context.text("saves.time_phrase", x=numbers.percent(1 - time.value))
        with_time = context.text("saves.yes_time", time=share)
    return context.say("saves.yes", data=phrase, time=with_time)


def savings(context: Context) -> list[dict[str, Any]]:
    """The rows of question 2: data, time, model size, money; each with a bar of what is needed."""
    top, results, numbers = context.top, context.results, context.numbers
    rows = []
    where = context.size(top.size) if top else ""
    data = top.data_saved if top else None
    if data is not None:
        text = context.say("saves.data_text", size=where, need=numbers.percent(1 - data.value))
        if data.value < 0:
            text = context.say("saves.data_never", size=where, need=numbers.percent(1 + data.value))
        rows.append(_row(context, "data", data, text))
    else:
        rows.append(_missing(context, "data"))
    time = top.time_saved if top else None
    if top is not None and time is not None and top.throughput_ratio is not None:
        speed = numbers.faster(top.throughput_ratio.value)
        rows.append(_row(context, "time", time, context.say("saves.time_text", size=where, speed=speed)))
    else:
        rows.append(_missing(context, "time"))
    rows.append(_model_row(context))
    rows.append(_money_row(context) if results.cost else _missing(context, "money", "saves.money_missing"))
    _add_bars(context, rows)
    return rows


def _add_bars(context: Context, rows: list[dict[str, Any]]) -> None:
    """One scale for all bars: from what may be lost to what may be saved."""
    ends = [0.0]
    for row in rows:
        estimate = row["estimate"]
        if estimate is not None:
            ends += [end for end in (estimate.low, estimate.value) if end is not None]
    place = Scale(max(-1.0, min(ends)), 1.0, 0.5, 99.5)
    for row in rows:
        estimate = row["estimate"]
        if estimate is None:
            continue
        row["bar"] = {
            "zero": place(0),
            "start": max(0.5, min(place(0), place(estimate.value))),
            "width": round(min(99.0, abs(place(estimate.value) - place(0))), 3),
            "low": None if estimate.low is None else max(0.5, place(estimate.low)),
            "high": None if estimate.high is None else min(99.5, place(estimate.high)),
            "label": context.text(
                "saves.bar_label", title=row["title"], value=row["value"], interval=row["interval"]
            ),
        }


def _model_row(context: Context) -> dict[str, Any]:
    saved, numbers = context.results.model_saved, context.numbers
    if saved is None:
        return _missing(context, "model", "saves.model_missing")
    values = {"size": saved.reference_size, "reference": numbers.big(saved.reference_parameters)}
    if saved.parameters is None or saved.bound == "none":
        return _missing(context, "model", "saves.model_none", **values)
    key = "saves.model_least" if saved.bound == "at_least" else "saves.model_text"
    text = context.say(key, n=numbers.big(saved.matching_parameters or 0), **values)
    if saved.inference_compute is not None and saved.kv_cache is not None:
        compute, cache = numbers.change(saved.inference_compute), numbers.change(saved.kv_cache)
        text += context.text("page.space") + context.text(
            "saves.model_inference", compute=compute, cache=cache
        )
    row = _row(context, "model", saved.parameters, text)
    if saved.bound == "at_least":
        row["value"] = context.text("number.at_least", x=row["value"])
    return row


def _money_row(context: Context) -> dict[str, Any]:
    cost, numbers = context.results.cost, context.numbers
    if cost is None:
        return _missing(context, "money")
    show = lambda amount: numbers.money(amount, cost.currency)  # noqa: E731
    pilot = context.text("saves.money_pilot", pilot=show(cost.pilot), price=show(cost.price_per_hour))
    saved = cost.saved_per_thousand
    if saved is None:
        row = _missing(context, "money", "saves.money_unknown")
        row["text"] += context.text("page.space") + pilot
        return row
    share = Estimate(
        value=saved.value / 1000,
        low=None if saved.low is None else saved.low / 1000,
        high=None if saved.high is None else saved.high / 1000,
        n=saved.n,
    )
    text = context.say("saves.money_text", run=show(cost.baseline_run))
    row = _row(context, "money", share, text + context.text("page.space") + pilot)
    key = "saves.of_thousand" if saved.value >= 0 else "saves.of_thousand_more"
    row["value"] = context.text(key, x=show(abs(saved.value)), thousand=show(1000))
    row["interval"] = numbers.interval(saved if saved.value >= 0 else saved.turned, show)
    return row


def _row(context: Context, key: str, saved: Estimate, text: str) -> dict[str, Any]:
    title, share = context.text(f"saves.{key}"), context.numbers.percent(abs(saved.value))
    return {
        "title": title,
        "value": context.text("saves.saved" if saved.value >= 0 else "saves.lost", x=share),
        "interval": context.share_interval(saved if saved.value >= 0 else saved.turned),
        "text": text,
        "undecided": saved.low is not None and saved.high is not None and not saved.clear_of_zero,
        "missing": False,
        "estimate": saved,
        "bar": None,
    }


def _missing(
    context: Context, key: str, why: str = "saves.not_measured_text", **values: Any
) -> dict[str, Any]:
    return {
        "title": context.text(f"saves.{key}"),
        "value": context.text("saves.not_measured"),
        "interval": "",
        "text": context.say(why, **values),
        "undecided": False,
        "missing": True,
        "estimate": None,
        "bar": None,
    }


def by_size(context: Context) -> list[list[str]]:
    """Data saved, speed, time and memory at each size, as a table's cells."""
    numbers, missing = context.numbers, context.text("number.missing")
    rows = []
    for size in context.results.by_size:
        cells = [size.size]
        for estimate in (size.data_saved, size.time_saved):
            cells.append(
                _with_interval(numbers.percent(estimate.value), context.share_interval(estimate))
                if estimate
                else missing
            )
        speed = size.throughput_ratio
        cells.append(
            _with_interval(numbers.faster(speed.value), context.speed_interval(speed)) if speed else missing
        )
        cells.append(numbers.change(1 - size.memory_ratio) if size.memory_ratio else missing)
        rows.append(cells)
    return rows


def _with_interval(value: str, interval: str) -> str:
    return f"{value} ({interval})"


def check(context: Context) -> list[str]:
    """What the runs planned at a shorter length say about the data saved."""
    result = context.results.check
    if result is None:
        return [context.text("saves.check_none")]
    numbers = context.numbers
    key = "saves.check_agrees" if result.agrees else "saves.check_disagrees"
    side = context.text("saves.below" if result.gain.value >= 0 else "saves.above")
    said = [
        context.say(
            key,
            size=result.size,
            share=numbers.percent(result.share),
            gain=numbers.nats(abs(result.gain.value)),
            interval=context.gain_interval(result.gain if result.gain.value >= 0 else result.gain.turned),
            side=side,
        )
    ]
    if result.data_saved is not None:
        x, interval = numbers.percent(result.data_saved.value), context.share_interval(result.data_saved)
        said.append(context.text("saves.check_saved", x=x, interval=interval))
    return said


def effort(context: Context) -> dict[str, Any]:
    """Question 3: the answer, its cards, and whether the user's own model is supported."""
    added, numbers, text = context.results.added, context.numbers, context.text
    values = {"parameters": numbers.plain(added.parameters), "share": numbers.percent(added.parameters_share)}
    speed = added.throughput_ratio
    top = context.results.sizes[-1].name if context.results.sizes else ""
    absent = text("effort.not_measured")
    cards = [
        {
            "title": text("effort.lines"),
            "value": numbers.plain(added.lines_of_code),
            "note": text("effort.lines_note"),
        },
        {
            "title": text("effort.parameters"),
            "value": "+" + values["parameters"],
            "note": text("effort.parameters_note", share=values["share"]),
        },
        {
            "title": text("effort.speed"),
            "value": numbers.faster(speed.value) if speed else absent,
            "note": text("effort.speed_note", size=top, interval=context.speed_interval(speed))
            if speed
            else "",
        },
        {
            "title": text("effort.memory"),
            "value": numbers.change(1 - added.memory_ratio) if added.memory_ratio else absent,
            "note": text("effort.memory_note"),
        },
        {
            "title": text("effort.state"),
            "value": "+" + numbers.bytes(added.state_bytes_per_sequence),
            "note": text("effort.state_note"),
        },
    ]
    if context.self_test:
        answer, cards = text("effort.self_test"), []
    elif speed:
        answer = text("effort.answer", speed=numbers.faster(speed.value), **values)
    else:
        answer = text("effort.answer_no_speed", **values)
    if added.user_model is None:
        model = text("effort.no_model")
    else:
        model = text(
            "effort.supported" if added.user_model_supported else "effort.unsupported", model=added.user_model
        )
    return {
        "answer": answer,
        "cards": cards,
        "model": model,
        "model_ok": None if added.user_model is None else bool(added.user_model_supported),
    }
