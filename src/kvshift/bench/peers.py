"""Who else computes what our operators do. Each is optional, and checked before it is timed.

A comment says what a peer does of what ours does. All get keys and values: a peer for one tensor is called
twice. Where a peer has weights per channel, it gets our taps, repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvshift.bench import formulas
from kvshift.bench.contenders import (
    DECODE,
    NORM_LEAVES,
    NORM_ROTARY,
    ROTARY,
    ROTARY_LEAVES,
    SHIFT,
    SHIFT_LEAVES,
    Call,
    Contender,
    Results,
    decode_by,
    exact_norm_rotary,
    exact_rotary,
    exact_shift,
    leaves_of,
)
from kvshift.bench.formulas import compiled
from kvshift.bench.shapes import Case

PACKAGES = ("flash-linear-attention", "fla-core", "causal-conv1d", "liger-kernel", "forgetting-transformer")
"""Their versions are recorded where they are installed."""


# --- shift -----------------------------------------------------------------------------------------------


def _formula_shift(case: Case) -> Call:
    """The same work: the definition, operation by operation."""
    return Call(lambda: exact_shift(case), leaves_of(case, SHIFT_LEAVES))


def _compiled_shift(case: Case) -> Call:
    """The same work: the definition as torch.compile fuses it."""
    run = compiled(formulas.shift)
    return Call(
        lambda: run(case.k, case.v, case.k_taps, case.v_taps, case.starts), leaves_of(case, SHIFT_LEAVES)
    )


def _short_convolution(case: Case) -> Call:
    """The same work: a depthwise causal convolution of width 2 with weights for each channel."""
    from fla.modules import ShortConvolution

    channels = case.k[0, 0].numel()
    convolutions = []
    for taps in (case.k_taps, case.v_taps):
        made = ShortConvolution(
            hidden_size=channels,
            kernel_size=2,
            bias=False,
            activation=None,
            device=taps.device,
            dtype=torch.float32,
        )
        with torch.no_grad():
            made.weight.copy_(_a_channel(taps, case).unsqueeze(1))
        convolutions.append(made)
    first, second = convolutions
    ends = _ends_of_sequences(case)

    def run() -> Results:
        return (
            _as_rows(first(_as_channels(case.k, ends), cu_seqlens=ends)[0], case.k),
            _as_rows(second(_as_channels(case.v, ends), cu_seqlens=ends)[0], case.v),
        )

    leaves = {"k": case.k, "v": case.v, "k_channels": first.weight, "v_channels": second.weight}
    # With sequences of several lengths it asks the device how many blocks there are.
    return Call(run, leaves, recordable=ends is None)


def _causal_conv1d(case: Case) -> Call:
    """The same work: a depthwise causal convolution of width 2 in CUDA, with weights for each channel."""
    from causal_conv1d import causal_conv1d_fn

    weights = [_a_channel(taps, case).contiguous().requires_grad_() for taps in (case.k_taps, case.v_taps)]
    numbers = None if case.starts is None else case.starts.cumsum(1, dtype=torch.int32)

    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        by_channel = x.flatten(2).transpose(1, 2)
        made = causal_conv1d_fn(by_channel, weight, bias=None, seq_idx=numbers, activation=None)
        return _as_rows(made.transpose(1, 2), x)

    leaves = {"k": case.k, "v": case.v, "k_channels": weights[0], "v_channels": weights[1]}
    return Call(lambda: (convolved(case.k, weights[0]), convolved(case.v, weights[1])), leaves)


def _token_shift(case: Case) -> Call:
    """Less work: x[t - 1] - x[t], without taps and so without their gradient."""
    from fla.modules.token_shift import token_shift

    ends = _ends_of_sequences(case)

    def moved(x: Tensor) -> Tensor:
        made: Any = token_shift(_as_channels(x, ends), ends)
        return _as_rows(made[0] if isinstance(made, tuple) else made, x)

    return Call(lambda: (moved(case.k), moved(case.v)), leaves_of(case, ("k", "v")), recordable=ends is None)


def _forgetting_token_shift(case: Case) -> Call:
    """The same work, with weights a token and head, which are 1/128 of the rows and read and written too."""
    from forgetting_transformer.model.forgetting_transformer.token_shift import token_shift

    def weights(taps: Tensor) -> list[Tensor]:
        size = (*case.k.shape[:2], 1)
        current, previous = (taps.detach()[:, column].repeat(size) for column in (0, 1))
        if case.starts is not None:
            previous = previous.masked_fill(case.starts[..., None], 0)
        return [previous.requires_grad_(), current.requires_grad_()]

    of_k, of_v = weights(case.k_taps), weights(case.v_taps)
    leaves = {"k": case.k, "v": case.v} | {
        f"{name}_{place}": weight
        for name, made in (("k", of_k), ("v", of_v))
        for place, weight in zip(("previous", "current"), made, strict=True)
    }
    return Call(lambda: (token_shift(case.k, *of_k), token_shift(case.v, *of_v)), leaves)


def _a_channel(taps: Tensor, case: Case) -> Tensor:
    """`(channels, 2)`: the taps of each channel, the previous token's first, as convolutions have them."""
    return taps.detach().flip(1).repeat_interleave(case.k.shape[3], dim=0)


def _ends_of_sequences(case: Case) -> Tensor | None:
    """Where each sequence of all rows in line begins, and the end of the last; None if it is not packed."""
    if case.starts is None:
        return None
    begins = case.starts.flatten().nonzero().flatten()
    return torch.cat((begins, begins.new_tensor([case.starts.numel()])))


def _as_channels(x: Tensor, ends: Tensor | None) -> Tensor:
    """`(batch, time, channels)`; all sequences in one row if it is packed."""
    channels = x.flatten(2)
    return channels if ends is None else channels.reshape(1, -1, channels.shape[-1])


def _as_rows(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(like.shape)


SHIFT.contenders.extend(
    [
        Contender("formula", _formula_shift, needs_gpu=False),
        Contender("formula, compiled", _compiled_shift, needs_gpu=False, slow=True),
        Contender("fla ShortConvolution", _short_convolution),
        Contender("causal-conv1d", _causal_conv1d),
        Contender("forgetting token_shift", _forgetting_token_shift),
        Contender("fla token_shift", _token_shift, "less", taps=(-1.0, 1.0)),
    ]
)


# --- shift + rotary --------------------------------------------------------------------------------------


def _formula_rotary(case: Case) -> Call:
    """The same work: the definition and Hugging Face's rotary embedding."""
    return Call(lambda: exact_rotary(case), leaves_of(case, ROTARY_LEAVES))


def _compiled_rotary(case: Case) -> Call:
    """The same work: both in one compiled function."""
    run = compiled(formulas.shift_rotary)
    return Call(
        lambda: run(case.q, case.k, case.v, case.k_taps, case.v_taps, case.cos, case.sin, case.starts),
        leaves_of(case, ROTARY_LEAVES),
    )


def _separate(rotate: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Case], Call]:
    """The same work in two steps: our shift, then somebody's rotary embedding."""

    def prepare(case: Case) -> Call:
        from kvshift.kernels.shift_alone import shift

        def run() -> Results:
            k, v = shift(case.k, case.k_taps, case.v, case.v_taps, starts=case.starts)
            return *rotate(case.q, k, case.cos, case.sin), v

        return Call(run, leaves_of(case, ROTARY_LEAVES))

    return prepare


def _compiled_rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = compiled(formulas.rotated)(q, k, cos, sin)
    return made


def _liger(case: Case) -> Call:
    """The same work in two steps: our shift, then Liger's rotary embedding, which overwrites its inputs."""
    from liger_kernel.ops.rope import LigerRopeFunction

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)[:2]
        return q.transpose(1, 2), k.transpose(1, 2)

    return _separate(rotate)(case)


ROTARY.contenders.extend(
    [
        Contender("formula", _formula_rotary),
        Contender("formula, compiled", _compiled_rotary, slow=True),
        Contender("shift, HF rotary", _separate(formulas.rotated)),
        Contender("shift, HF rotary compiled", _separate(_compiled_rotated), slow=True),
        Contender("shift, Liger rotary", _liger),
    ]
)


# --- shift + norm + rotary -------------------------------------------------------------------------------


def _formula_norm_rotary(case: Case) -> Call:
    """The same work: the definition, Qwen3's norm and Hugging Face's rotary embedding."""
    return Call(lambda: exact_norm_rotary(case), leaves_of(case, NORM_LEAVES))


def _compiled_norm_rotary(case: Case) -> Call:
    """The same work: all in one compiled function."""
    run = compiled(formulas.shift_norm_rotary)
    return Call(
        lambda: run(
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
        ),
        leaves_of(case, NORM_LEAVES),
    )


NORM_ROTARY.contenders.extend(
    [
        Contender("formula", _formula_norm_rotary),
        Contender("formula, compiled", _compiled_norm_rotary, slow=True),
    ]
)

# --- decode ----------------------------------------------------------------------------------------------

DECODE.contenders.extend(  # the same work, operation by operation and in one compiled function
    [
        Contender("formula", lambda case: decode_by(formulas.decode, case)),
        Contender("formula, compiled", lambda case: decode_by(compiled(formulas.decode), case), slow=True),
    ]
)

OPERATORS = (SHIFT, ROTARY, NORM_ROTARY, DECODE)
