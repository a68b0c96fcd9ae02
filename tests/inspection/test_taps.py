from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvshift.inspection.quadrants import QUADRANTS, count, lean, quadrant
from kvshift.inspection.taps import read_taps


def taps_of(model, layer: int):
    return model.model.layers[layer].self_attn.kv_shift


@pytest.mark.parametrize(
    ("keys", "values", "expected"),
    [
        ([1.0, 0.0], [1.0, 0.0], "current_current"),
        ([0.0, 1.0], [1.0, 0.0], "previous_current"),
        ([1.0, 0.0], [0.0, 1.0], "current_previous"),
        ([0.5, 0.5], [0.5, 0.5], "previous_previous"),  # Table 4's other rows have ≤
        ([0.4, 0.1, 0.5], [0.5, 0.3, 0.4], "previous_current"),  # the oldest token weighs most
        ([0.1, -0.5], [-0.5, -0.4], "current_previous"),  # weights have a sign
        (None, [1.0, 0.0], None),
        ([1.0, 0.0], None, None),
        ([math.nan, 0.0], [1.0, 0.0], None),
        ([1.0, math.inf], [1.0, 0.0], None),
        ([1.0], [1.0, 0.0], None),
    ],
)
def test_the_rule(keys, values, expected) -> None:
    assert quadrant(keys, values) == expected


def test_lean_is_zero_on_the_border() -> None:
    assert lean([0.5, 0.5]) == 0
    assert lean([0.25, 0.5, 1.0]) == 0.75


def test_heads_without_a_quadrant_are_not_counted() -> None:
    assert count(["previous_current", None, "previous_current"]) == {
        **dict.fromkeys(QUADRANTS, 0),
        "previous_current": 2,
    }


def test_a_vanilla_model_has_no_taps() -> None:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    assert read_taps(LlamaForCausalLM(config)) is None


def test_the_structured_start_has_its_quadrants_in_every_layer(eight_heads) -> None:
    found = read_taps(eight_heads(init="structured"))
    expected = {"current_current": 2, "previous_current": 1, "current_previous": 1, "previous_previous": 0}
    assert [layer.counts for layer in found.by_layer] == [expected, expected]
    assert found.quadrants == {name: 2 * heads for name, heads in expected.items()}
    assert [(head.layer, head.head) for head in found.heads] == [(i, j) for i in range(2) for j in range(4)]
    assert found.largest_move == 0
    assert found.heads[0].keys.started == [0, 1]


def test_moves_are_measured_from_the_start(eight_heads) -> None:
    model = eight_heads(init="structured")
    with torch.no_grad():
        taps_of(model, 1).v_weight[2] += torch.tensor([0.25, -0.5])
    found = read_taps(model)
    moved = {(head.layer, head.head): (head.keys.moved, head.values.moved) for head in found.heads}
    assert moved.pop((1, 2)) == (0, 0.5)
    assert set(moved.values()) == {(0, 0)}
    assert found.largest_move == 0.5


def test_a_drawn_start_is_unknown_unless_recorded(eight_heads) -> None:
    model = eight_heads(init="paper")
    alone = read_taps(model)
    assert alone.start is None
    assert alone.largest_move is None
    assert all(head.keys.moved is None for head in alone.heads)
    started = {
        name: [getattr(taps_of(model, layer), name).tolist() for layer in range(2)]
        for name in ("k_weight", "v_weight")
    }
    with torch.no_grad():
        taps_of(model, 0).k_weight[3, 1] -= 0.125
    recorded = read_taps(model, started)
    assert recorded.largest_move == pytest.approx(0.125)
    assert recorded.heads[3].keys.moved == pytest.approx(0.125)
    assert recorded.heads[2].keys.moved == 0


def test_a_gate_shows_what_it_lets_through(eight_heads) -> None:
    model = eight_heads(init="paper", constraint="gate")
    with torch.no_grad():
        taps_of(model, 0).k_weight[0] = math.log(3)  # sigmoid: 3/4
    first = read_taps(model).heads[0]
    assert first.keys.mean == pytest.approx([0.75, 0.25])
    assert first.keys.started is None


def test_a_clamp_shows_what_is_left(eight_heads) -> None:
    model = eight_heads(init="identity", constraint="clamp")
    with torch.no_grad():
        taps_of(model, 0).k_weight[0] = torch.tensor([-2.0, 1.5])
    first = read_taps(model).heads[0]
    assert first.keys.mean == [0, 1]
    assert first.keys.moved == 1
    assert first.quadrant == "previous_current"


def test_channels_are_averaged_and_their_spread_told(eight_heads) -> None:
    model = eight_heads(init="identity", per_channel=True)
    with torch.no_grad():
        taps_of(model, 0).v_weight[1, :, 1] = torch.tensor([1.0, 3.0, 1.0, 3.0])
    first, second = read_taps(model).heads[:2]
    assert second.values.mean == [1, 2]
    assert second.values.spread == [0, 1]
    assert second.quadrant == "current_previous"
    assert first.values.spread == [0, 0]


def test_a_longer_window_names_its_dominant_tap(eight_heads) -> None:
    model = eight_heads(init="identity", window=4)
    with torch.no_grad():
        taps_of(model, 1).k_weight[0] = torch.tensor([0.1, 0.2, 0.4, 0.3])
    head = next(head for head in read_taps(model).heads if head.layer == 1 and head.head == 0)
    assert len(head.keys.mean) == 4
    assert head.keys.dominant == 2
    assert head.values.dominant == 0
    assert head.quadrant == "previous_current"


def test_half_a_shift_has_no_quadrants(eight_heads) -> None:
    found = read_taps(eight_heads(init="structured", shift_values=False))
    assert all(head.values is None and head.quadrant is None for head in found.heads)
    assert sum(found.quadrants.values()) == 0
    assert len(found.heads) == 8


def test_shifted_queries_have_taps_of_their_own(eight_heads) -> None:
    found = read_taps(eight_heads(init="identity", shift_queries=True))
    assert [(head.layer, head.head) for head in found.query_heads] == [
        (i, j) for i in range(2) for j in range(8)
    ]
    only = read_taps(eight_heads(init="identity", shift_queries=True, shift_keys=False, shift_values=False))
    assert only.heads == []
    assert len(only.query_heads) == 16
    assert only.largest_move == 0


def test_taps_that_are_not_finite_are_told_and_not_classified(eight_heads) -> None:
    model = eight_heads(init="identity")
    with torch.no_grad():
        taps_of(model, 0).k_weight[0, 1] = math.nan
    found = read_taps(model)
    assert found.heads[0].keys.mean == [1, None]
    assert found.heads[0].quadrant is None
    assert found.heads[0].keys.moved is None
    assert sum(found.quadrants.values()) == 7
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_bfloat16_models_keep_their_taps_exact(eight_heads) -> None:
    found = read_taps(eight_heads(init="structured").bfloat16())
    assert found.largest_move == 0
