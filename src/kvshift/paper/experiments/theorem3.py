"""Theorem 3: the logits of one KV shifting head on a repeated token, with embeddings of dimension d."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kvshift.paper.experiment import Experiment, Judgement, Measurement, Run, Settings
from kvshift.paper.place import Place
from kvshift.paper.theory.curves import draw_convergence
from kvshift.paper.theory.simulation import Convergence, Row, check_rows, converge

TOLERANCE = 0.1  # of the rate


def _runs(count: int, dims: list[int]) -> tuple[Run, ...]:
    common = {"taps": [0.2, 0.8, 0.7, 0.3], "tokens": 16, "count": count, "seed": 0}
    random = [
        Run(embeddings, {**common, "dims": dims, "embeddings": embeddings})
        for embeddings in ("unit", "gaussian")
    ]
    return (Run("orthonormal", {**common, "dim": 64}), *random)


def measure(settings: Settings, place: Place) -> dict[str, Any]:
    """The rows against orthonormal embeddings, or the distance to them of random ones."""
    taps = tuple(settings["taps"])
    rest = {name: value for name, value in settings.items() if name != "taps"}
    if "dims" in settings:
        return dataclasses.asdict(converge(taps=taps, **rest))
    return {"rows": [dataclasses.asdict(row) for row in check_rows(taps, **rest)]}


def _found(measurements: Sequence[Measurement]) -> tuple[list[Row], list[Convergence]]:
    rows = next(each.measured["rows"] for each in measurements if "rows" in each.measured)
    random = [each.measured for each in measurements if "rows" not in each.measured]
    return [Row(**row) for row in rows], [Convergence(**measured) for measured in random]


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    rows, random = _found(measurements)
    confirmed = [row.name for row in rows if row.confirmed()]
    rates = all(
        abs(rate + 0.5) <= TOLERANCE
        for each in random
        for rate in (each.loss_rate, *each.logit_rates.values())
    )
    largest = max(row.derived for row in rows)
    slips = {row.name: row.slipped for row in rows if row.slipped is not None}
    exponents = ", ".join(f"{each.loss_rate:.3f} ({each.embeddings})" for each in random)
    every = len(confirmed) == len(rows)
    return Judgement(
        verdict="reproduced" if every and rates else "partly" if confirmed else "not",
        ours=f"{len(confirmed)} of {len(rows)} rows to {largest:.0e}; loss error ∝ d^rate, rate {exponents}",
        finding=f"Rows confirmed by orthonormal embeddings: {', '.join(confirmed) or 'none'}; with T − 2 in "
        "S and T − 4 tokens in the loss, where the paper writes O(T) for both. With α2 for α1, as the "
        "printed table has it in two rows, a row is off by: "
        + ", ".join(f"{difference:.2g} ({name})" for name, difference in slips.items())
        + ".",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Distance to the formulas against the dimension."""
    rows, random = _found(measurements)
    return draw_convergence(random, rows, kind)


EXPERIMENT = Experiment(
    name="theorem3",
    version=1,
    title="The logits of a repeated token",
    claim="As d → ∞ the logits of the five classes of tokens, and the loss, are those derived in the paper.",
    paper="the five formulas",
    rule="Reproduced if orthonormal embeddings give all five rows to 1e-12 and refuse each with α2 written "
    "for α1, and random embeddings (unit and gaussian) come near every row and the loss as d^rate with a "
    f"rate within {TOLERANCE} of −1/2; partly if some rows hold; not otherwise.",
    runs={
        "tiny": _runs(64, [64, 256, 1024]),
        "small": _runs(512, [64, 128, 256, 512, 1024, 2048]),
        "gpu": _runs(512, [64, 128, 256, 512, 1024, 2048]),
    },
    uses_gpu=False,
    measure=measure,
    judge=judge,
    draw=draw,
)
