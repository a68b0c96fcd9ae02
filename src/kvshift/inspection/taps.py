"""The learned taps of a shifted model, head by head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kvshift.inspection.quadrants import count, lean, quadrant
from kvshift.inspection.schema import HeadTaps, LayerQuadrants, LearnedTaps, QueryTaps, Taps
from kvshift.shift import KVShift

Start = dict[str, list[list[list[float]]] | None]
"""`{"k_weight": start[layer][head][column], …}`: taps at step 0, averaged over channels."""

_DRAWN = "paper"  # a start of which a model does not keep the draw


def read_taps(model: nn.Module, started: Start | None = None) -> LearnedTaps | None:
    """Every head's effective taps; None for a model without KV shift.

    Args:
        model: a converted model, wherever it is.
        started: the taps at step 0 as a run recorded them. None: they follow from the configuration where
            its start is not drawn at random.
    """
    layers = shifted_layers(model)
    if not layers:
        return None
    heads, query_heads = [], []
    source = None
    for place, (layer, shift) in enumerate(layers):
        start, source = _start(shift, started, place)
        keys = _taps(shift.taps("k_weight"), start.get("k_weight"))
        values = _taps(shift.taps("v_weight"), start.get("v_weight"))
        for head in range(len(keys or values or ())):
            key, value = (taps[head] if taps else None for taps in (keys, values))
            heads.append(
                HeadTaps(layer=layer, head=head, keys=key, values=value, quadrant=_quadrant(key, value))
            )
        queries = _taps(shift.taps("q_weight"), start.get("q_weight")) or []
        query_heads += [QueryTaps(layer=layer, head=head, queries=taps) for head, taps in enumerate(queries)]
    moves = [
        taps.moved
        for taps in (
            *(head.keys for head in heads),
            *(head.values for head in heads),
            *(head.queries for head in query_heads),
        )
        if taps is not None and taps.moved is not None
    ]
    return LearnedTaps(
        heads=heads,
        query_heads=query_heads,
        quadrants=count(head.quadrant for head in heads),
        by_layer=[
            LayerQuadrants(layer=layer, counts=count(h.quadrant for h in heads if h.layer == layer))
            for layer, _ in layers
        ],
        start=source,
        largest_move=max(moves, default=None),
    )


def shifted_layers(model: nn.Module) -> list[tuple[int, KVShift]]:
    """Each shifted attention layer's number in the model, and its taps; in layer order."""
    found: dict[int, KVShift] = {}
    for module in model.modules():
        if isinstance(shift := getattr(module, "kv_shift", None), KVShift):
            found[int(getattr(module, "layer_idx"))] = shift  # noqa: B009
    return sorted(found.items())


def plain(numbers: Sequence[float | None]) -> list[float]:
    """Numbers with NaN where there is none."""
    return [math.nan if number is None else number for number in numbers]


def head_lean(taps: Taps | None) -> float | None:
    """`quadrants.lean` of one head's taps."""
    return None if taps is None else lean(plain(taps.mean))


def _quadrant(keys: Taps | None, values: Taps | None) -> str | None:
    return quadrant(
        None if keys is None else plain(keys.mean), None if values is None else plain(values.mean)
    )


def _start(shift: KVShift, started: Start | None, place: int) -> tuple[dict[str, Tensor], str | None]:
    """One layer's taps at step 0, each `(heads, window)`, and where they are from."""
    names = ("k_weight", "v_weight", "q_weight")
    if started is not None:
        return (
            {
                name: torch.tensor(layers[place])
                for name in names
                if (layers := started.get(name)) is not None and place < len(layers)
            },
            "step 0 of its run, as recorded",
        )
    if shift.config.init == _DRAWN or shift.config.constraint == "gate":
        return {}, None
    heads = {name: getattr(shift, name) for name in names}
    fresh = KVShift(
        shift.config,
        kv_heads=next((len(heads[name]) for name in names[:2] if heads[name] is not None), 0),
        query_heads=0 if heads["q_weight"] is None else len(heads["q_weight"]),
        head_dim=shift.head_dim,
    )
    fresh.reset_parameters()
    taps = {name: _averaged(taps) for name in names if (taps := fresh.taps(name)) is not None}
    return taps, f"the {shift.config.init} start of its configuration"


def _taps(taps: Tensor | None, started: Tensor | None) -> list[Taps] | None:
    """One `Taps` a head, from `(heads, window)` or `(heads, head_dim, window)`."""
    if taps is None:
        return None
    taps = taps.detach().double().cpu()
    mean = _averaged(taps)
    spread = taps.std(dim=1, correction=0) if taps.dim() == 3 else None
    known = started.double().cpu() if started is not None and started.shape == mean.shape else None
    found = []
    for head, row in enumerate(mean):
        finite = bool(row.isfinite().all())
        start = None if known is None else known[head]
        found.append(
            Taps(
                mean=_numbers(row),
                spread=None if spread is None else _numbers(spread[head]),
                dominant=_dominant(row) if finite else None,
                started=None if start is None else start.tolist(),
                moved=float((row - start).abs().max()) if start is not None and finite else None,
            )
        )
    return found


def _averaged(taps: Tensor) -> Tensor:
    """`(heads, window)`, averaged over channels."""
    return taps.detach() if taps.dim() == 2 else taps.detach().mean(dim=1)


def _dominant(row: Tensor) -> int:
    """As in the quadrants, a tie goes to the earlier token."""
    return len(row) - 1 - int(row.flip(0).argmax())


def _numbers(row: Tensor) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in row.tolist()]
