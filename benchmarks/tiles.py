"""Which tile sizes are fastest on this GPU: `python benchmarks/tiles.py`.

Times each kernel at the first shape of `kvshift bench` with every choice of rows and channels (or heads) in a
tile, warps, and tiles that a program of a backward adds up. What wins here goes into the constants of
`kernels/shift_alone.py` and `kernels/shift_rotary.py`; a user never tunes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
import triton

from kvshift.bench.bandwidth import measure_bandwidth
from kvshift.bench.shapes import SHAPES, Case
from kvshift.kernels import shift_alone, shift_rotary

Choice = dict[str, int]
OPERATORS = torch.ops.kvshift


def choices(names: dict[str, tuple[int, ...]], backward: bool) -> Iterator[Choice]:
    most = (4, 8, 16, 32) if backward else (16,)
    for values in itertools.product(*names.values(), (2, 4, 8), most):
        choice = dict(zip((*names, "_WARPS", "_MOST_BLOCKS"), values, strict=True))
        elements = choice["_ROWS"] * choice.get("_CHANNELS", 128) // (32 * choice["_WARPS"])
        if 4 <= elements <= 64:  # of a tile, for a thread
            yield choice


def microseconds(call: Callable[[], object]) -> float:
    return 1000 * triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median")


def sweep(
    name: str,
    module: ModuleType,
    names: dict[str, tuple[int, ...]],
    call: Callable[[], object],
    floor: float,
    *,
    backward: bool,
) -> None:
    """Prints the best five choices and today's; `floor` in microseconds."""
    today = {each: getattr(module, each) for each in (*names, "_WARPS", "_MOST_BLOCKS")}
    timed: list[tuple[float, Choice]] = [(microseconds(call), today)]
    for choice in choices(names, backward):
        for constant, value in choice.items():
            setattr(module, constant, value)
        try:
            timed.append((microseconds(call), choice))
        except Exception as error:  # too many registers, say
            print(f"  {choice}: {type(error).__name__}")
    for constant, value in today.items():
        setattr(module, constant, value)
    print(f"\n{name}: floor {floor:.1f} µs; today {timed[0][0]:.1f} µs, {floor / timed[0][0]:.0%} of copy")
    for time, choice in sorted(timed[1:], key=lambda each: each[0])[:5]:
        short = ", ".join(f"{key.strip('_').lower()} {value}" for key, value in choice.items())
        print(f"  {time:7.1f} µs  {floor / time:4.0%}  {short}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, default=0, help="which of kvshift.bench.shapes.SHAPES")
    chosen = parser.parse_args()
    device, shape = torch.device("cuda"), SHAPES[chosen.shape]
    rate = measure_bandwidth(device, buffer_bytes=2**30).bytes_per_second.median
    case = Case.random(shape, torch.bfloat16, device, seed=0)
    q, k, v, k_taps, v_taps = (x.detach() for x in (case.q, case.k, case.v, case.k_taps, case.v_taps))
    dq, dk, dv = case.gradients
    of_q, of_k = q.numel() * 2, k.numel() * 2
    print(f"{torch.cuda.get_device_name()}, {shape.name}, copy {rate / 1e12:.2f} TB/s")

    def floor(count: int) -> float:
        return count / rate * 1e6

    rows = (4, 8, 16, 32)
    alone = {"_ROWS": rows, "_CHANNELS": (128, 256, 512)}
    rotary = {"_ROWS": rows, "_HEADS": (1, 2, 4, 8)}
    shift = (k, k_taps, v, v_taps, case.starts, None, None)
    turn = (k, v, k_taps, v_taps, case.cos, case.sin, None, None, case.starts, None, None, 0.0, False)
    sweep("shift", shift_alone, alone, lambda: OPERATORS.shift(*shift), floor(4 * of_k), backward=False)
    sweep(
        "shift, backward",
        shift_alone,
        alone,
        lambda: OPERATORS.shift_backward(dk, k, k_taps, dv, v, v_taps, *shift[4:]),
        floor(6 * of_k),
        backward=True,
    )
    sweep(
        "shift + rotary",
        shift_rotary,
        rotary,
        lambda: OPERATORS.shift_rotary(q, *turn),
        floor(2 * of_q + 4 * of_k),
        backward=False,
    )
    sweep(
        "shift + rotary, backward",
        shift_rotary,
        rotary,
        lambda: OPERATORS.shift_rotary_backward(dq, dk, dv, None, *turn),
        floor(2 * of_q + 6 * of_k),
        backward=True,
    )


if __name__ == "__main__":
    main()
