"""The shift for a CPU is the definition's, in values and gradients, or leaves the work to the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, rows_of
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from kvshift.errors import UsageError
from kvshift.kernels import dispatch
from kvshift.shift import definition


def on_cpu(x: Tensor, taps: Tensor, starts: Tensor | None = None) -> Tensor:
    return dispatch.shift(x, taps, starts=starts, keep_state=False, backend="cpu")[0]


def defined(x: Tensor, taps: Tensor, starts: Tensor | None = None) -> Tensor:
    return definition.shift(x, taps, starts=starts)[0]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 9),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    window=st.integers(2, 5),
    per_channel=st.booleans(),
    starts=st.sampled_from([None, 0.0, 0.3, 1.0]),
    layout=st.sampled_from(LAYOUTS),
    of_gradient=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31),
)
def test_rows_and_gradients_are_the_definitions(
    batch, time, heads, head_dim, window, per_channel, starts, layout, of_gradient, seed
) -> None:
    torch.manual_seed(seed)
    shape = (batch, time, heads, head_dim)
    x = rows_of(layout, *shape, torch.float64).requires_grad_()
    taps = torch.randn(*((heads, head_dim) if per_channel else (heads,)), window, dtype=torch.float64)
    taps.requires_grad_()
    begins = None if starts is None else torch.rand(batch, time) < starts
    gradient = rows_of(of_gradient, *shape, torch.float64)
    found, right = on_cpu(x, taps, begins), defined(x, taps, begins)
    torch.testing.assert_close(found, right)
    for mine, exact in zip(
        *(torch.autograd.grad(out, (x, taps), gradient) for out in (found, right)), strict=True
    ):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("per_channel", [False, True])
def test_in_float32_the_error_is_that_of_float32(per_channel) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 2, 257, 3, 16, dtype=torch.float64).unbind()
    taps = torch.randn(*((3, 16) if per_channel else (3,)), 3, dtype=torch.float64)
    starts = torch.rand(2, 257) < 0.05

    def run(shift, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, taps)]
        out = shift(*inputs, starts)
        return out, *torch.autograd.grad(out, inputs, gradient.to(dtype))

    x, taps, gradient = (tensor.float().double() for tensor in (x, taps, gradient))
    for mine, exact in zip(run(on_cpu, torch.float32), run(defined, torch.float64), strict=True):
        assert (mine - exact).norm() <= 1e-6 * exact.norm()


def case(window: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(2, window, dtype=torch.float64, requires_grad=True)
    return x, taps, torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]]).bool()


def test_gradients_of_both_orders_are_the_numerical_ones() -> None:
    x, taps, starts = case()
    assert gradcheck(on_cpu, (x, taps, starts))
    assert gradgradcheck(on_cpu, (x, taps, starts))
    assert gradgradcheck(lambda x: on_cpu(x, taps.detach(), starts), (x,))


def test_a_gradient_of_what_was_made_of_the_other_counts_once() -> None:
    x, taps, starts = case()

    def run(x: Tensor, taps: Tensor) -> Tensor:
        return on_cpu(x, taps * x.mean(), starts)

    assert gradgradcheck(run, (x, taps))
    first = torch.autograd.grad(run(x, taps).pow(3).sum(), (x, taps))
    again = torch.autograd.grad(run(x, taps).pow(3).sum(), (x, taps), create_graph=True)
    torch.testing.assert_close(again, first)


@pytest.mark.parametrize("way", ["is_grads_batched", "torch.vmap"])
def test_a_batch_of_gradients_is_one_after_the_other(way: str) -> None:
    x, taps, starts = case()
    out = on_cpu(x, taps, starts)
    gradients = torch.randn(4, *out.shape, dtype=out.dtype)

    def of(gradient: Tensor, **how: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (x, taps), gradient, retain_graph=True, **how)

    found = of(gradients, is_grads_batched=True) if way == "is_grads_batched" else torch.vmap(of)(gradients)
    for mine, exact in zip(found, map(torch.stack, zip(*map(of, gradients), strict=True)), strict=True):
        torch.testing.assert_close(mine, exact)
        assert not mine.requires_grad


@pytest.mark.parametrize("learns", ["rows", "taps"])
def test_what_needs_no_gradient_gets_none(learns) -> None:
    x, taps, starts = case()
    (x if learns == "taps" else taps).requires_grad_(False)
    on_cpu(x, taps, starts).sum().backward()
    assert (x.grad is None, taps.grad is None) == (learns == "taps", learns == "rows")
    mine = x.grad if learns == "rows" else taps.grad
    (exact,) = torch.autograd.grad(defined(x, taps, starts).sum(), x if learns == "rows" else taps)
    torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("window", [2, 4])
def test_nan_reaches_no_other_sequence(window) -> None:
    """Neither forward, from a row, nor backward, from a row's gradient."""
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 1, 9, 2, 3)
    starts = torch.arange(9)[None] == 4
    taps = torch.zeros(2, window)  # not even with taps of zero
    taps[:, 0] = 1
    x.requires_grad_()
    (clean,) = torch.autograd.grad(on_cpu(x, taps, starts), x, gradient)
    for foreign, own in ((slice(0, 4), slice(4, 9)), (slice(4, 9), slice(0, 4))):
        poisoned, of_poison = x.detach().clone(), gradient.clone()
        poisoned[:, foreign] = of_poison[:, foreign] = torch.nan
        poisoned.requires_grad_()
        out = on_cpu(poisoned, taps, starts)
        (dx,) = torch.autograd.grad(out, poisoned, of_poison)
        assert out[:, foreign].isnan().all()
        assert torch.equal(out[:, own], x[:, own])
        assert torch.equal(dx[:, own], clean[:, own])


def test_starts_that_changed_are_found_again() -> None:
    x, taps, starts = case()
    with torch.inference_mode():
        torch.testing.assert_close(on_cpu(x, taps, starts), defined(x, taps, starts))
        inferred = starts.clone()
        on_cpu(x, taps, inferred)
        inferred[0, 2] = True
        torch.testing.assert_close(on_cpu(x, taps, inferred), defined(x, taps, inferred))
    on_cpu(x, taps, starts).sum().backward()  # what inference mode found can be kept for a gradient
    for write in (starts, starts.numpy()):
        write[0, 2] = ~write[0, 2]
        torch.testing.assert_close(on_cpu(x, taps, starts), defined(x, taps, starts))
    assert not torch.equal(on_cpu(x, taps, starts)[1:], on_cpu(x, taps, None)[1:])
    one = x[:1]  # as many numbers, other sequences
    torch.testing.assert_close(on_cpu(one.transpose(0, 1), taps), defined(one.transpose(0, 1), taps))
    torch.testing.assert_close(on_cpu(one, taps), defined(one, taps))


def test_the_state_is_the_definitions() -> None:
    x, taps, starts = case()
    last = torch.tensor([3, -1])
    for end in (None, last):
        found = dispatch.shift(x, taps, starts=starts, last=end, backend="cpu")
        for mine, exact in zip(found, definition.shift(x, taps, starts=starts, last=end), strict=True):
            torch.testing.assert_close(mine, exact)


class Odd(Tensor):
    """A tensor of its own kind, as others wrap theirs."""


LEFT = {
    "narrow rows": ("rows of torch.bfloat16", lambda run, x, w, s: run(x.bfloat16(), w, s)),
    "another kind": ("ordinary tensors", lambda run, x, w, s: run(x.detach().as_subclass(Odd), w, s)),
    "nothing": ("hold something", lambda run, x, w, s: run(x[:, :0], w, s[:, :0])),
    "vmap": ("usual ones", lambda run, x, w, s: torch.vmap(lambda one: run(one[None], w, None))(x)),
    "jvp": ("usual ones", lambda run, x, w, s: torch.func.jvp(lambda x: run(x, w, s), (x,), (x,))[1]),
    "grad": ("usual ones", lambda run, x, w, s: torch.func.grad(lambda x: run(x, w, s).sum())(x)),
    "forward mode": ("usual ones", lambda run, x, w, s: forward_mode(lambda x: run(x, w, s), x)),
    "tracing": ("compiler", lambda run, x, w, s: traced(run, x, w.detach(), s)),
}


def traced(run, x: Tensor, taps: Tensor, starts: Tensor) -> Tensor:
    return torch.jit.trace(lambda x: run(x, taps, starts), x.detach())(x)


def forward_mode(function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x.detach(), x.detach()))).tangent


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated
@pytest.mark.parametrize("name", LEFT)
def test_what_it_cannot_do_the_definition_does(name) -> None:
    why, use = LEFT[name]
    found = use(lambda x, taps, starts: dispatch.shift(x, taps, starts=starts)[0], *case())
    torch.testing.assert_close(found, use(defined, *case()), rtol=0, atol=0)
    with pytest.raises(UsageError, match=f"'cpu' was asked for.*{why}.*'auto'"):
        use(on_cpu, *case())


def test_rows_after_others_are_the_definitions() -> None:
    x, taps, starts = case()
    state = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    found = dispatch.shift(x, taps, starts=starts, state=state)
    for mine, exact in zip(found, definition.shift(x, taps, starts=starts, state=state), strict=True):
        assert torch.equal(mine, exact)
    with pytest.raises(UsageError, match="knows no state"):
        dispatch.shift(x, taps, state=state, backend="cpu")


def test_a_compiler_gets_the_definition_in_one_graph() -> None:
    x, taps, starts = case()
    torch._dynamo.reset()
    run = torch.compile(
        lambda x: dispatch.shift(x, taps, starts=starts)[0], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(run(x), defined(x, taps, starts))
