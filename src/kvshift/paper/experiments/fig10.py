"""Figure 10: shifting the queries too is no better."""

from __future__ import annotations

import dataclasses

from kvshift.paper.language import PAPER
from kvshift.paper.no_gain import no_gain

EXPERIMENT = no_gain(
    "fig10",
    "Queries shifted too",
    "Shifting the queries too leaves the loss about as it is (and benchmarks worse).",
    "a similar loss at 19B parameters",
    {"QKV": dataclasses.replace(PAPER, shift_queries=True)},
    alike=True,
)
