"""An inspection on the terminal: readable at 80 columns, and without colours."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvshift.inspection.quadrants import PAPER_TABLE_4, QUADRANTS
from kvshift.inspection.schema import HeadScore, HeadTaps, Induction, Inspection, LearnedTaps, QueryTaps, Taps

MOST_ROWS = 64
"""KV heads of which the terminal shows every tap; the JSON always has all."""
MOST_LISTED = 8
STRONG = 0.5

MARKS = {
    "current_current": ("·", "dim"),
    "previous_current": ("I", "bold green"),
    "current_previous": ("M", "bold yellow"),
    "previous_previous": ("P", "bold blue"),
    None: ("-", "dim"),
}
"""A head's quadrant as one letter."""
MEANINGS = {
    "current_current": "reads the current key and value",
    "previous_current": "previous key, current value: the induction quadrant",
    "current_previous": "current key, previous value: its mirror",
    "previous_previous": "previous key, previous value",
}


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Prints everything there is about a model."""
    parts: list[RenderableType] = [_facts(inspection)]
    if inspection.taps is not None:
        parts += _taps(inspection.taps)
    if inspection.induction is not None:
        parts += _induction(inspection.induction)
    parts += [Text(f"Note: {note}") for note in inspection.notes]
    for part in parts:
        console.print(Padding(part, (0, 0, 1, 0)))


def _facts(inspection: Inspection) -> RenderableType:
    model, shift = inspection.model, inspection.shift
    said = [
        Text(model.name, style="bold"),
        Text(
            f"{model.architecture}, {model.parameters:,} parameters, {model.attention_layers} attention "
            f"layers, {model.query_heads} query heads, {model.kv_heads} KV heads"
        ),
    ]
    if shift is not None:
        names = [name for name in ("keys", "values", "queries") if shift[f"shift_{name}"]]
        per = "channel" if shift["per_channel"] else "head"
        said.append(
            Text(
                f"KV shift of {' and '.join(names)}, window {shift['window']}, one set of taps a {per}, "
                f"{shift['constraint']}, {shift['init']} start"
            )
        )
    return Group(*said)


def _taps(taps: LearnedTaps) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if sum(taps.quadrants.values()):
        parts += [_quadrants(taps), _by_layer(taps)]
    if len(taps.heads) + len(taps.query_heads) > MOST_ROWS:
        parts.append(Text(f"{len(taps.heads)} KV heads; --json has every tap, --plot a picture of them."))
    else:
        parts += [_every_tap(taps.heads)] if taps.heads else []
        parts += [_query_taps(taps.query_heads)] if taps.query_heads else []
    if taps.start is None:
        parts.append(Text("Where the taps started is not known: they were drawn at random, unrecorded here."))
    elif taps.largest_move is not None:
        parts.append(Text(f"The largest change of a tap since {taps.start} is {taps.largest_move:.2g}."))
    return parts


def _quadrants(taps: LearnedTaps) -> Group:
    total, paper = sum(taps.quadrants.values()), sum(PAPER_TABLE_4.values())
    table = _table()
    table.add_column("")
    table.add_column("meaning")
    for name in ("heads", "share", "paper"):
        table.add_column(name, justify="right")
    for name in QUADRANTS:
        mark, style = MARKS[name]
        table.add_row(
            Text(mark, style),
            Text(MEANINGS[name]),
            str(taps.quadrants[name]),
            f"{taps.quadrants[name] / total:.0%}",
            f"{PAPER_TABLE_4[name] / paper:.0%}",
        )
    return _titled("Quadrants: which token's key and value a head reads (paper: its 2.9B model)", table)


def _by_layer(taps: LearnedTaps) -> Group:
    table = _table()
    table.add_column("layer", justify="right")
    for name in QUADRANTS:
        mark, style = MARKS[name]
        table.add_column(Text(mark, style), justify="right")
    table.add_column("heads")
    for layer in taps.by_layer:
        marks = (MARKS[head.quadrant] for head in taps.heads if head.layer == layer.layer)
        table.add_row(
            str(layer.layer),
            *(str(layer.counts[name] or "") for name in QUADRANTS),
            _spaced((mark, style) for mark, style in marks),
        )
    return _titled("Quadrants by layer, a letter for each KV head from head 0 on", table)


def _every_tap(heads: list[HeadTaps]) -> Group:
    table = _table()
    for name in ("layer", "head"):
        table.add_column(name, justify="right")
    shown = [name for name in ("keys", "values") if any(getattr(head, name) is not None for head in heads)]
    for name in shown:
        table.add_column(name, justify="right")
    moved = any(taps.moved is not None for head in heads for taps in _both(head))
    if moved:
        table.add_column("moved", justify="right")
    far = any(len(taps.mean) > 2 for head in heads for taps in _both(head))
    if far:
        table.add_column("reads")
    if len(shown) == 2:
        table.add_column("")
    previous = None
    for head in heads:
        row: list[RenderableType] = ["" if head.layer == previous else str(head.layer), str(head.head)]
        row += [_numbers(getattr(head, name)) for name in shown]
        if moved:
            moves = [taps.moved for taps in _both(head) if taps.moved is not None]
            row.append(f"{max(moves):.2f}" if moves else "")
        if far:
            row.append(", ".join(_token(taps.dominant) for taps in _both(head)))
        if len(shown) == 2:
            row.append(Text(*MARKS[head.quadrant]))
        table.add_row(*row)
        previous = head.layer
    return _titled("Taps: weight of the current token, of the one before it, …", table)


def _query_taps(heads: list[QueryTaps]) -> Group:
    table = _table()
    for name in ("layer", "head", "queries", "moved"):
        table.add_column(name, justify="right")
    for head in heads:
        moved = "" if head.queries.moved is None else f"{head.queries.moved:.2f}"
        table.add_row(str(head.layer), str(head.head), _numbers(head.queries), moved)
    return _titled("Taps of the query heads", table)


def _both(head: HeadTaps) -> list[Taps]:
    return [taps for taps in (head.keys, head.values) if taps is not None]


def _token(back: int | None) -> str:
    """The token a tap reads, for people."""
    return "?" if back is None else f"t-{back}" if back else "t"


def _numbers(taps: Taps | None) -> Text:
    """The taps, the one that weighs most in bold."""
    text = Text()
    for back, number in enumerate(taps.mean if taps is not None else ()):
        shown = "not finite" if number is None else f"{number:5.2f}"
        if taps is not None and taps.spread is not None and taps.spread[back] is not None:
            shown += f"±{taps.spread[back]:.2f}"
        style = "bold" if taps is not None and back == taps.dominant else ""
        text.append(shown if back == 0 else f"  {shown}", style)
    return text


def _induction(scores: Induction) -> list[RenderableType]:
    begins = " after the start token" if scores.start_token is not None else ""
    losses = f"{scores.second_copy_loss:.2f} nats a token, the first {scores.first_copy_loss:.2f}"
    gap, right = scores.second_minus_first, scores.second_copy_accuracy
    intro = Text(
        f"Induction, on {scores.sequences} sequences of {scores.length} random tokens, twice{begins}. The "
        f"second copy costs {losses} ({gap:+.2f}); {right:.0%} of it is predicted right."
    )
    return [intro, _scores_by_layer(scores), _best_heads(scores)]


def _scores_by_layer(scores: Induction) -> Group:
    table, chance = _table(), scores.prefix_matching_chance
    table.add_column("layer", justify="right")
    table.add_column("best", justify="right")
    table.add_column("heads")
    for layer in sorted({head.layer for head in scores.heads}):
        matching = [head.prefix_matching for head in scores.heads if head.layer == layer]
        table.add_row(str(layer), f"{max(matching):.2f}", _spaced(map(_tenth, matching)))
    return _titled(
        f"Prefix matching of each query head, in tenths, 9 from 0.9 on (chance {chance:.2f})", table
    )


def _tenth(score: float) -> tuple[str, str]:
    """A score from 0 to 1 as a digit; a point where it rounds to none."""
    digit = min(9, int(10 * score))
    style = "bold green" if score >= STRONG else "yellow" if score >= 0.2 else "dim"
    return str(digit) if digit else "·", style


def _best_heads(scores: Induction) -> Group:
    table = _table()
    for name in ("layer", "head", "prefix matching", "copying"):
        table.add_column(name, justify="right")
    best = sorted(scores.heads, key=lambda head: -head.prefix_matching)[:MOST_LISTED]
    for head in best:
        table.add_row(*_score_row(head))
    return _titled("Best heads: an induction head has 1 and 1; by chance copying is 0", table)


def _score_row(head: HeadScore) -> list[RenderableType]:
    strong = "bold green" if head.prefix_matching >= STRONG else ""
    copying = "unknown" if head.copying is None else f"{head.copying:+.2f}"
    return [str(head.layer), str(head.head), Text(f"{head.prefix_matching:.2f}", strong), copying]


def _titled(title: str, table: Table) -> Group:
    """The title on a line of its own: as the table's, it would be folded to the table's width."""
    return Group(Text(title, style="bold"), table)


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim")


def _spaced(marks: Iterable[tuple[str, str]]) -> Text:
    return Text(" ").join(Text(mark, style) for mark, style in marks)
