"""What happens at which step: learning rate, evaluations, points of the record."""

from __future__ import annotations

import math

from kvshift.training.recipe import Recipe

RECORDED_POINTS = 200  # at most this many loss points a run: enough for a curve, small on disk


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """The learning rate of the step that follows `step` finished ones, as a share of the peak.

    A line from 1/warm-up steps to 1, then a cosine that has reached `final_learning_rate` at the last step.
    """
    warmup = round(recipe.warmup * recipe.steps)
    if step < warmup:
        return (step + 1) / warmup
    # The peak belongs to the step before the cosine begins, the end of the cosine to the last step.
    progress = min((step - warmup + 1) / max(recipe.steps - warmup, 1), 1.0)
    low = recipe.final_learning_rate
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def evaluation_steps(recipe: Recipe) -> frozenset[int]:
    """The steps after which the model is evaluated, evenly spaced, the last step among them."""
    return frozenset(
        max(round(recipe.steps * i / recipe.evaluations), 1) for i in range(1, recipe.evaluations + 1)
    )


def recorded_every(recipe: Recipe) -> int:
    """The training loss is recorded after every so many steps, and after the last."""
    return -(-recipe.steps // RECORDED_POINTS)
