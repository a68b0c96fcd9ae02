from __future__ import annotations

import numpy as np
import pytest
import torch

from kvshift.errors import DataError
from kvshift.training.data import EvaluationWindows, TrainingWindows, check_enough, positions


def test_order_is_the_seeds_alone(make_recipe, text):
    recipe = make_recipe(tokens=200 * 4 * 32)
    shifted = TrainingWindows(text.train, recipe)
    vanilla = TrainingWindows(text.train, make_recipe(tokens=50 * 4 * 32, shift=None))
    other = TrainingWindows(text.train, make_recipe(seed=1))
    first = [shifted.window_index(i) for i in range(40)]
    assert first == [vanilla.window_index(i) for i in range(40)]
    assert first != [other.window_index(i) for i in range(40)]
    assert shifted.window_index(700) == TrainingWindows(text.train, recipe).window_index(700)  # no history


def test_each_epoch_is_another_permutation(make_recipe, text):
    windows = TrainingWindows(text.train, make_recipe(tokens=10**6))
    count = text.train.window_count(32)
    epochs = [[windows.window_index(epoch * count + i) for i in range(count)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
    assert epochs[0] != epochs[1]


def test_batches_hold_what_the_store_says(make_recipe, text):
    windows = TrainingWindows(text.train, make_recipe())
    packed = next(item for item in range(48) if "position_ids" in windows[item])
    batch = windows.__getitems__([5, packed])
    for row, item in enumerate([5, packed]):
        inputs, targets, starts = text.train.window(windows.window_index(item), 32)
        assert batch["input_ids"][row].tolist() == inputs.tolist()
        assert batch["labels"][row].tolist() == targets.tolist()
        position, expected = 0, []
        for start in starts:
            position = 0 if start else position + 1
            expected.append(position)
        assert batch["position_ids"][row].tolist() == expected
    assert windows[5]["input_ids"].tolist() == batch["input_ids"][:1].tolist()


def test_only_batches_in_which_a_document_begins_have_positions(make_recipe, text):
    windows = TrainingWindows(text.train, make_recipe(batch_size=1, tokens=200 * 32))
    inside = [text.train.window(windows.window_index(item), 32)[2][1:].any() for item in range(200)]
    assert len(set(inside)) == 2
    for item, begins in enumerate(inside):
        assert ("position_ids" in windows[item]) == begins
    whole, packed = inside.index(False), inside.index(True)
    assert len(windows.__getitems__([whole, packed])["position_ids"]) == 2


def test_some_window_holds_a_boundary(text):
    """Else the tests above prove little."""
    assert any(text.train.window(i, 32)[2][1:].any() for i in range(text.train.window_count(32)))


def test_positions():
    starts = np.array([[1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=bool)
    assert positions(starts).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]


def test_evaluation_windows_are_fixed_spread_and_of_one_shape(make_recipe, text):
    windows = EvaluationWindows(text, make_recipe(evaluation_tokens=7 * 32), 4)
    assert windows.windows == [i * text.validation.window_count(32) // 7 for i in range(7)]
    other_arm = make_recipe(evaluation_tokens=7 * 32, shift=None, seed=9)
    assert windows.windows == EvaluationWindows(text, other_arm, 3).windows
    assert [tuple(batch["labels"].shape) for batch in windows.batches] == [(4, 32), (4, 32)]
    assert (windows.batches[-1]["labels"][3:] == -100).all()
    assert (windows.batches[-1]["labels"][:3] != -100).any(dim=1).all()
    everything = EvaluationWindows(text, make_recipe(evaluation_tokens=10**9), 4)
    assert everything.windows == list(range(text.validation.window_count(32)))
    assert torch.equal(windows.token_bytes, torch.from_numpy(text.token_bytes.astype(np.int64)))


def test_too_little_text(make_recipe, text):
    check_enough(text, make_recipe())
    with pytest.raises(DataError, match=r"tokens; expected at least one window of 1,048,576"):
        check_enough(text, make_recipe(sequence_length=1 << 20))
