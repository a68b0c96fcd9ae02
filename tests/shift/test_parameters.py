"""The taps: shapes, starts, constraints, and a dtype of their own."""

from __future__ import annotations

import pytest
import torch

from kvshift.shift import KVShift, KVShiftConfig, shift

PARTS = ("k_weight", "v_weight", "q_weight")


def made(seed: int = 0, *, kv_heads: int = 8, query_heads: int = 16, **settings) -> KVShift:
    module = KVShift(KVShiftConfig(**settings), kv_heads=kv_heads, query_heads=query_heads, head_dim=5)
    module.reset_parameters(torch.Generator().manual_seed(seed))
    return module


@pytest.mark.parametrize("window", [2, 3, 4])
@pytest.mark.parametrize("per_channel", [False, True])
def test_shapes(window, per_channel) -> None:
    module = made(window=window, per_channel=per_channel, shift_queries=True, init="paper")
    channel = (5,) if per_channel else ()
    assert module.k_weight.shape == module.v_weight.shape == (8, *channel, window)
    assert module.q_weight.shape == (16, *channel, window)
    assert made(constraint="gate", init="paper").k_weight.shape == (8, 1)


def test_what_is_not_shifted_has_no_parameter() -> None:
    assert set(dict(made(shift_keys=False).named_parameters())) == {"v_weight"}
    assert set(dict(made(shift_values=False, shift_queries=True).named_parameters())) == {
        "k_weight",
        "q_weight",
    }
    assert made(shift_keys=False).taps("k_weight") is None


@pytest.mark.parametrize("window", [2, 3, 4])
@pytest.mark.parametrize("per_channel", [False, True])
def test_paper_start(window, per_channel) -> None:
    """All but the last tap from U(0, 1), the last 1 minus their sum (paper §1, §2)."""
    module = made(window=window, per_channel=per_channel, init="paper", kv_heads=400)
    for weight in (module.k_weight, module.v_weight):
        drawn = weight[..., :-1]
        assert torch.allclose(weight.sum(-1), torch.ones(weight.shape[:-1]), atol=1e-6)
        assert ((drawn >= 0) & (drawn < 1)).all()
        assert drawn.min() < 0.05
        assert drawn.max() > 0.95
        # A mean of n draws from U(0, 1) is within 5 standard errors of 1/2.
        assert abs(drawn.mean().item() - 0.5) < 5 * (1 / 12 / drawn.numel()) ** 0.5
    assert not torch.equal(module.k_weight, module.v_weight)
    if per_channel:
        assert len(module.k_weight[0, :, 0].unique()) == 5


def test_paper_start_is_drawn_in_float32_whatever_the_default_dtype() -> None:
    """Models are built under a bfloat16 default, which must not reach the taps."""
    expected = made(init="paper").k_weight
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = made(init="paper").k_weight
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_identity_start() -> None:
    module = made(window=3, init="identity", shift_queries=True)
    for part in PARTS:
        weight = getattr(module, part)
        assert torch.equal(weight, torch.tensor([1.0, 0.0, 0.0]).expand_as(weight))


@pytest.mark.parametrize("per_channel", [False, True])
def test_structured_start(per_channel) -> None:
    """Heads 0, 4: previous key, current value. Heads 1, 5: current key, previous value. The rest plain."""
    module = made(init="structured", window=3, shift_queries=True, per_channel=per_channel)
    current, previous = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    keys = [previous, current, current, current] * 2
    values = [current, previous, current, current] * 2
    for part, expected in (("k_weight", keys), ("v_weight", values), ("q_weight", [current] * 16)):
        weight = getattr(module, part)
        for channel in range(5) if per_channel else [None]:
            found = weight if channel is None else weight[:, channel]
            assert found.tolist() == expected


@pytest.mark.parametrize(
    ("init", "keys", "values"),
    [
        ("alternating", [1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1]),
        ("half_induction", [1, 0, 1, 0, 1, 0, 1, 0], [0] * 8),
        ("induction", [1] * 8, [0] * 8),
    ],
)
def test_other_structures(init, keys, values) -> None:
    """By head, whether it starts with the previous row."""
    module = made(init=init, window=3, shift_queries=True)
    for part, turned in (("k_weight", keys), ("v_weight", values), ("q_weight", [0] * 16)):
        assert getattr(module, part).tolist() == [[1 - each, each, 0] for each in turned]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_structured_start_with_few_heads_begins_with_the_induction_head(heads) -> None:
    module = made(init="structured", kv_heads=heads)
    assert module.k_weight[0].tolist() == [0, 1]
    assert module.v_weight[0].tolist() == [1, 0]


def test_starting_afresh_repeats_only_with_the_same_generator() -> None:
    assert torch.equal(made(3, init="paper").k_weight, made(3, init="paper").k_weight)
    assert not torch.equal(made(3, init="paper").k_weight, made(4, init="paper").k_weight)


@torch.no_grad()
def test_free_taps_are_the_parameters() -> None:
    module = made(init="paper")
    module.k_weight.copy_(torch.linspace(-3, 3, 16).view(8, 2))
    assert torch.equal(module.taps("k_weight"), module.k_weight)


def test_clamped_taps() -> None:
    module = made(constraint="clamp")
    with torch.no_grad():
        module.k_weight[0] = torch.tensor([-0.5, 1.5])
        module.k_weight[1] = torch.tensor([0.25, 0.75])
    assert module.taps("k_weight")[:2].tolist() == [[0, 1], [0.25, 0.75]]
    module.taps("k_weight").sum().backward()
    assert module.k_weight.grad[:2].tolist() == [[0, 0], [1, 1]]


def test_gated_taps_sum_to_one_and_start_as_the_papers_draw() -> None:
    module = made(constraint="gate", init="paper", kv_heads=400)
    taps = module.taps("k_weight")
    assert taps.shape == (400, 2)
    assert torch.equal(taps[:, :1], torch.sigmoid(module.k_weight))
    assert torch.allclose(taps.sum(-1), torch.ones(400))
    drawn = made(init="paper", kv_heads=400).k_weight
    assert torch.allclose(taps, drawn, atol=1e-5)


@pytest.mark.parametrize("constraint", ["free", "clamp", "gate"])
def test_called_as_a_module_it_gives_its_taps(constraint) -> None:
    module = made(init="paper", constraint=constraint, shift_values=False)
    taps = module()
    assert taps.keys() == {"q", "k", "v"}
    assert torch.equal(taps["k"], module.taps("k_weight"))
    assert taps["v"] is taps["q"] is None


@pytest.mark.parametrize("cast", ["bfloat16", "half", "float"])
def test_narrower_dtypes_leave_the_taps_float32(cast) -> None:
    module = made(init="paper")
    before = module.k_weight.clone()
    assert getattr(module, cast)().k_weight.dtype == torch.float32
    assert torch.equal(module.k_weight, before)
    inside = torch.nn.Sequential(torch.nn.Linear(2, 2), made(init="paper")).to(torch.bfloat16)
    assert inside[0].weight.dtype == torch.bfloat16
    assert inside[1].k_weight.dtype == torch.float32
    assert torch.equal(inside[1].k_weight, before)


def test_wider_dtypes_are_followed_there_and_back() -> None:
    module = made(init="paper")
    assert module.double().k_weight.dtype == torch.float64
    assert module.to(torch.float16).k_weight.dtype == torch.float64
    assert module.float().k_weight.dtype == torch.float32
    assert isinstance(module.k_weight, torch.nn.Parameter)


def test_moving_to_another_device_keeps_float32() -> None:
    module = made(init="paper").to("meta", torch.bfloat16)
    assert module.k_weight.is_meta
    assert module.k_weight.dtype == torch.float32


def test_autocast_leaves_the_taps_float32() -> None:
    module = made(init="paper")
    k = torch.randn(1, 6, 8, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        k_hat = shift(k, module()["k"])[0]
    assert k_hat.dtype == torch.bfloat16
    assert module.taps("k_weight").dtype == torch.float32
    assert torch.equal(k_hat, shift(k.float(), module.k_weight)[0].bfloat16())
    k_hat.float().sum().backward()
    assert module.k_weight.grad.dtype == torch.float32


@torch.no_grad()
def test_a_step_smaller_than_bfloat16_can_hold_is_kept() -> None:
    module = made(init="identity").bfloat16()
    module.k_weight.add_(1e-4)
    assert (module.k_weight[:, 0] > 1).all()
