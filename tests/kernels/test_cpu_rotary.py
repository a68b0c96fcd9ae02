"""On a CPU, shift and rotation in one: the definition's and the library's, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, rows_of
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

from kvshift.kernels import cpu_rotary
from kvshift.kernels.cpu_rotary import shift_rotary
from kvshift.shift import definition

Rows = tuple[Tensor, Tensor, Tensor]


def defined(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_taps: Tensor | None,
    v_taps: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    starts: Tensor | None = None,
) -> Rows:
    """The definition, and the rotation as a sum over pairs of channels."""
    k, v, _ = definition.kv_shift(k, v, k_taps, v_taps, starts=starts)
    rotary = cos.shape[-1]
    place = torch.arange(rotary)
    partner = place ^ 1 if interleaved else (place + rotary // 2) % rotary
    sign = torch.where(place < partner, -1.0, 1.0).to(cos.dtype)

    def rotated(x: Tensor) -> Tensor:
        turning = x[..., :rotary] * cos[:, :, None] + sign * x[..., partner] * sin[:, :, None]
        return torch.cat((turning, x[..., rotary:]), dim=-1)

    return rotated(q), rotated(k), v


def angles(
    batch: int, time: int, rotary: int, interleaved: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    half = 6 * torch.rand(batch, time, rotary // 2, dtype=dtype)
    both = half.repeat_interleave(2, dim=-1) if interleaved else torch.cat((half, half), dim=-1)
    return both.cos(), both.sin()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 2),
    head_dim=st.sampled_from([2, 6, 7, 10, 32]),
    turn_all=st.booleans(),
    interleaved=st.booleans(),
    one_set_of_angles=st.booleans(),
    window=st.integers(2, 5),
    per_channel=st.booleans(),
    shifted=st.sampled_from(["k", "v", "kv"]),
    starts=st.sampled_from([None, 0.0, 0.3, 1.0]),
    layout=st.sampled_from(LAYOUTS),
    of_gradient=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31),
)
def test_rows_and_gradients_are_the_definitions(
    batch,
    time,
    kv_heads,
    groups,
    head_dim,
    turn_all,
    interleaved,
    one_set_of_angles,
    window,
    per_channel,
    shifted,
    starts,
    layout,
    of_gradient,
    seed,
) -> None:
    torch.manual_seed(seed)
    heads = (groups * kv_heads, kv_heads, kv_heads)
    raw = [rows_of(layout, batch, time, n, head_dim, torch.float64).requires_grad_() for n in heads]
    shape = (kv_heads, head_dim, window) if per_channel else (kv_heads, window)
    taps = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) if name in shifted else None
        for name in "kv"
    ]
    rotary = head_dim // 2 * 2 if turn_all else 2
    turn = angles(1 if one_set_of_angles else batch, time, rotary, interleaved, torch.float64)
    how = {
        "interleaved": interleaved,
        "starts": None if starts is None else torch.rand(batch, time) < starts,
    }
    gradient = [rows_of(of_gradient, batch, time, n, head_dim, torch.float64) for n in heads]
    learned = [x for x in (*raw, *taps) if x is not None]
    found, right = shift_rotary(*raw, *taps, *turn, **how), defined(*raw, *taps, *turn, **how)
    for mine, exact in zip(found, right, strict=True):
        torch.testing.assert_close(mine, exact)
    for mine, exact in zip(
        *(torch.autograd.grad(out, learned, gradient) for out in (found, right)), strict=True
    ):
        torch.testing.assert_close(mine, exact)


def case(head_dim: int = 6, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """What is learned, then angles, and starts: two sequences of seven."""
    torch.manual_seed(0)
    rows = [torch.randn(2, 7, n, head_dim, dtype=dtype, requires_grad=True) for n in (4, 2, 2)]
    taps = [torch.randn(2, 3, dtype=dtype, requires_grad=True) for _ in "kv"]
    turn = angles(2, 7, head_dim - head_dim % 4, False, dtype)
    return [*rows, *taps, *turn], torch.tensor([[1, 0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0, 0]]).bool()


def test_in_float32_the_error_is_that_of_float32() -> None:
    torch.manual_seed(0)
    narrow = [torch.randn(2, 257, n, 16) for n in (3, 3, 3)] + [torch.randn(3, 3) for _ in "kv"]
    narrow += angles(2, 257, 16, False, torch.float32)
    gradient = [torch.randn(2, 257, 3, 16) for _ in range(3)]
    starts = torch.rand(2, 257) < 0.05

    def run(function, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.to(dtype, copy=True).requires_grad_(i < 5) for i, x in enumerate(narrow)]
        out = function(*inputs, starts=starts)
        return *out, *torch.autograd.grad(out, inputs[:5], [x.to(dtype) for x in gradient])

    for mine, exact in zip(run(shift_rotary, torch.float32), run(defined, torch.float64), strict=True):
        assert (mine - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("library", [modeling_llama, modeling_cohere])
def test_without_a_shift_the_bits_are_the_librarys(library, head_dim: int) -> None:
    torch.manual_seed(0)
    interleaved = library is modeling_cohere
    q, k, v = (torch.randn(3, 65, n, head_dim) for n in (4, 2, 2))
    cos, sin = angles(3, 65, head_dim, interleaved, torch.float32)
    right = library.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    identity = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    for taps in ((identity, identity), (identity, None), (None, identity)):
        found = shift_rotary(q, k, v, *taps, cos, sin, interleaved=interleaved)
        for mine, exact in zip(found, (*right, v), strict=True):
            assert torch.equal(mine, exact)


def test_gradients_of_both_orders_are_the_numerical_ones() -> None:
    (*learned, cos, sin), starts = case()

    def run(*learned: Tensor) -> Rows:
        return shift_rotary(*learned, cos, sin, starts=starts)

    assert gradcheck(run, learned)
    assert gradgradcheck(run, learned)


def test_a_gradient_of_what_was_made_of_the_other_counts_once() -> None:
    """Differentiable gradients are those that are not, also where a tensor comes twice, or makes another."""
    (q, k, _, taps, _, cos, sin), starts = case()

    def run(q: Tensor, k: Tensor, taps: Tensor) -> Rows:
        return shift_rotary(q, k, k * k, taps, taps, cos, sin, starts=starts)

    learned = q, k, taps
    assert gradgradcheck(run, learned)
    first, again = (
        torch.autograd.grad(sum(out.pow(3).sum() for out in run(*learned)), learned, create_graph=further)
        for further in (False, True)
    )
    torch.testing.assert_close(again, first)


@pytest.mark.parametrize("way", ["is_grads_batched", "torch.vmap"])
def test_a_batch_of_gradients_is_one_after_the_other(way: str) -> None:
    (*learned, cos, sin), starts = case()
    out = torch.cat(shift_rotary(*learned, cos, sin, starts=starts), dim=2)
    gradients = torch.randn(4, *out.shape, dtype=out.dtype)

    def of(gradient: Tensor, **how: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, learned, gradient, retain_graph=True, **how)

    found = of(gradients, is_grads_batched=True) if way == "is_grads_batched" else torch.vmap(of)(gradients)
    for mine, exact in zip(found, map(torch.stack, zip(*map(of, gradients), strict=True)), strict=True):
        torch.testing.assert_close(mine, exact)
        assert not mine.requires_grad


def test_compiled_autograd_gives_the_same_gradients() -> None:
    """Also for other starts than those it was compiled with."""
    inputs, starts = case()

    def gradients(starts: Tensor) -> list[Tensor]:
        total = sum(out.pow(2).sum() for out in shift_rotary(*inputs, starts=starts))
        for x in inputs[:5]:
            x.grad = None
        total.backward()
        return [x.grad for x in inputs[:5]]

    torch._dynamo.reset()
    for each in (starts, starts.flip(1), torch.zeros_like(starts)):
        expected = gradients(each)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            found = gradients(each)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("learns", range(5))
def test_what_needs_no_gradient_gets_none(learns: int) -> None:
    inputs, starts = case()
    for i, x in enumerate(inputs):
        x.requires_grad_(i == learns)
    sum(map(torch.sum, shift_rotary(*inputs, starts=starts))).backward()
    assert [x.grad is not None for x in inputs] == [i == learns for i in range(7)]
    (exact,) = torch.autograd.grad(sum(map(torch.sum, defined(*inputs, starts=starts))), inputs[learns])
    torch.testing.assert_close(inputs[learns].grad, exact)


@pytest.mark.parametrize("window", [2, 4])
def test_nan_reaches_no_other_sequence(window: int) -> None:
    """Neither forward, from a row, nor backward, from a row's gradient."""
    torch.manual_seed(0)
    starts = torch.arange(9)[None] == 4
    turn = angles(1, 9, 6, False, torch.float32)
    taps = [torch.randn(2, window) for _ in "kv"]
    for foreign, own in ((slice(0, 4), slice(4, 9)), (slice(4, 9), slice(0, 4))):
        rows = [torch.randn(1, 9, 2, 6, requires_grad=True) for _ in "qkv"]
        gradient = [torch.randn(1, 9, 2, 6) for _ in "qkv"]
        clean = shift_rotary(*rows, *taps, *turn, starts=starts)
        clean = *clean, *torch.autograd.grad(clean, rows, gradient)
        with torch.no_grad():
            for x in (*rows, *gradient):
                x[:, foreign] = torch.nan
        out = shift_rotary(*rows, *taps, *turn, starts=starts)
        for mine, exact in zip((*out, *torch.autograd.grad(out, rows, gradient)), clean, strict=True):
            assert mine[:, foreign].isnan().all()
            assert torch.equal(mine[:, own], exact[:, own])


@pytest.mark.parametrize("head_dim", [6, 34])
def test_angles_and_starts_that_changed_are_found_again(head_dim: int) -> None:
    inputs, starts = case(head_dim)

    def check() -> None:
        found, right = shift_rotary(*inputs, starts=starts), defined(*inputs, starts=starts)
        for mine, exact in zip(found, right, strict=True):
            torch.testing.assert_close(mine, exact)

    with torch.inference_mode():
        check()
    check()
    sum(map(torch.sum, shift_rotary(*inputs, starts=starts))).backward()  # nothing of inference mode is kept
    inputs[-1].neg_()
    check()
    inputs[-1].data.mul_(0.5)  # which its version counter does not count
    check()
    inputs[-2].neg_()
    starts[0, 2] = True
    check()
    with torch.inference_mode():
        inputs[-2:] = [x.clone() for x in inputs[-2:]]
        check()
        inputs[-1].neg_()
        check()


def test_large_tables_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a table the bits are the same."""
    inputs, starts = case(dtype=torch.float32)
    cos, sin = inputs[-2:]
    with_table = shift_rotary(*inputs, starts=starts)
    monkeypatch.setattr(cpu_rotary, "_LARGE", 6 * cos.numel())
    assert cpu_rotary._angles(cos, sin, 6, 6)[0].shape[2] == 6
    monkeypatch.setattr(cpu_rotary, "_LARGE", 6 * cos.numel() - 1)
    for made, theirs in zip(cpu_rotary._angles(cos, sin, 6, 6), (cos, sin), strict=True):
        assert made.data_ptr() == theirs.data_ptr()
    assert all(map(torch.equal, shift_rotary(*inputs, starts=starts), with_table))


def test_two_runs_give_the_same_bits() -> None:
    inputs, starts = case(dtype=torch.float32)
    one, two = (
        torch.autograd.grad(sum(map(torch.sum, shift_rotary(*inputs, starts=starts))), inputs[:5])
        for _ in range(2)
    )
    assert all(map(torch.equal, one, two))
