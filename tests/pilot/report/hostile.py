"""A pilot in which every text that a user or a library may have chosen tries to break out of the page."""

from __future__ import annotations

from kvshift.pilot.notes import note
from kvshift.pilot.results import Results

HOSTILE = """<script>alert(1)</script>"'&amp; </script><!-- {{ 7*7 }} \u2028"""


def hostile(base: Results) -> Results:
    """`base`, a pilot with a price, with hostile texts everywhere."""
    foreign = note("size_left_out", size=HOSTILE, reason=HOSTILE)
    settings = base.settings.model_copy(
        update={
            "sources": (HOSTILE, HOSTILE),
            "text_column": HOSTILE,
            "currency": HOSTILE,
            "sizes": (HOSTILE,),
        }
    )
    return base.model_copy(
        update={
            "settings": settings,
            "arms": (base.arms[0], base.arms[1].model_copy(update={"name": HOSTILE})),
            "sizes": [
                s.model_copy(update={"name": HOSTILE + s.name, "model": {HOSTILE: HOSTILE}})
                for s in base.sizes
            ],
            "by_size": [s.model_copy(update={"size": HOSTILE + s.size}) for s in base.by_size],
            "curves": [
                c.model_copy(
                    update={"size": HOSTILE + c.size, "arm": HOSTILE if c.arm == "kvshift" else c.arm}
                )
                for c in base.curves
            ],
            "taps": [tap.model_copy(update={"size": HOSTILE + tap.size}) for tap in base.taps],
            "cost": base.cost.model_copy(update={"currency": HOSTILE}),
            "added": base.added.model_copy(update={"user_model": HOSTILE, "user_model_supported": False}),
            "runs": [
                run.model_copy(update={"name": HOSTILE + run.name, "error": HOSTILE, "status": HOSTILE})
                for run in base.runs
            ],
            "data": {HOSTILE: HOSTILE, "skipped": {HOSTILE: 1}, "notes": [foreign.model_dump()]},
            "recipe": {HOSTILE: HOSTILE},
            "device": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "warnings": [
                foreign,
                note("unsteady_clock", size=HOSTILE, low=0.8, high=1.1),
                note("diverged", runs=1, arm=HOSTILE),
                note("skipped", reasons={HOSTILE: 2}),
            ],
            "created": HOSTILE,
        }
    )
