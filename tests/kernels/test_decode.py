from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvshift.errors import UsageError
from kvshift.shift import shift as definition

pytest.importorskip("triton", reason="Triton is not installed")
from kernel_checks import (
    HEAD_DIMS,
    ON_GPU,
    allowed,
    angles,
    in_parts,
    random_examples,
    relative_error,
    rotated,
    rows,
)

from kvshift.kernels.decode import MOST_TOKENS, decode

LENGTH = 24


@in_parts
@random_examples(25, on_gpu=20)
@given(
    batch=st.integers(1, 3),
    calls=st.lists(st.sampled_from([1, 1, 1, 2, 3, 5]), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3 if ON_GPU else 2),
    group=st.integers(1, 3),
    head_dim=st.sampled_from(HEAD_DIMS),
    rotary=st.sampled_from([1.0, 0.5]),
    interleaved=st.booleans(),
    norm=st.booleans(),
    shifted=st.sampled_from(["both", "keys", "values", "nothing"]),
    window=st.integers(2, 4),
    per_channel=st.booleans(),
    starts=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_calls_one_after_the_other_are_the_whole_sequence(
    device: str, part, batch, calls, kv_heads, group, head_dim, rotary, interleaved, norm, shifted,
    window, per_channel, starts, dtype, seed,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    time, size = sum(calls), int(rotary * head_dim)
    q, k, v = (
        rows(batch, time, heads, head_dim, True, device) for heads in (kv_heads * group, kv_heads, kv_heads)
    )
    shape = (kv_heads, head_dim, window) if per_channel else (kv_heads, window)
    k_taps, v_taps = (
        torch.randn(shape, device=device) if shifted in ("both", which) else None
        for which in ("keys", "values")
    )
    q_norm, k_norm = (torch.randn(head_dim, device=device) if norm else None for _ in range(2))
    angle = angles(batch, time, size, interleaved=interleaved, device=device)
    begins = torch.rand(batch, time, device=device) < 0.3 if starts else None

    def in_type(x: Tensor, to: torch.dtype) -> Tensor:
        return x.to(dtype).to(to)

    def whole(to: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        typed = [in_type(x, to) for x in (q, k, v)]
        cos, sin = in_type(angle.cos(), to), in_type(angle.sin(), to)
        states = [None, None]
        if k_taps is not None:
            typed[1], states[0] = definition(typed[1], k_taps, starts=begins)
        if v_taps is not None:
            typed[2], states[1] = definition(typed[2], v_taps, starts=begins)
        turned = [
            rotated(x, weight, cos, sin, eps=1e-5, interleaved=interleaved)
            for x, weight in ((typed[0], q_norm), (typed[1], k_norm))
        ]
        return [*turned, typed[2]], states

    caches = [
        torch.full((batch, kv_heads, LENGTH, head_dim), float("nan"), dtype=dtype, device=device)
        for _ in "kv"
    ]
    states = [
        None
        if taps is None
        else torch.zeros(batch, window - 1, kv_heads, head_dim, dtype=dtype, device=device)
        for taps in (k_taps, v_taps)
    ]
    queries, done = [], 0
    for new in calls:
        part = slice(done, done + new)
        queries.append(
            decode(
                *(in_type(x, dtype)[:, part] for x in (q, k, v)), k_taps, v_taps,
                in_type(angle.cos(), dtype)[:, part], in_type(angle.sin(), dtype)[:, part],
                place=torch.tensor([2 + done], device=device), k_state=states[0], v_state=states[1],
                k_cache=caches[0], v_cache=caches[1], q_norm=q_norm, k_norm=k_norm, eps=1e-5,
                interleaved=interleaved, starts=None if begins is None else begins[:, part].contiguous(),
            )
        )  # fmt: skip
        done += new

    (exact, after), (rough, _) = whole(torch.float64), whole(dtype)
    written = [cache[:, :, 2 : 2 + time].transpose(1, 2) for cache in caches]
    for mine, right, typed in zip((torch.cat(queries, 1), *written), exact, rough, strict=True):
        assert relative_error(mine, right) <= allowed(dtype, relative_error(typed, right))
    for mine, right in zip(states, after, strict=True):
        assert (mine is None) == (right is None)
        assert mine is None or torch.equal(mine.double(), right)
    for cache in caches:  # nothing beside the new tokens' places was touched
        assert cache[:, :, :2].isnan().all()
        assert cache[:, :, 2 + time :].isnan().all()


@pytest.mark.parametrize("begins", [[0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
def test_a_document_that_ended_leaves_nothing_in_the_state(device: str, begins: list[int]) -> None:
    k, v = (torch.randn(1, 3, 2, 32, device=device) for _ in range(2))
    taps = [torch.randn(2, 4, device=device) for _ in range(2)]
    angle = angles(1, 3, 32, interleaved=False, device=device)
    starts = torch.tensor([begins], dtype=torch.bool, device=device)
    states = [torch.randn(1, 3, 2, 32, device=device) for _ in range(2)]
    right = [
        definition(x, each, starts=starts, state=state)[1]
        for x, each, state in zip((k, v), taps, states, strict=True)
    ]
    caches = [torch.zeros(1, 2, LENGTH, 32, device=device) for _ in range(2)]
    decode(
        k, k, v, *taps, angle.cos(), angle.sin(), place=torch.tensor([0], device=device), k_state=states[0],
        v_state=states[1], k_cache=caches[0], v_cache=caches[1], starts=starts,
    )  # fmt: skip
    assert all(map(torch.equal, states, right))


def example(device: str, time: int = 1) -> list:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, time, heads, 32, device=device) for heads in (4, 2, 2))
    taps = [torch.randn(2, 2, device=device) for _ in range(2)]
    angle = angles(1, time, 32, interleaved=False, device=device)
    states = [torch.randn(2, 1, 2, 32, device=device) for _ in range(2)]
    caches = [torch.zeros(2, 2, LENGTH, 32, device=device) for _ in range(2)]
    place = torch.tensor([3], device=device)
    return [q, k, v, *taps, angle.cos(), angle.sin(), place, *states, *caches, None, None, None, 0.0, False]


def test_the_operator_keeps_torchs_rules(device: str) -> None:
    torch.library.opcheck(torch.ops.kvshift.decode.default, tuple(example(device)))


def test_it_compiles_as_one_graph(device: str) -> None:
    def step(*inputs) -> Tensor:
        return torch.ops.kvshift.decode(*inputs) + 1

    plain, compiled = example(device), example(device)
    right = step(*plain)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    torch.testing.assert_close(found, right)
    for mine, other in zip(compiled[8:12], plain[8:12], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
def test_a_cuda_graph_holds_it(device: str) -> None:
    replayed, right = example(device), example(device)
    torch.ops.kvshift.decode(*example(device))  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.kvshift.decode(*replayed)
    for _ in range(3):
        graph.replay()
        expected = torch.ops.kvshift.decode(*right)
        torch.testing.assert_close(out, expected)
        for inputs in (replayed, right):
            inputs[7] += 1
            inputs[1].mul_(0.5)
    for mine, other in zip(replayed[8:12], right[8:12], strict=True):
        assert torch.equal(mine, other)


def keywords(inputs: list) -> dict:
    names = ("place", "k_state", "v_state", "k_cache", "v_cache")
    return dict(zip(names, inputs[7:12], strict=True))


def test_a_gradient_is_refused(device: str) -> None:
    inputs = example(device)
    inputs[3].requires_grad_()
    with pytest.raises(UsageError, match="no gradient"):
        decode(*inputs[:7], **keywords(inputs))


def test_too_many_tokens_are_refused(device: str) -> None:
    inputs = example(device, MOST_TOKENS + 1)
    with pytest.raises(UsageError, match=f"at most {MOST_TOKENS} new tokens at once; got {MOST_TOKENS + 1}"):
        decode(*inputs[:7], **keywords(inputs))
