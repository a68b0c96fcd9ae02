"""Figure 8a: taps behind a gate, or clamped to [0, 1], are no better than free ones."""

from __future__ import annotations

import dataclasses

from kvshift.paper.language import PAPER
from kvshift.paper.no_gain import no_gain

EXPERIMENT = no_gain(
    "fig8a",
    "Gate and clamp",
    "Taps that a sigmoid gate shares out, or that are clamped to [0, 1], are no better than free ones.",
    "no gain at 1.5B parameters, 10B tokens",
    {
        "gate": dataclasses.replace(PAPER, constraint="gate"),
        "clamp": dataclasses.replace(PAPER, constraint="clamp"),
    },
)
