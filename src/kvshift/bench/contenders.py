"""What is timed against what: our operators here, everybody else's in `peers.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kvshift.bench import formulas
from kvshift.bench.shapes import Case, Shape
from kvshift.kernels import dispatch

Results = tuple[Tensor, ...]
OURS = "kvshift"
_CACHE_LENGTH = 64


@dataclass(frozen=True)
class Call:
    """One call on one case's tensors, ready to be repeated."""

    run: Callable[[], Results]
    leaves: Mapping[str, Tensor]
    """Gradients are wanted of these; those named as in `Case` are compared with the exact ones."""
    recordable: bool = True
    """False: it waits for the device, which a CUDA graph cannot hold."""

    def with_gradients(self, gradients: Results) -> Callable[[], Results]:
        """A call that also runs backward, and returns the results and the gradients of the leaves."""
        leaves = list(self.leaves.values())

        def run() -> Results:
            made = self.run()
            return *made, *torch.autograd.grad(made, leaves, gradients)

        return run


@dataclass(frozen=True)
class Contender:
    """One way of computing an operator."""

    name: str
    prepare: Callable[[Case], Call]
    """Raises ImportError if its package is not installed."""
    work: Literal["ours", "same", "less"] = "same"
    """How much it computes of what ours does."""
    needs_gpu: bool = True
    taps: tuple[float, float] | None = None
    """Its result is the definition's for these taps, whatever the case says; None: for the case's."""
    slow: bool = False
    """Takes long to compile or tune: left out of a quick bench on a CPU."""


@dataclass(frozen=True)
class Operator:
    """What is computed, and the fewest bytes that takes (docs/guides/kernels.md, "What moves")."""

    name: str
    results: slice
    """Which of the case's three gradients belong to its results."""
    leaves: tuple[str, ...]
    exact: Callable[[Case], Results]
    numbers: Callable[[Shape], tuple[int, int]]
    """Numbers read and written by forward, and by backward, in the rows' dtype."""
    contenders: list[Contender] = field(default_factory=list)

    def floor_bytes(self, shape: Shape, dtype: torch.dtype, *, backward: bool) -> int:
        """The fewest bytes of a call."""
        forward, back = self.numbers(shape)
        return (forward + (back if backward else 0)) * dtype.itemsize


def _shift_numbers(shape: Shape) -> tuple[int, int]:
    e = shape.numbers(shape.kv_heads)
    return 4 * e, 6 * e


def _rotary_numbers(shape: Shape) -> tuple[int, int]:
    q, e = shape.numbers(shape.query_heads), shape.numbers(shape.kv_heads)
    return 2 * q + 4 * e, 2 * q + 6 * e


def _norm_numbers(shape: Shape) -> tuple[int, int]:
    forward, backward = _rotary_numbers(shape)
    return forward, backward + shape.numbers(shape.query_heads)


def _decode_numbers(shape: Shape) -> tuple[int, int]:
    q, e = shape.numbers(shape.query_heads), shape.numbers(shape.kv_heads)
    return 2 * q + 8 * e, 0  # a state is as large as one token's rows


def exact_shift(case: Case) -> Results:
    return formulas.shift(case.k, case.v, case.k_taps, case.v_taps, case.starts)


def exact_rotary(case: Case) -> Results:
    return formulas.shift_rotary(
        case.q, case.k, case.v, case.k_taps, case.v_taps, case.cos, case.sin, case.starts
    )


def exact_norm_rotary(case: Case) -> Results:
    return formulas.shift_norm_rotary(
        case.q,
        case.k,
        case.v,
        case.k_taps,
        case.v_taps,
        case.q_norm,
        case.k_norm,
        case.cos,
        case.sin,
        case.starts,
    )


SHIFT_LEAVES = ("k", "v", "k_taps", "v_taps")
ROTARY_LEAVES = ("q", *SHIFT_LEAVES)
NORM_LEAVES = (*ROTARY_LEAVES, "q_norm", "k_norm")


def leaves_of(case: Case, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: case.leaves[name] for name in names}


def _our_shift(case: Case) -> Call:
    def run() -> Results:
        if case.k.is_cuda:
            from kvshift.kernels.shift_alone import shift

            return shift(case.k, case.k_taps, case.v, case.v_taps, starts=case.starts)
        # What a model's shift takes on this device.
        return dispatch.kv_shift(case.k, case.v, case.k_taps, case.v_taps, starts=case.starts)[:2]

    return Call(run, leaves_of(case, SHIFT_LEAVES))


def _our_rotary(case: Case) -> Call:
    from kvshift.kernels.shift_rotary import shift_rotary

    def run() -> Results:
        return shift_rotary(
            case.q, case.k, case.v, case.k_taps, case.v_taps, case.cos, case.sin, starts=case.starts
        )

    return Call(run, leaves_of(case, ROTARY_LEAVES))


def _our_norm_rotary(case: Case) -> Call:
    from kvshift.kernels.shift_rotary import shift_rotary

    def run() -> Results:
        return shift_rotary(
            case.q,
            case.k,
            case.v,
            case.k_taps,
            case.v_taps,
            case.cos,
            case.sin,
            q_norm=case.q_norm,
            k_norm=case.k_norm,
            eps=formulas.EPSILON,
            starts=case.starts,
        )

    return Call(run, leaves_of(case, NORM_LEAVES))


def decode_by(step: Callable[..., Tensor], case: Case) -> Call:
    """A step of decoding on caches and states of its own; its results are all it has written."""
    batch, _, heads, head_dim = case.k.shape
    caches = [case.k.new_zeros(batch, heads, _CACHE_LENGTH, head_dim) for _ in range(2)]
    states = [x.detach().clone() for x in case.gradients[1:]]  # any raw rows
    place = torch.full((1,), _CACHE_LENGTH // 2, device=case.k.device)

    @torch.no_grad()
    def run() -> Results:
        q = step(
            case.q, case.k, case.v, case.k_taps, case.v_taps, case.cos, case.sin, place, *states, *caches
        )
        return q, *states, *caches

    return Call(run, {})


def exact_decode(case: Case) -> Results:
    return decode_by(formulas.decode, case).run()


def _our_decode(case: Case) -> Call:
    from kvshift.kernels.decode import decode

    def step(*given: Tensor) -> Tensor:
        q, k, v, k_taps, v_taps, cos, sin, place, k_state, v_state, k_cache, v_cache = given
        return decode(
            q,
            k,
            v,
            k_taps,
            v_taps,
            cos,
            sin,
            place=place,
            k_state=k_state,
            v_state=v_state,
            k_cache=k_cache,
            v_cache=v_cache,
        )

    return decode_by(step, case)


SHIFT = Operator(
    "shift",
    slice(1, 3),
    SHIFT_LEAVES,
    exact_shift,
    _shift_numbers,
    [Contender(OURS, _our_shift, "ours", needs_gpu=False)],
)
ROTARY = Operator(
    "shift + rotary",
    slice(0, 3),
    ROTARY_LEAVES,
    exact_rotary,
    _rotary_numbers,
    [Contender(OURS, _our_rotary, "ours")],
)
NORM_ROTARY = Operator(
    "shift + norm + rotary",
    slice(0, 3),
    NORM_LEAVES,
    exact_norm_rotary,
    _norm_numbers,
    [Contender(OURS, _our_norm_rotary, "ours")],
)
DECODE = Operator(
    "decode",
    slice(0, 0),
    (),
    exact_decode,
    _decode_numbers,
    [Contender(OURS, _our_decode, "ours")],
)
