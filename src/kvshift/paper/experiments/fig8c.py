"""Figure 8c: longer windows are no better."""

from __future__ import annotations

import dataclasses

from kvshift.paper.language import PAPER
from kvshift.paper.no_gain import no_gain

EXPERIMENT = no_gain(
    "fig8c",
    "Longer windows",
    "Mixing two or three earlier tokens in, not one, gains nothing.",
    "no gain at 1.5B parameters, 10B tokens",
    {
        "three taps": dataclasses.replace(PAPER, window=3),
        "four taps": dataclasses.replace(PAPER, window=4),
    },
)
