"""The report's pictures as positions: what to draw where, what to say on hover, and the table beside it."""

from __future__ import annotations

import math
from typing import Any

from kvshift.pilot.report.charts import BOX, Scale, band, mean_curve, padded, path, tick_decimals, ticks
from kvshift.pilot.report.context import Context
from kvshift.pilot.results import Curve, Estimate, SizeResult

EARLY = 0.2  # of the tokens: the steep first part of the curves may leave the picture at the top
PLOT_TOP, PLOT_BOTTOM = 10.0, 200.0  # pixels, of line charts
PLOT_LEFT, PLOT_WIDTH = 12.0, 86.0  # percent of the drawing
ROW_HEIGHT = 58  # pixels of a forest plot's row


def forest(context: Context) -> dict[str, Any]:
    """Gain and interval of each size and over all."""
    results, numbers = context.results, context.numbers
    entries: list[tuple[str, str, Estimate | None, bool]] = [
        (size.size, context.text("better.parameters", n=numbers.big(size.parameters)), size.gain, False)
        for size in results.by_size
    ]
    if len(results.by_size) > 1:
        entries.append((context.text("better.overall"), "", context.gain, True))
    ends = [0.0]
    for _, _, gain, _ in entries:
        if gain is not None:
            ends += [end for end in (gain.low, gain.value, gain.high) if end is not None]
    place = Scale(*padded(ends, 0.06, 0.01), 1, 99)
    rows = [
        {
            "name": _short(name),
            "detail": detail,
            "overall": overall,
            "y": index * ROW_HEIGHT,
            "value": numbers.nats(gain.value, sign=True) if gain else context.text("better.no_gain"),
            "x": place(gain.value) if gain else None,
            "low": place(gain.low) if gain and gain.low is not None else None,
            "high": place(gain.high) if gain and gain.high is not None else None,
            "hover": [name, *_gain_lines(context, gain)],
        }
        for index, (name, detail, gain, overall) in enumerate(entries)
    ]
    marks = ticks(place.low, place.high, 5)
    decimals = tick_decimals(marks)
    return {
        "rows": rows,
        "measured": any(gain is not None for _, _, gain, _ in entries),
        "zero": place(0),
        "height": len(rows) * ROW_HEIGHT + 26,
        "ticks": [(place(mark), numbers.plain(mark, decimals, sign=True)) for mark in marks],
        "table": gain_table(context),
    }


def _gain_lines(context: Context, gain: Estimate | None) -> list[str]:
    if gain is None:
        return [context.text("better.no_gain")]
    return [context.numbers.nats(gain.value, sign=True), context.gain_interval(gain)]


def gain_table(context: Context) -> dict[str, Any]:
    """The forest plot's numbers."""
    numbers, missing = context.numbers, context.text("number.missing")
    rows = []
    for size in context.results.by_size:
        bits = size.gain_bits_per_byte
        rows.append(
            [
                size.size,
                numbers.big(size.parameters),
                numbers.plain(size.pairs),
                numbers.nats(size.baseline_loss.value) if size.baseline_loss else missing,
                numbers.nats(size.candidate_loss.value) if size.candidate_loss else missing,
                numbers.nats(size.gain.value, sign=True) if size.gain else missing,
                context.gain_interval(size.gain) if size.gain else _note(context, size),
                numbers.plain(bits.value, 4, sign=True) if bits else missing,
                " · ".join(numbers.nats(difference, sign=True) for difference in size.differences) or missing,
            ]
        )
    if context.gain is not None and len(rows) > 1:
        gain = context.gain
        overall = [context.text("better.overall"), "", numbers.plain(gain.n), "", ""]
        rows.append([*overall, numbers.nats(gain.value, sign=True), context.gain_interval(gain), "", ""])
    names = ["size", "parameters", "pairs", "baseline", "candidate", "gain", "interval", "bits", "each"]
    return {
        "caption": context.text("better.forest"),
        "head": [context.say(f"better.column_{name}") for name in names],
        "rows": rows,
    }


def _note(context: Context, size: SizeResult) -> str:
    key = f"note.{size.note}"
    return context.text(key) if key in context.text else context.text("better.no_gain")


def curves(context: Context) -> list[dict[str, Any]]:
    """One picture a size, all on the same axes."""
    results = context.results
    usable = {
        (size.name, arm.name): [
            _points(curve) for curve in results.curves if curve.size == size.name and curve.arm == arm.name
        ]
        for size in results.sizes
        for arm in results.arms
    }
    every = [point for runs in usable.values() for run in runs for point in run]
    if not every:
        return []
    longest = max(tokens for tokens, _ in every)
    late = [loss for tokens, loss in every if tokens >= EARLY * longest] or [loss for _, loss in every]
    x = Scale(0, longest, PLOT_LEFT, PLOT_LEFT + PLOT_WIDTH)
    y = Scale(*padded(late, 0.05, 0.01), PLOT_BOTTOM, PLOT_TOP)
    return [
        _panel(
            context, size.name, size.parameters, [usable[size.name, arm.name] for arm in results.arms], x, y
        )
        for size in results.sizes
    ]


def _points(curve: Curve) -> list[tuple[float, float]]:
    pairs = zip(curve.tokens, curve.nats_per_token, strict=False)
    return [(tokens, loss) for tokens, loss in pairs if math.isfinite(loss)]


def _panel(
    context: Context,
    name: str,
    parameters: int,
    arms: list[list[list[tuple[float, float]]]],
    x: Scale,
    y: Scale,
) -> dict[str, Any]:
    numbers = context.numbers
    means = [mean_curve([run for run in runs if len(run) > 1]) for runs in arms]
    ends = [numbers.nats(mean[-1][1]) if mean else context.text("number.missing") for mean in means]
    result = next((size for size in context.results.by_size if size.size == name), None)
    saved = (result.curve_data_saved or result.data_saved) if result else None
    arrow = None
    if saved is not None and saved.value > 0.02 and means[0]:
        tokens, level = means[0][-1]
        arrow = {
            "x1": x(max(0.0, (1 - saved.value) * tokens)),
            "x2": x(tokens),
            "y": y(level),
            "text": context.text("better.saved_label", x=numbers.percent(saved.value)),
        }
    x_ticks = ticks(0, x.high, 3)
    y_ticks = ticks(y.low, y.high, 5)
    return {
        "name": name,
        "detail": context.text("better.parameters", n=numbers.big(parameters)),
        "empty": not any(arms),
        "label": context.say("better.curves_label", size=name, baseline_loss=ends[0], candidate_loss=ends[1]),
        "seeds": [[path(x, y, run) for run in runs if len(run) > 1] for runs in arms],
        "means": [path(x, y, mean) for mean in means],
        "ends": [(x(mean[-1][0]), y(mean[-1][1])) if mean else None for mean in means],
        "arrow": arrow,
        "x_ticks": [(x(mark), numbers.big(mark)) for mark in x_ticks],
        "y_ticks": [(y(mark), numbers.plain(mark, tick_decimals(y_ticks))) for mark in y_ticks],
        "hover": _curve_hover(context, means, x),
        "table": _curve_table(context, name, means),
    }


def _at(means: list[list[tuple[float, float]]]) -> list[tuple[float, float | None, float | None]]:
    """Tokens with the mean of each arm, None where an arm has none there."""
    tables = [dict(mean) for mean in means]
    tokens = sorted(set(tables[0]) | set(tables[1]))
    return [(count, tables[0].get(count), tables[1].get(count)) for count in tokens]


def _curve_hover(context: Context, means: list[list[tuple[float, float]]], x: Scale) -> list[dict[str, Any]]:
    numbers = context.numbers
    points = []
    for tokens, baseline, candidate in _at(means):
        lines = [f"{context.text('better.column_tokens')}: {numbers.big(tokens)}"]
        for label, loss in ((context.baseline, baseline), (context.candidate, candidate)):
            if loss is not None:
                lines.append(f"{label}: {numbers.nats(loss)}")
        if baseline is not None and candidate is not None:
            gain = numbers.nats(baseline - candidate, sign=True)
            lines.append(f"{context.text('better.difference')}: {gain}")
        points.append({"x": x(tokens), "lines": lines})
    return points


def _curve_table(context: Context, name: str, means: list[list[tuple[float, float]]]) -> dict[str, Any]:
    numbers, missing = context.numbers, context.text("number.missing")
    show = lambda loss: missing if loss is None else numbers.nats(loss)  # noqa: E731
    names = ("tokens", "baseline", "candidate", "gain")
    return {
        "caption": f"{context.text('better.curves')}: {name}",
        "head": [context.say(f"better.column_{column}") for column in names],
        "rows": [
            [
                numbers.plain(tokens),
                show(baseline),
                show(candidate),
                missing
                if baseline is None or candidate is None
                else numbers.nats(baseline - candidate, sign=True),
            ]
            for tokens, baseline, candidate in _at(means)
        ],
    }


def projection(context: Context) -> dict[str, Any] | None:
    """The gain against model size: measured points, the fitted line and its interval."""
    fitted, numbers = context.results.projection, context.numbers
    if fitted is None or len(fitted.points) < 2:
        return None
    line = sorted(fitted.points, key=lambda point: point["parameters"])
    measured = [(size.parameters, size.gain) for size in context.results.by_size if size.gain is not None]
    x_low = min(line[0]["parameters"], *(parameters for parameters, _ in measured)) / 1.15
    x_high = max(line[-1]["parameters"], *(parameters for parameters, _ in measured)) * 1.15
    values = [0.0, *(point[key] for point in line for key in ("low", "value", "high"))]
    for _, gain in measured:
        values += [end for end in (gain.low, gain.value, gain.high) if end is not None]
    # An interval of three points may be enormous: the picture shows at least the points and the line.
    inner = [0.0, *(point["value"] for point in line), *(gain.value for _, gain in measured)]
    reach = 2.5 * max(max(inner) - min(inner), 0.01)
    low, high = max(min(values), min(inner) - reach), min(max(values), max(inner) + reach)
    x = Scale(x_low, x_high, PLOT_LEFT, PLOT_LEFT + PLOT_WIDTH, logarithmic=True)
    y = Scale(*padded([low, high], 0.05, 0.01), PLOT_BOTTOM, PLOT_TOP)
    inside = [point for point in line if point["parameters"] <= fitted.measured_up_to * 1.0001]
    beyond = [point for point in line if point["parameters"] >= fitted.measured_up_to * 0.9999]
    y_ticks = ticks(y.low, y.high, 5)
    return {
        "label": context.text("better.projection_label", n=numbers.big(line[-1]["parameters"])),
        "band": band(x, y, [(point["parameters"], point["low"], point["high"]) for point in line]),
        "inside": path(x, y, [(point["parameters"], point["value"]) for point in inside]),
        "beyond": path(x, y, [(point["parameters"], point["value"]) for point in (inside[-1:] + beyond)]),
        "edge": x(fitted.measured_up_to),
        "zero": y(0),
        "points": [
            {
                "x": x(parameters),
                "y": y(gain.value),
                "low": _clamped(y, gain.low),
                "high": _clamped(y, gain.high),
            }
            for parameters, gain in measured
        ],
        "x_ticks": [(x(mark), numbers.big(mark)) for mark in _log_ticks(x_low, x_high)],
        "y_ticks": [(y(mark), numbers.plain(mark, tick_decimals(y_ticks), sign=True)) for mark in y_ticks],
        "hover": [
            {
                "x": x(point["parameters"]),
                "lines": [
                    context.text("better.parameters", n=numbers.big(point["parameters"])),
                    *_gain_lines(context, _estimate(point)),
                ],
            }
            for point in line
        ],
        "text": _projection_text(context, _estimate(line[-1]), line[-1]["parameters"]),
        "table": {
            "caption": context.text("better.projection"),
            "head": [context.text(f"better.column_{name}") for name in ("parameters", "gain", "interval")],
            "rows": [
                [
                    numbers.big(point["parameters"]),
                    numbers.nats(point["value"], sign=True),
                    context.gain_interval(_estimate(point)),
                ]
                for point in line
            ],
        },
    }


def _clamped(y: Scale, value: float | None) -> float | None:
    return None if value is None else max(PLOT_TOP, min(PLOT_BOTTOM, y(value)))


def _estimate(point: dict[str, float]) -> Estimate:
    return Estimate(value=point["value"], low=point["low"], high=point["high"])


def _projection_text(context: Context, last: Estimate, parameters: float) -> list[str]:
    slope, numbers = context.results.projection.slope_per_tenfold, context.numbers  # type: ignore[union-attr]
    if not slope.clear_of_zero:
        key, shown = "better.projection_undecided", numbers.nats(slope.value, sign=True)
    else:
        key = "better.projection_grows" if slope.value > 0 else "better.projection_falls"
        slope = slope if slope.value > 0 else slope.turned
        shown = numbers.nats(slope.value)
    end = context.text(
        "better.projection_end",
        n=numbers.big(parameters),
        gain=numbers.nats(last.value, sign=True),
        interval=context.gain_interval(last),
    )
    return [context.text(key, slope=shown, interval=context.gain_interval(slope)), end]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 3, 10, … or, over a short range, 1, 2, 5, 10, …"""
    factors = (1, 3) if high / low > 30 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [mark for power in decades for mark in (f * 10.0**power for f in factors) if low <= mark <= high]


def _short(name: str) -> str:
    """A name that leaves room beside it on a phone; the table has it whole."""
    return name if len(name) <= 18 else name[:17] + "…"


def dots(points: list[tuple[float, float]], x: Scale, y: Scale) -> str:
    """Many round dots as one path of strokes without length, which a stretched box leaves round."""
    return "".join(f"M{x.box(a):g} {y.box(b):g}h0" for a, b in points if 0 <= x.box(a) <= BOX)
