"""The taps' gradients out of what each program of a backward has added up: one launch for both tensors.

PyTorch's sums and the transposition after them are four launches, of which a small call consists. A program
takes one tap of one head. It always adds in the same order, so two runs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kvshift.kernels.rows import next_power_of_2, or_any

_NUMBERS = 8192  # that a program reads at a time
_WARPS = 8


@triton.jit
def _kernel(
    p_sums,  # (tensors, programs, window, heads, head_dim) float32
    p_x_taps, p_y_taps,  # gradients: (heads, window) or (heads, head_dim, window) float32
    programs, heads, head_dim,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    head, j, tensor = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    p_taps = p_x_taps if tensor == 0 else p_y_taps
    d = tl.arange(0, CHANNELS)
    m_d = d < head_dim
    total = tl.zeros((PARTS, CHANNELS), dtype=tl.float32)
    for first in range(0, programs, PARTS):
        part = first + tl.arange(0, PARTS)
        o_part = ((tensor * programs + part).to(tl.int64) * WINDOW + j) * heads * head_dim + head * head_dim
        mask = (part < programs)[:, None] & m_d[None, :]
        total += tl.load(p_sums + o_part[:, None] + d[None, :], mask=mask, other=0.0)
    of_channels = tl.sum(total, axis=0)
    if PER_CHANNEL:
        tl.store(p_taps + (head * head_dim + d) * WINDOW + j, of_channels, mask=m_d)
    else:
        tl.store(p_taps + head * WINDOW + j, tl.sum(of_channels, axis=0))


def taps_gradients(sums: Tensor, x_taps: Tensor, y_taps: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the programs found, added up.

    Args:
        sums: `(1 or 2, programs, window, heads, head_dim)` float32.
        x_taps: `(heads, window)` or `(heads, head_dim, window)` float32.
        y_taps: of the second tensor, if there is one.

    Returns:
        Gradients like the taps; an empty tensor where there are none.
    """
    tensors, programs, window, heads, head_dim = sums.shape
    dx_taps = x_taps.new_empty(x_taps.shape)
    dy_taps = x_taps.new_empty(0) if y_taps is None else y_taps.new_empty(y_taps.shape)
    if heads:
        channels = next_power_of_2(head_dim)
        _kernel[heads, window, tensors](
            sums, dx_taps, or_any(None if y_taps is None else dy_taps, dx_taps),
            programs, heads, head_dim,
            WINDOW=window, PER_CHANNEL=x_taps.dim() == 3,
            PARTS=max(1, _NUMBERS // channels), CHANNELS=channels, num_warps=_WARPS,
        )  # fmt: skip
    return dx_taps, dy_taps
