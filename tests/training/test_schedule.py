from __future__ import annotations

import itertools
import math

import pytest

from kvshift.training.schedule import evaluation_steps, learning_rate_factor, recorded_every


def test_warm_up_then_cosine(make_recipe):
    recipe = make_recipe(tokens=100 * 128, warmup=0.1, final_learning_rate=0.2)
    factors = [learning_rate_factor(step, recipe) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    for step in range(10, 100):
        progress = (step - 9) / 90
        assert factors[step] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * progress)) / 2)
    assert factors[-1] == pytest.approx(0.2)
    assert max(factors) == 1


def test_no_warm_up(make_recipe):
    recipe = make_recipe(warmup=0, final_learning_rate=0)
    factors = [learning_rate_factor(step, recipe) for step in range(recipe.steps)]
    assert all(0 <= later < earlier <= 1 for earlier, later in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [(12, 3, {4, 8, 12}), (5, 20, {1, 2, 3, 4, 5}), (7, 1, {7}), (1, 2, {1})],
)
def test_evaluations_are_evenly_spaced_and_end_the_run(make_recipe, steps, evaluations, expected):
    assert evaluation_steps(make_recipe(tokens=steps * 128, evaluations=evaluations)) == expected


def test_the_record_stays_small(make_recipe):
    assert recorded_every(make_recipe(tokens=128)) == 1
    assert recorded_every(make_recipe(tokens=200 * 128)) == 1
    assert recorded_every(make_recipe(tokens=100_000 * 128)) == 500
