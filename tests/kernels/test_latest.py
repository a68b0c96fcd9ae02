"""What was made last is returned only for what is the same number by number."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from kvshift.kernels.latest import Latest


@pytest.fixture
def made() -> list[tuple]:
    """What was asked to be made, in order."""
    return []


@pytest.fixture
def total(made) -> Latest[float]:
    def make(tensors: tuple[Tensor | None, ...], *sizes: int) -> float:
        made.append((tensors, sizes))
        return sum(float(x.sum()) for x in tensors if x is not None)

    return Latest(make)


def test_the_same_numbers_are_made_once(total, made) -> None:
    x = torch.arange(4.0)
    assert total((x, None), 3) == total((x.clone(), None), 3) == 6
    assert len(made) == 1
    assert made[0][1] == (3,)


@pytest.mark.parametrize(
    "other",
    [
        ((torch.arange(4.0), torch.zeros(1)), 3),
        ((None, None), 3),
        ((torch.arange(4.0), None), 4),
        ((torch.arange(4.0).double(), None), 3),
        ((torch.arange(4.0)[None], None), 3),
        ((torch.arange(5.0), None), 3),
    ],
    ids=["another", "none", "size", "dtype", "shape", "length"],
)
def test_anything_else_is_made_anew(total, made, other) -> None:
    total((torch.arange(4.0), None), 3)
    total(*other)
    assert len(made) == 2


def write(x: Tensor) -> None:
    x[1] += 1


WRITTEN = {
    "in place": write,
    "through NumPy": lambda x: write(x.numpy()),
    "through data": lambda x: write(x.data),
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("inference", [False, True])
def test_what_was_written_to_is_made_anew(total, way, inference) -> None:
    with torch.inference_mode(inference):
        x = torch.arange(4.0)
        assert total((x,)) == 6
        WRITTEN[way](x)
        assert total((x,)) == 7


def test_what_inference_mode_made_serves_a_gradient() -> None:
    double = Latest(lambda tensors: tensors[0] * 2)
    with torch.inference_mode():
        made = double((torch.ones(2),))
    assert double((torch.ones(2),)) is made
    x = torch.ones(2, requires_grad=True)
    (x * made).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_the_tensors_that_were_given_are_let_go() -> None:
    same = Latest(lambda tensors: tensors[0])
    x = torch.ones(2)
    gone = weakref.ref(x)
    same((x,))
    del x
    assert gone() is None
