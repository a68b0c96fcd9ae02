from __future__ import annotations

import pytest
import torch

from kvshift.errors import UsageError
from kvshift.paper.theory.logits import CLASSES, Counts, logits
from kvshift.paper.theory.simulation import check_rows, converge, draw, simulate


def test_orthonormal_embeddings_confirm_every_row_and_no_slip() -> None:
    rows = check_rows(tokens=12, dim=16, count=16)
    assert [row.name for row in rows] == list(CLASSES)
    assert all(row.confirmed() for row in rows)
    assert [row.name for row in rows if row.slipped is not None] == ["i-1", "i", "T"]


def test_where_both_keys_weigh_alike_the_slip_cannot_be_seen() -> None:
    rows = check_rows((0.5, 0.5, 0.7, 0.3), tokens=12, dim=16, count=4)
    assert [row.name for row in rows if not row.confirmed()] == ["i-1", "i", "T"]
    assert all(row.derived < 1e-14 for row in rows)


@pytest.mark.parametrize("embeddings", ["unit", "gaussian"])
def test_random_embeddings_come_near_like_one_over_the_root_of_the_dimension(embeddings) -> None:
    found = converge([64, 256, 1024], tokens=12, count=96, embeddings=embeddings)
    assert found.loss_rate == pytest.approx(-0.5, abs=0.08)
    assert found.logit_rates.keys() == set(CLASSES)
    assert list(found.logit_rates.values()) == pytest.approx([-0.5] * 5, abs=0.08)
    assert found.mean_loss_errors[-1] < found.loss_errors[-1] / 3


def test_a_slip_stays_however_large_the_dimension() -> None:
    """The distance to a row with α2 for α1 does not shrink with the dimension; that to the derived does."""
    taps, counts = (0.2, 0.8, 0.7, 0.3), Counts.exact(12)
    slipped = float(logits(torch.tensor(taps, dtype=torch.float64), counts, slipped=["i-1"])[0])
    derived = float(logits(torch.tensor(taps, dtype=torch.float64), counts)[0])
    away = {}
    for dim in (64, 2048):
        rows = simulate(taps, tokens=12, dim=dim, count=128).by_class()["i-1"]
        away[dim] = (float((rows - derived).square().mean().sqrt()), float((rows - slipped).mean().abs()))
    assert away[2048][0] < away[64][0] / 4
    assert away[2048][1] == pytest.approx(abs(slipped - derived), rel=0.15)


def test_classes_partition_the_tokens() -> None:
    found = simulate((0.2, 0.8, 0.7, 0.3), tokens=9, dim=32, count=40)
    classes = found.by_class()
    assert classes["others"].shape == (40, 5)
    together = torch.cat([values.reshape(40, -1) for values in classes.values()], dim=1)
    assert together.sort(dim=1).values.equal(found.logits.sort(dim=1).values)
    assert found.repeated.unique().tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["orthonormal", "unit", "gaussian"])
def test_embeddings(kind) -> None:
    drawn = draw(kind, 30, 20, 400, torch.Generator().manual_seed(0))
    assert drawn.shape == (30, 20, 400)
    products = drawn @ drawn.transpose(1, 2)
    off = products[:, ~torch.eye(20, dtype=torch.bool)]
    own = products.diagonal(dim1=1, dim2=2)
    if kind == "orthonormal":
        assert off.abs().max() < 1e-14
    else:
        assert float(off.std()) == pytest.approx(1 / 20, rel=0.1)
    expected_spread = (2 / 400) ** 0.5 if kind == "gaussian" else 0.0
    assert float(own.mean()) == pytest.approx(1, abs=0.02)
    assert float(own.std()) == pytest.approx(expected_spread, abs=0.01)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: check_rows(tokens=12, dim=8), "12 orthonormal tokens of dimension 8"),
        (lambda: simulate((0, 1, 1, 0), tokens=3, dim=8, count=1), "3 distinct tokens"),
        (lambda: converge([64]), "1 dimensions: expected two or more"),
        (lambda: draw("ones", 1, 4, 8, torch.Generator()), "'ones': expected orthonormal"),
    ],
)
def test_impossible_requests_are_refused(make, said) -> None:
    with pytest.raises(UsageError, match=said):
        make()
