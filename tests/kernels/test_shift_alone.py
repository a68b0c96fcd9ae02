from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvshift.errors import UnsupportedModelError
from kvshift.shift import shift as definition

pytest.importorskip("triton", reason="Triton is not installed")
from kernel_checks import ON_GPU, TIMES, allowed, in_parts, in_type, random_examples, relative_error, rows

from kvshift.kernels.shift_alone import _shift
from kvshift.kernels.shift_alone import shift as launch


@in_parts
@random_examples(40, on_gpu=30)
@given(
    batch=st.integers(1, 3),
    time=st.sampled_from(TIMES),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([1, 8, 32, 80, 96]),
    window=st.integers(2, 4),
    per_channel=st.booleans(),
    starts=st.booleans(),
    state=st.booleans(),
    both=st.booleans(),
    fused=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_results_and_gradients_are_the_definitions(
    device: str,
    part: int,
    batch,
    time,
    heads,
    head_dim,
    window,
    per_channel,
    starts,
    state,
    both,
    fused,
    dtype,
    seed,
) -> None:
    torch.manual_seed(seed)
    shape = (heads, head_dim, window) if per_channel else (heads, window)
    begins = torch.rand(batch, time, device=device) < 0.3 if starts else None
    xs = [in_type(rows(batch, time, heads, head_dim, fused, device), dtype) for _ in range(1 + both)]
    taps = [torch.randn(shape, device=device).requires_grad_() for _ in xs]
    states = [torch.randn(batch, window - 1, heads, head_dim, device=device).to(dtype) for _ in xs]
    gradients = [torch.randn(batch, heads, time, head_dim, device=device).to(dtype) for _ in xs]
    gradients = [gradient.transpose(1, 2) for gradient in gradients]  # as attention hands them back

    given_state = states if state else [None, None]
    second = (xs[1], taps[1], given_state[1]) if both else (None, None, None)
    found = launch(xs[0], taps[0], *second[:2], starts=begins, x_state=given_state[0], y_state=second[2])
    torch.autograd.backward(found[: len(xs)], gradients)

    for i, x in enumerate(xs):
        exact, rough = (
            run_definition(x, taps[i], begins, given_state[i], gradients[i], to)
            for to in (torch.float64, dtype)
        )
        assert found[i].dtype == dtype
        assert found[i].is_contiguous()
        for mine, right, typed in zip((found[i], x.grad, taps[i].grad), exact, rough, strict=True):
            assert relative_error(mine, right) <= allowed(dtype, relative_error(typed, right))


def run_definition(x, taps, begins, state, gradient, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x = x.detach().to(dtype).requires_grad_()
    taps = taps.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    state = None if state is None else state.to(dtype)
    out, _ = definition(x, taps, starts=begins, state=state)
    out.backward(gradient.to(dtype))
    return out.detach(), x.grad, taps.grad


def example(device: str, dtype: torch.dtype = torch.float32, time: int = 37) -> list[Tensor]:
    torch.manual_seed(0)
    x, y = (torch.randn(2, time, 3, 32, device=device).to(dtype).requires_grad_() for _ in range(2))
    x_taps, y_taps = (torch.randn(3, 2, device=device).requires_grad_() for _ in range(2))
    starts = torch.rand(2, time, device=device) < 0.2
    return [x, x_taps, y, y_taps, starts, None, None]


def test_two_runs_are_bitwise_equal(device: str) -> None:
    def run() -> list[Tensor]:
        inputs = example(device, time=4097 if ON_GPU else 50)
        out = _shift(*inputs)
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])
        return [*out, *(x.grad for x in inputs[:4])]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_eager_mode_takes_the_operators_own_gradient(device: str) -> None:
    def run(call: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        inputs = example(device)
        out = call(*inputs)
        torch.autograd.backward(out, [torch.full_like(x, 0.5) for x in out])
        return [*out, *(x.grad for x in inputs[:4])]

    for registered, eager in zip(run(torch.ops.kvshift.shift), run(_shift), strict=True):
        assert torch.equal(registered, eager)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_it_can_be_traced(device: str) -> None:
    x, taps = (each.detach() for each in example(device, time=5)[:2])
    x.requires_grad_()
    traced = torch.jit.trace(lambda x: launch(x, taps)[0], x, check_trace=False)
    traced.save_to_buffer()
    assert torch.equal(traced(x), launch(x, taps)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_not_there_has_the_rows_type(device: str, dtype: torch.dtype) -> None:
    """A compiler, unlike the interpreter, wants pointers of one type where a kernel chooses between two."""
    x, taps = torch.randn(1, 3, 2, 8, device=device).to(dtype), torch.ones(2, 2, device=device)
    out, nothing = torch.ops.kvshift.shift(x, taps, None, None, None, None, None)
    given = out, x, taps, None, None, None, None, None, None
    back = torch.ops.kvshift.shift_backward(*given)
    assert nothing.dtype == back[0].dtype == back[2].dtype == dtype
    torch.library.opcheck(torch.ops.kvshift.shift_backward.default, given)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("starts", [True, False])
def test_the_operator_keeps_torchs_rules(device: str, both: bool, starts: bool) -> None:
    inputs = example(device, time=5)
    if not both:
        inputs[2:4] = None, None
    if not starts:
        inputs[4] = None
    torch.library.opcheck(torch.ops.kvshift.shift.default, tuple(inputs))


@pytest.mark.parametrize(("both", "heads"), [(True, 3), (True, 1), (False, 3)])
def test_the_operator_of_the_backward_keeps_torchs_rules(device: str, both: bool, heads: int) -> None:
    x, x_taps, y, y_taps, *others = (
        each.detach() if isinstance(each, Tensor) else each for each in example(device, time=5)
    )
    x, y, x_taps, y_taps = x[:, :, :heads], y[:, :, :heads], x_taps[:heads], y_taps[:heads]
    of_y = (torch.ones_like(y), y, y_taps) if both else (None, None, None)
    torch.library.opcheck(
        torch.ops.kvshift.shift_backward.default, (torch.ones_like(x), x, x_taps, *of_y, *others)
    )


def test_a_second_derivative_is_refused(device: str) -> None:
    x, taps, *_ = example(device)
    (gradient,) = torch.autograd.grad(launch(x, taps)[0].square().sum(), x, create_graph=True)
    with pytest.raises(UnsupportedModelError, match="second derivative of the shift"):
        gradient.sum().backward()


def test_nothing_in_nothing_out(device: str) -> None:
    x = torch.zeros(2, 0, 3, 8, device=device, requires_grad=True)
    taps = torch.ones(3, 2, device=device, requires_grad=True)
    out, _ = launch(x, taps)
    out.sum().backward()
    assert out.shape == x.shape
    assert torch.equal(taps.grad, torch.zeros_like(taps))


def test_it_compiles_as_one_graph_for_any_length(device: str) -> None:
    def step(x: Tensor, taps: Tensor, starts: Tensor) -> Tensor:
        return launch(x * 2, taps, starts=starts)[0].square().sum()

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for time in (5, 17, 40):
        x, taps, *_, starts, _, _ = example(device, time=time)
        mine, right = (torch.autograd.grad(run(x, taps, starts), (x, taps)) for run in (compiled, step))
        for one, other in zip(mine, right, strict=True):
            torch.testing.assert_close(one, other)
    assert len(graphs) == 1


def test_under_autocast_the_sum_is_still_formed_in_float32(device: str) -> None:
    x, taps, *_ = example(device)
    with torch.autocast(device, torch.bfloat16):
        inside = launch(x, taps)[0]
    assert torch.equal(inside, launch(x, taps)[0])
