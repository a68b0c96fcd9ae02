"""Which tile sizes are fastest on this GPU: `python benchmarks/tiles.py`.

Times each kernel at the first shape of `kvshift bench` with every choice of rows and channels (or heads) in a
tile, warps, and tiles that a program of a backward adds up. What wins here goes into the constants of
`kernels/shift_alone.py` and `kernels/shift_rotary.py`; a user never tunes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from kvshift.bench.bandwidth import measure_bandwidth
from kvshift.bench.shapes import SHAPES, Case
from kvshift.kernels import shift_alone, shift_rotary
from kvshift.kernels.rows import Tile

Choice = tuple[Tile, int]
OPERATORS = torch.ops.kvshift
ROWS, WARPS, BLOCKS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8), (4, 8, 16, 32)
CHANNELS, HEADS, HEAD_DIM = (64, 128, 256, 512, 1024, 2048), (1, 2, 4, 8, 16), 128


def choices(across: tuple[int, ...], backward: bool) -> Iterator[Choice]:
    for rows, wide, warps in itertools.product(ROWS, across, WARPS):
        channels = wide if across == CHANNELS else HEAD_DIM
        if 4 <= rows * channels // (32 * warps) <= 64:  # of a tile, for a thread
            for blocks in BLOCKS if backward else BLOCKS[:1]:
                yield Tile(rows, wide, warps), blocks


def microseconds(call: Callable[[], object]) -> float:
    return 1000 * triton.testing.do_bench_cudagraph(call, rep=10, return_mode="median")  # without the host


def sweep(
    name: str,
    module: Any,
    tile: str,
    across: tuple[int, ...],
    call: Callable[[], object],
    floor: float,
    only: str,
) -> None:
    """Prints the best five choices and today's; `floor` in microseconds."""
    if only not in name:
        return
    backward = tile == "_BACKWARD"  # where programs add up
    today = getattr(module, tile), module._MOST_BLOCKS
    timed: list[tuple[float, Choice]] = []
    for choice in (today, *choices(across, backward)):
        setattr(module, tile, choice[0])
        module._MOST_BLOCKS = choice[1]
        try:
            timed.append((microseconds(call), choice))
        except Exception as error:  # too many registers, say
            print(f"  {choice}: {type(error).__name__}")
    setattr(module, tile, today[0])
    module._MOST_BLOCKS = today[1]
    print(f"\n{name}: floor {floor:.1f} µs; today {timed[0][0]:.1f} µs, {floor / timed[0][0]:.0%} of copy")
    for time, (best, blocks) in sorted(timed[1:], key=lambda each: each[0])[:5]:
        most = f", at most {blocks} blocks" if backward else ""
        print(f"  {time:7.1f} µs  {floor / time:4.0%}  {best}{most}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, default=0, help="which of kvshift.bench.shapes.SHAPES")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    chosen = parser.parse_args()
    device, shape = torch.device("cuda"), SHAPES[chosen.shape]
    rate = measure_bandwidth(device, buffer_bytes=2**30).bytes_per_second.median
    case = Case.random(shape, torch.bfloat16, device, seed=0)
    q, k, v, k_taps, v_taps = (x.detach() for x in (case.q, case.k, case.v, case.k_taps, case.v_taps))
    dq, dk, dv = case.gradients
    of_q, of_k = q.numel() * 2, k.numel() * 2
    no_q, no_kv = q.new_empty(*q.shape[:2], 0, HEAD_DIM), k.new_empty(*k.shape[:2], 0, HEAD_DIM)
    print(f"{torch.cuda.get_device_name()}, {shape.name}, copy {rate / 1e12:.2f} TB/s")

    shift = (k, k_taps, v, v_taps, case.starts, None, None)
    turn = (k, v, k_taps, v_taps, case.cos, case.sin, None, None, case.starts, None, None, 0.0, False)
    back = (dk, k, k_taps, dv, v, v_taps, *shift[4:])
    for name, module, tile, across, call, count in (
        ("shift", shift_alone, "_FORWARD", CHANNELS, lambda: OPERATORS.shift(*shift), 4 * of_k),
        (
            "shift, backward",
            shift_alone,
            "_BACKWARD",
            CHANNELS,
            lambda: OPERATORS.shift_backward(*back),
            6 * of_k,
        ),
        (
            "shift + rotary",
            shift_rotary,
            "_FORWARD",
            HEADS,
            lambda: OPERATORS.shift_rotary(q, *turn),
            2 * of_q + 4 * of_k,
        ),
        (
            "shift + rotary, backward, queries",
            shift_rotary,
            "_QUERIES_BACKWARD",
            HEADS,
            lambda: OPERATORS.shift_rotary_backward(
                dq, no_kv, no_kv, None, no_kv, no_kv, None, None, *turn[4:]
            ),
            2 * of_q,
        ),
        (
            "shift + rotary, backward, keys and values",
            shift_rotary,
            "_BACKWARD",
            HEADS,
            lambda: OPERATORS.shift_rotary_backward(no_q, dk, dv, None, *turn),
            6 * of_k,
        ),
    ):
        sweep(name, module, tile, across, call, count / rate * 1e6, chosen.only)


if __name__ == "__main__":
    main()
