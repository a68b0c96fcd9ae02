"""Compiles every kernel for a GPU that need not be here, and says so. Run without the interpreter."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvshift.kernels import decode, rotary_backward, rotary_kernels, shift_alone, shift_rotary, sums

POINTERS = {"taps": "*fp32", "sums": "*fp32", "starts": "*u8", "place": "*i64"}


def compile_for(target: GPUTarget, kernel: Any, values: dict[str, Any]) -> None:
    """`values` are compiled in: constants, and numbers that happen to be 1, which Triton treats as such."""
    signature = {}
    for name in kernel.arg_names:
        if name in values:
            signature[name] = "constexpr"
        elif name.startswith("p_"):
            signature[name] = next((kind for part, kind in POINTERS.items() if part in name), "*bf16")
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
    constants = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=target)
    sys.stdout.write(f"{target.arch} {kernel.fn.__module__} {kernel.fn.__name__} {values}\n")


def main() -> None:
    target = GPUTarget("cuda", 90, 32)
    for window, full in itertools.product((2, 4), (False, True)):
        shared = {"WINDOW": window, "PER_CHANNEL": full, "STARTS": full}
        turn = {"NORM": full, "INTERLEAVED": full, "ROTARY": 64, "PAIRS": 32}
        both = {"SHIFT_K": True, "SHIFT_V": full}
        ones = {"time": 1} if full else {}
        tile = {**shared, **ones, "STATE": full}
        forward, backward = (
            {**tile, "ROWS": of.rows, "CHANNELS": of.across}
            for of in (shift_alone._FORWARD, shift_alone._BACKWARD)
        )
        turned, of_queries, of_others = (
            {**turn, **ones, "ROWS": of.rows, "HEADS": of.across}
            for of in (shift_rotary._FORWARD, shift_rotary._QUERIES_BACKWARD, shift_rotary._BACKWARD)
        )
        heads = {"q_heads": 1, "kv_heads": 1} if full else {}
        blocks = {"blocks": 1, "heads": 1} if full else {}
        compile_for(target, shift_alone._forward_kernel, {**forward, **({"channels": 1} if full else {})})
        compile_for(target, shift_alone._backward_kernel, {**backward, **({"blocks": 1} if full else {})})
        compile_for(target, rotary_kernels.forward_kernel, {**tile, **turned, **both, **heads})
        compile_for(target, rotary_backward.queries_backward_kernel, {**of_queries, **blocks})
        compile_for(
            target, rotary_backward.keys_values_backward_kernel, {**tile, **of_others, **both, **blocks}
        )
        compile_for(target, decode._kernel, {**shared, **turn, **both, **ones, "ROWS": 1 if full else 2})
        added = {"WINDOW": window, "PER_CHANNEL": full, "PARTS": 64, "CHANNELS": 128}
        compile_for(target, sums._kernel, {**added, **({"programs": 1, "heads": 1} if full else {})})


if __name__ == "__main__":
    main()
