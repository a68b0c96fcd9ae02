from __future__ import annotations

import math

import pytest
import torch

from kvshift.paper.theory.attention import MASKS
from kvshift.paper.theory.induction_head import induction_head, induction_tokens
from kvshift.paper.theory.one_layer import check_one_layer, ends, one_layer


def ih_by_hand(tokens, slope, sigma):
    """The formula for the last of `tokens`, with lists of floats; places count from 1, as in the formula."""
    length, width = len(tokens), len(tokens[0])
    at = dict(enumerate(tokens, start=1))
    places = range(2, length)  # 2 … L−1
    scores = {
        s: sum(a * b for a, b in zip(at[length], at[s - 1], strict=True)) / sigma - slope * abs(length - s)
        for s in places
    }
    total = sum(math.exp(score) for score in scores.values())
    return [sum(math.exp(scores[s]) / total * at[s][c] for s in places) for c in range(width)]


def ih_of_every_prefix(x, slope, sigma):
    return torch.tensor(
        [[ih_by_hand(sequence[: t + 1].tolist(), slope, sigma) for t in range(x.shape[1])] for sequence in x],
        dtype=torch.float64,
    )


@pytest.fixture
def text() -> torch.Tensor:
    """Tokens of any length, repeated at will: `(3, 9, 4)`."""
    torch.manual_seed(1)
    vocabulary = torch.randn(5, 4, dtype=torch.float64)
    return vocabulary[torch.randint(5, (3, 9))]


@pytest.mark.parametrize(("slope", "sigma"), [(0.0, 1.0), (0.3, 0.5), (2.0, 0.1)])
def test_ih_equals_the_loops(text, slope, sigma) -> None:
    wanted = ih_of_every_prefix(text, slope, sigma)
    torch.testing.assert_close(induction_head(text, slope=slope, sigma=sigma), wanted, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("slope", "sigma"), [(0.0, 1.0), (0.3, 0.5), (2.0, 0.1)])
def test_the_construction_is_ih_at_every_place(text, slope, sigma) -> None:
    with torch.no_grad():
        found = one_layer(4, slope=slope, sigma=sigma)(text)
    torch.testing.assert_close(found, ih_of_every_prefix(text, slope, sigma), atol=1e-13, rtol=0)


def test_under_one_mask_alone() -> None:
    for sigma, slope in ((1.0, 0.0), (0.5, 0.05), (0.2, 0.5)):
        found = check_one_layer(sigma=sigma, slope=slope, dim=16, tokens=12, sequences=16)
        assert found.errors.keys() == set(MASKS)
        assert found.exact_masks() == ("between",)
        # Reading the first token or itself is no rounding matter, even where ALiBi is steep.
        assert min(error for mask, error in found.errors.items() if mask != "between") > 1e-5


def test_the_causal_mask_is_off_by_the_two_ends_exactly() -> None:
    found = check_one_layer(sigma=0.5, slope=0.1, dim=16, tokens=12, sequences=16)
    assert found.unexplained < 1e-14
    assert found.first_weight > 1e-3
    assert found.last_weight > 1e-3


def repeated_after(distance: int, length: int) -> torch.Tensor:
    """Orthonormal tokens, the last of which occurred before; its answer lies `distance` places back."""
    x = torch.eye(length, dtype=torch.float64)[None].clone()
    x[:, -1] = x[:, length - 1 - distance - 1]
    return x


@pytest.mark.parametrize("slope", [0.2, 0.5])
def test_the_first_tokens_weight_falls_at_alibis_rate_and_the_lasts_does_not(slope) -> None:
    first, last = zip(*(ends(repeated_after(4, n), slope=slope, sigma=0.1) for n in (20, 40)), strict=True)
    assert math.log(first[1] / first[0]) == pytest.approx(-slope * 20, abs=0.05)
    assert float(last[1]) == pytest.approx(float(last[0]), rel=0.05)


@pytest.mark.parametrize("distance", [5, 15])
@pytest.mark.parametrize(("slope", "sigma"), [(0.2, 0.1), (0.1, 0.05)])
def test_the_last_tokens_weight_is_what_the_match_leaves_it(distance, slope, sigma) -> None:
    """About e^(mD − 1/σ) for an answer D places back, where nothing else counts."""
    _, last = ends(repeated_after(distance, 30), slope=slope, sigma=sigma)
    assert float(last) == pytest.approx(math.exp(slope * distance - 1 / sigma), rel=0.05)


def test_induction_tokens_repeat_one_with_an_answer() -> None:
    x = induction_tokens(200, tokens=6, dim=8, seed=0)
    assert x.shape == (200, 7, 8)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(200, 7, dtype=torch.float64))
    same = (x[:, :-1] == x[:, -1:]).all(-1)
    assert same.sum(-1).eq(1).all()
    assert same.nonzero()[:, 1].unique().tolist() == [1, 2, 3]  # places 2 … T−2
    # Sharp enough, IH is the answer.
    answer = x[torch.arange(200), same.nonzero()[:, 1] + 1]
    torch.testing.assert_close(induction_head(x, slope=0.0, sigma=0.002)[:, -1], answer, atol=1e-3, rtol=0)
