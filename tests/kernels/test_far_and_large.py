"""Memory that lies far apart, views that must not be copied, and programs that take several tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from kernel_checks import ON_GPU

from kvshift.kernels import rows, shift_alone, shift_rotary  # noqa: F401  (they register the operators)

OPERATORS = torch.ops.kvshift


def by_shift(x: Tensor, gradient: Tensor, taps: Tensor) -> tuple[Tensor, ...]:
    rest = (None,) * 3
    return (
        *OPERATORS.shift(x, taps, x, taps, *rest),
        *OPERATORS.shift_backward(gradient, x, taps, gradient, x, taps, *rest),
    )


def by_rotary(x: Tensor, gradient: Tensor, taps: Tensor) -> tuple[Tensor, ...]:
    half = torch.outer(torch.arange(x.shape[1]), torch.linspace(0.1, 1, x.shape[3] // 2)).to(x.device)
    angle = torch.cat((half, half), 1)[None]
    rest = (taps, taps, angle.cos(), angle.sin(), None, None, None, None, None, 0.0, False)
    return (
        *OPERATORS.shift_rotary(x, x, x, *rest),
        *OPERATORS.shift_rotary_backward(gradient, gradient, gradient, None, x, x, *rest),
    )


@pytest.mark.skipif(ON_GPU, reason="its memory is a sparse file")
@pytest.mark.parametrize("run", [by_shift, by_rotary])
@pytest.mark.parametrize("where", ["batch", "time", "head"])
def test_strides_beyond_32_bits(where: str, run, tmp_path) -> None:
    """In sparse files: nothing but the rows is ever touched."""
    far = 2**31 + 64
    strides = {"batch": (far, 128, 64, 1), "time": (128, far // 2, 64, 1), "head": (512, 64, far, 1)}[where]
    shape = (2, 4, 2, 64)
    size = 1 + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))

    def spread(name: str) -> Tensor:
        memory = torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=torch.float16)
        return memory.as_strided(shape, strides).copy_(torch.randn(shape))

    x, gradient, taps = spread("rows"), spread("gradient"), torch.randn(2, 4)
    near = run(x.contiguous(), gradient.contiguous(), taps)
    assert all(map(torch.equal, run(x, gradient, taps), near))


def test_views_of_one_projection_are_not_copied(device: str) -> None:
    projected = torch.randn(2, 5, 8, 16, device=device)
    for view in projected.split((4, 2, 2), dim=2):
        assert rows.inner_contiguous(view) is view


@pytest.mark.parametrize("run", [by_shift, by_rotary])
def test_programs_that_add_up_several_tiles(device: str, run, monkeypatch) -> None:
    """As large inputs make them."""
    torch.manual_seed(0)
    x, gradient = (torch.randn(2, 60, 2, 64, device=device) for _ in range(2))
    taps = torch.randn(2, 3, device=device)
    one_each = run(x, gradient, taps)
    monkeypatch.setattr(rows, "ENOUGH_PROGRAMS", 1)
    assert rows.blocks_a_program(10, 2, 32) == 20
    for several, one in zip(run(x, gradient, taps), one_each, strict=True):
        assert (several - one).norm() <= 1e-6 * one.norm()
