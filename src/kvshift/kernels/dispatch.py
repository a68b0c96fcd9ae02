"""Which path a shift takes: Triton's kernels, few operators on a CPU, or the definition."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kvshift.errors import UsageError
from kvshift.kernels import cpu, cpu_rotary
from kvshift.shift import definition
from kvshift.shift.definition import ShiftState

BACKENDS = ("auto", "triton", "cpu", "definition")
VARIABLE = "KVSHIFT_BACKEND"
_chosen = os.environ.get(VARIABLE, "auto")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs kernels on the CPU, slowly: for tests."""
HAS_TRITON = importlib.util.find_spec("triton") is not None
FASTEST = {"cpu": "cpu", "cuda": "triton" if torch.version.hip is None else "definition"}
"""What `auto` takes, by device; the definition elsewhere. On AMD's GPUs, which torch calls cuda as well,
nobody has run the kernels."""
_MOST_ROWS = 1024  # that a block reads past the end
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Inside, `backend` takes the place of what the variable KVSHIFT_BACKEND says.

    Raises:
        UsageError: there is no such backend.
    """
    global _chosen
    if backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    before, _chosen = _chosen, backend
    try:
        yield
    finally:
        _chosen = before


def shift(
    x: Tensor,
    weight: Tensor,
    *,
    starts: Tensor | None = None,
    state: Tensor | None = None,
    last: Tensor | None = None,
    keep_state: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`kvshift.shift.shift`, by the fastest path.

    Args:
        keep_state: whether the state for the next call is wanted; else None is returned for it.
        backend: `triton`, `cpu` or `definition` forces one; `auto` takes the fastest for the device
            (`FASTEST`), and says once, as a warning, if that should be Triton and cannot be. None: what the
            variable KVSHIFT_BACKEND says, or `auto`.

    Raises:
        UsageError: there is no such backend, or the forced one cannot do this.
    """
    path = _path(backend, x, weight, state)
    if path == "definition":
        shifted, after = definition.shift(x, weight, starts=starts, state=state, last=last)
        return shifted, after if keep_state else None
    if path == "cpu":
        shifted = cpu.shift(x, weight, starts)
    else:
        from kvshift.kernels.shift_alone import shift as launch

        shifted, _ = launch(x, weight, starts=starts, x_state=state)
    if not keep_state:
        return shifted, None
    return shifted, next_state(x, weight.shape[-1] - 1, starts, state, last)


def kv_shift(
    k: Tensor,
    v: Tensor,
    k_weight: Tensor | None,
    v_weight: Tensor | None,
    *,
    starts: Tensor | None = None,
    state: ShiftState | tuple[Tensor | None, ...] | None = None,
    last: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, ShiftState]:
    """`kvshift.shift.kv_shift`, by the fastest path; `backend` as for `shift`."""
    k_state, v_state = (None, None) if state is None else (state[0], state[1])
    definition.check("k", k, k_weight, starts, k_state)
    definition.check("v", v, v_weight, starts, v_state)
    if (
        k_weight is None
        or v_weight is None
        or not _alike(k, v, k_weight, v_weight, k_state, v_state)
        or _path(backend, k, k_weight, k_state) != "triton"
        or _path(backend, v, v_weight, v_state) != "triton"
    ):
        k_hat, v_hat = k, v
        if k_weight is not None:
            k_hat, k_state = shift(k, k_weight, starts=starts, state=k_state, last=last, backend=backend)
        if v_weight is not None:
            v_hat, v_state = shift(v, v_weight, starts=starts, state=v_state, last=last, backend=backend)
        return k_hat, v_hat, ShiftState(k_state, v_state)
    from kvshift.kernels.shift_alone import shift as launch

    k_hat, v_hat = launch(k, k_weight, v, v_weight, starts=starts, x_state=k_state, y_state=v_state)
    back = k_weight.shape[-1] - 1
    k_state = next_state(k, back, starts, k_state, last)
    return k_hat, v_hat, ShiftState(k_state, next_state(v, back, starts, v_state, last))


def _alike(
    k: Tensor, v: Tensor, k_weight: Tensor, v_weight: Tensor, k_state: Tensor | None, v_state: Tensor | None
) -> bool:
    """Whether one launch can take both."""
    return (
        k.shape == v.shape
        and k.dtype == v.dtype
        and k_weight.shape == v_weight.shape
        and (k_state is None) == (v_state is None)
    )


def next_state(
    x: Tensor, back: int, starts: Tensor | None, state: Tensor | None, last: Tensor | None
) -> Tensor:
    """What `definition.shift` returns as state, without a copy of all of `x`."""
    if last is None and x.shape[1] >= back:  # nothing before the last rows can matter
        x, starts = x[:, -back:], None if starts is None else starts[:, -back:]
        if starts is None:
            return x
    if state is None:
        state = x.new_zeros(x.shape[0], back, *x.shape[2:])
    return definition.last_rows(torch.cat((state.to(x.dtype), x), dim=1), starts, last, back)


def fused_path(
    x: Tensor,
    taps: Sequence[Tensor],
    state: Sequence[Tensor],
    *,
    norms: bool = False,
    keeping_bits: bool = False,
) -> str | None:
    """By which path rows like `x` can go through `shift_rotary`: `triton`, which has `decode` too, or `cpu`.

    None where there is no such path, without a word: the shift alone, which runs then, says why.

    Args:
        norms: queries and keys are normed between shift and rotation.
        keeping_bits: what does not shift is to keep its last bits. Triton's rotation rounds once and changes
            them, so where it would be taken, the library rotates, unless the kernels were forced. Compiled,
            the library's own rounds otherwise as well. On a CPU, ours rounds as the library's does.
    """
    path = FASTEST.get(x.device.type) if _chosen == "auto" else _chosen
    why_not: Callable[[Tensor, Tensor, Tensor | None], str | None]
    if path == "triton":
        if keeping_bits and _chosen == "auto" and not torch.compiler.is_compiling():
            return None
        why_not = _why_not_triton
    elif path == "cpu" and not norms and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        why_not = _why_not_cpu
    else:
        return None
    each = [(weight, None) for weight in taps] + [(weight, rows) for weight in taps[:1] for rows in state]
    return path if all(why_not(x, weight, rows) is None for weight, rows in each) else None


def shift_rotary(path: str, *tensors: Any, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`kvshift.kernels.shift_rotary.shift_rotary` by what `fused_path` returned."""
    if path == "cpu":
        return cpu_rotary.shift_rotary(*tensors, **how)
    from kvshift.kernels.shift_rotary import shift_rotary as launch

    return launch(*tensors, **how)


def _path(backend: str | None, x: Tensor, weight: Tensor, state: Tensor | None) -> str:
    """`triton`, `cpu` or `definition`."""
    asked = _chosen if backend is None else backend
    if asked not in BACKENDS:
        named = VARIABLE if backend is None else "backend"
        raise UsageError(f"{named} is {asked!r}; expected one of {', '.join(BACKENDS)}.")
    path = asked
    if asked == "auto":
        path = FASTEST.get(x.device.type, "definition")
    if path == "definition":
        return path
    why_not = _why_not_triton(x, weight, state) if path == "triton" else _why_not_cpu(x, weight, state)
    if why_not is None:
        return path
    if asked == path:
        raise UsageError(f"The backend {path!r} was asked for, but {why_not}. Use 'auto'.")
    if path == "triton" and not torch.compiler.is_compiling():
        _warn(why_not)
    return "definition"


_ONLY_USUAL = "it knows no derivatives but the usual ones"


def _why_not_cpu(x: Tensor, weight: Tensor, state: Tensor | None) -> str | None:
    """What the few operators for a CPU cannot do of this, as half a sentence."""
    if not x.is_cpu:
        return f"the tensors are on {x.device}"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "a compiler makes more of the definition"
    if state is not None:
        return "it knows no state"
    if x.dtype != weight.dtype:
        return f"its rows of {x.dtype} would meet taps of {weight.dtype}"
    if type(x) is not Tensor or x.numel() == 0:
        return "it takes ordinary tensors that hold something"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _ONLY_USUAL
    return None


def _why_not_triton(x: Tensor, weight: Tensor, state: Tensor | None) -> str | None:
    """What Triton's kernels cannot do of this, as half a sentence."""
    if not (x.is_cuda or INTERPRETED):
        return f"its kernels need a CUDA GPU, and the tensors are on {x.device}"
    if not HAS_TRITON:
        return "Triton is not installed here"
    if x.dtype not in _DTYPES or weight.dtype != torch.float32:
        return f"its kernels know no rows of {x.dtype} with taps of {weight.dtype}"
    if not 2 <= weight.shape[-1] <= 4:
        return f"its kernels know windows of 2 to 4, not {weight.shape[-1]}"
    if x.shape[0] * x.shape[1] >= 2**31 - _MOST_ROWS:
        return f"{x.shape[0] * x.shape[1]:,} rows are too many for its kernels"
    if state is not None and state.requires_grad and torch.is_grad_enabled():
        return "no gradient would reach the state"
    if torch._C._are_functorch_transforms_active():  # which the compiler can answer, too
        return "transforms of torch.func do not know its kernels"
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return _ONLY_USUAL
    # The compiler's own code needs what a launch needs.
    return None if torch.compiler.is_compiling() else _failure_of_a_launch(x.device, x.dtype)


@cache
@torch.no_grad()
def _failure_of_a_launch(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels cannot be launched there, as half a sentence: no C compiler, say, or too old a GPU."""
    from kvshift.kernels.shift_alone import shift as launch

    try:
        launch(torch.ones(1, 2, 1, 8, device=device, dtype=dtype), torch.ones(1, 2, device=device))
    except torch.OutOfMemoryError:  # says nothing of the kernels, and must not be remembered
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"a first launch failed ({reason[:200]})"
    return None


@cache
def _warn(why: str) -> None:
    """Once for each reason."""
    warnings.warn(f"The shift runs without its kernels, and slower: {why}.", stacklevel=4)
