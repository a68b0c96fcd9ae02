"""Sums of what programs found, against float64; memory around them is NaN."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from kvshift.kernels.sums import taps_gradients


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("tensors", [1, 2])
def test_sums_of_programs(device, tensors, per_channel) -> None:
    for programs, (window, heads, head_dim) in itertools.product(
        (0, 1, 63, 130), ((2, 1, 128), (3, 3, 80), (4, 2, 6))
    ):
        generator = torch.Generator().manual_seed(programs)
        parts = torch.randn(tensors, programs, window, heads, head_dim, generator=generator)
        around = torch.full((parts.numel() + 20_000,), torch.nan, device=device)
        around[: parts.numel()] = parts.flatten().to(device)
        sums = around[: parts.numel()].view(parts.shape)
        taps = torch.zeros(heads, *([head_dim] if per_channel else []), window, device=device)
        found = taps_gradients(sums, taps, taps if tensors == 2 else None)
        exact = parts.double().sum(1 if per_channel else (1, 4)).movedim(1, -1)  # (tensors, heads, …, window)
        assert found[1].numel() == (taps.numel() if tensors == 2 else 0)
        for gradient, expected in zip(found, exact, strict=False):
            assert gradient.shape == taps.shape
            assert gradient.is_contiguous()
            error = (gradient.double().cpu() - expected).norm()
            assert error <= 1e-6 * expected.norm()
        again = taps_gradients(sums, taps, taps if tensors == 2 else None)
        assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
