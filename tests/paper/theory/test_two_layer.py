from __future__ import annotations

import math

import pytest
import torch

from kvshift.errors import UsageError
from kvshift.paper.theory.attention import linear
from kvshift.paper.theory.induction_head import induction_head, induction_tokens
from kvshift.paper.theory.two_layer import TwoLayers, first_order, measure_errors

STEEPNESS = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_the_first_layer_copies_the_token_before() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    model = TwoLayers(3, steepness=3.0, slope=0.1, sigma=0.5)
    with torch.no_grad():
        written = model.first(torch.cat((x, torch.zeros_like(x)), dim=-1))
    assert written[..., :3].eq(0).all()
    assert written[:, 0].eq(0).all()
    for t in range(1, 7):
        shares = [math.exp(-3.0 * (j - 1)) for j in range(1, t + 1)]
        wanted = sum(share * x[:, t - j] for j, share in enumerate(shares, start=1)) / sum(shares)
        torch.testing.assert_close(written[:, t, 3:], wanted, atol=1e-13, rtol=0)


@pytest.mark.parametrize("sigma", [1.0, 0.2])
@pytest.mark.parametrize("first_mask", ["before", "causal"])
def test_the_error_falls_like_e_to_the_minus_p(sigma, first_mask) -> None:
    curve = measure_errors(STEEPNESS, sigma=sigma, slope=0.05, tokens=16, sequences=32, first_mask=first_mask)
    assert curve.rate == pytest.approx(-1, abs=0.02)
    assert curve.mean == sorted(curve.mean, reverse=True)


@pytest.mark.parametrize(("dim", "tokens", "slope"), [(8, 12, 0.0), (32, 12, 0.05), (16, 40, 0.5)])
@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_the_constant_is_the_derived_one_and_below_the_bound(dim, tokens, slope, sigma) -> None:
    curve = measure_errors(STEEPNESS, sigma=sigma, slope=slope, dim=dim, tokens=tokens, sequences=32)
    assert curve.predicted_constant == pytest.approx(curve.constant, rel=1e-3)
    assert curve.within_bound()
    assert curve.bound == 2 / sigma


def test_the_first_order_holds_for_every_sequence_and_length_of_tokens() -> None:
    torch.manual_seed(0)
    x = 1.5 * torch.randn(16, 10, 6, dtype=torch.float64)
    model = TwoLayers(6, steepness=14.0, slope=0.1, sigma=4.0)
    with torch.no_grad():
        error = (model(x) - induction_head(x, slope=0.1, sigma=4.0))[:, -1].norm(dim=-1)
    torch.testing.assert_close(error * math.exp(14), first_order(x, slope=0.1, sigma=4.0), rtol=1e-4, atol=0)
    longest = x.norm(dim=-1).amax(dim=-1)
    assert (error <= 2 * longest**3 / 4.0 * math.exp(-14)).all()


def test_under_the_causal_mask_a_steep_slope_alone_copies_the_token_itself() -> None:
    """Without the second layer's subtraction nothing is found, however steep the slope."""
    x = induction_tokens(16, tokens=12, dim=32, seed=0)
    wanted = induction_head(x, slope=0.05, sigma=0.1)[:, -1]
    model = TwoLayers(32, steepness=12.0, slope=0.05, sigma=0.1, first_mask="causal")
    with torch.no_grad():
        copied = model.first(torch.cat((x, torch.zeros_like(x)), dim=-1))[..., 32:]
        torch.testing.assert_close(copied, x, atol=1e-4, rtol=0)
        assert (model(x)[:, -1] - wanted).norm(dim=-1).max() < 1e-4
        second_half = torch.eye(64, dtype=torch.float64)[32:]
        model.second.key = linear(second_half)
        assert (model(x)[:, -1] - wanted).norm(dim=-1).min() > 0.5


def test_a_rate_needs_two_points() -> None:
    with pytest.raises(UsageError, match=r"1 of the p lie in \(4.0, 12.0\)"):
        measure_errors([1.0, 5.0, 30.0], sigma=1.0, slope=0.0)
