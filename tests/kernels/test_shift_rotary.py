from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.shift import shift as definition

pytest.importorskip("triton", reason="Triton is not installed")
from kernel_checks import (
    HEAD_DIMS,
    ON_GPU,
    TIMES,
    allowed,
    angles,
    error_in_type,
    in_parts,
    in_type,
    random_examples,
    relative_error,
    rotated,
    rows,
)

from kvshift.kernels.shift_rotary import _shift_rotary, rotary, shift_rotary_kv
from kvshift.kernels.shift_rotary import shift_rotary as launch

PARAMETERS = ("k_taps", "v_taps", "q_norm", "k_norm")


def plain(q, k, v, k_taps, v_taps, cos, sin, *, q_norm, k_norm, eps, interleaved, starts, k_state, v_state):
    """The operator step by step, in the type of what it is given."""
    if k_taps is not None:
        k, _ = definition(k, k_taps, starts=starts, state=k_state)
    if v_taps is not None:
        v, _ = definition(v, v_taps, starts=starts, state=v_state)
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    q, k = (
        rotated(x, weight, cos, sin, eps=eps, interleaved=interleaved)
        for x, weight in ((q, q_norm), (k, k_norm))
    )
    return q, k, v


@in_parts
@random_examples(25, on_gpu=20)
@given(
    batch=st.integers(1, 3),
    time=st.sampled_from(TIMES),
    kv_heads=st.integers(1, 5 if ON_GPU else 2),
    group=st.integers(1, 3),
    head_dim=st.sampled_from(HEAD_DIMS),
    rotary=st.sampled_from([1.0, 0.5]),
    interleaved=st.booleans(),
    norm=st.booleans(),
    shifted=st.sampled_from(["both", "keys", "values", "nothing"]),
    window=st.integers(2, 4),
    per_channel=st.booleans(),
    starts=st.booleans(),
    state=st.booleans(),
    shared_angles=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_results_and_gradients_are_those_of_the_single_steps(
    device: str, part, batch, time, kv_heads, group, head_dim, rotary, interleaved, norm, shifted,
    window, per_channel, starts, state, shared_angles, dtype, seed,
) -> None:  # fmt: skip
    torch.manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    taps = (kv_heads, head_dim, window) if per_channel else (kv_heads, window)
    size = int(rotary * head_dim)
    angle = angles(1 if shared_angles else batch, time, size, interleaved=interleaved, device=device)
    tensors = {
        name: rows(batch, time, heads, head_dim, True, device)
        for name, heads in (("q", kv_heads * group), ("k", kv_heads), ("v", kv_heads))
    }
    k_shifted, v_shifted = shifted in ("both", "keys"), shifted in ("both", "values")
    tensors |= {
        "k_taps": random(*taps) if k_shifted else None,
        "v_taps": random(*taps) if v_shifted else None,
        "q_norm": random(head_dim) if norm else None,
        "k_norm": random(head_dim) if norm else None,
    }
    fixed = {
        "cos": angle.cos().to(dtype),
        "sin": angle.sin().to(dtype),
        "eps": 1e-5,
        "interleaved": interleaved,
        "starts": torch.rand(batch, time, device=device) < 0.3 if starts else None,
    }
    states = {
        f"{name}_state": random(batch, window - 1, kv_heads, head_dim).to(dtype)
        if state and is_shifted
        else None
        for name, is_shifted in (("k", k_shifted), ("v", v_shifted))
    }
    gradients = [
        random(batch, tensors[name].shape[2], time, head_dim).to(dtype).transpose(1, 2) for name in "qkv"
    ]

    def run(function, to: torch.dtype) -> list[Tensor]:
        wide = torch.float64 if to == torch.float64 else torch.float32
        made = {
            name: None if x is None else in_type(x.to(dtype), to if name in "qkv" else wide)
            for name, x in tensors.items()
        }
        before = {name: None if x is None else x.to(to) for name, x in states.items()}
        out = function(**made, **fixed, **before)
        torch.autograd.backward(out, [gradient.to(to) for gradient in gradients])
        return [*out, *(x.grad for x in made.values() if x is not None)]

    found, exact, rough = run(launch, dtype), run(plain, torch.float64), run(plain, dtype)
    names = ["q_out", "k_out", "v_out", *(name for name, x in tensors.items() if x is not None)]
    for name, mine, right, typed in zip(names, found, exact, rough, strict=True):
        size = None
        if norm and name == "k_taps":
            # A norm undoes what taps do to a row's length, so their gradient Σ dh·k nearly cancels: it is
            # compared with |dh|·|k|, where h are the shifted keys.
            k = tensors["k"].to(dtype).double()
            state = None if states["k_state"] is None else states["k_state"].double()
            h, _ = definition(k, tensors["k_taps"].double(), starts=fixed["starts"], state=state)
            h = h.detach().requires_grad_()
            out = rotated(
                h, tensors["k_norm"].double(), fixed["cos"].double(), fixed["sin"].double(), eps=1e-5,
                interleaved=interleaved,
            )  # fmt: skip
            out.backward(gradients[1].double())
            size = h.grad.norm() * k.norm()
        error = relative_error(mine, right, size)
        assert error <= allowed(dtype, error_in_type(typed, right, size)), name
    assert all(x.dtype == dtype and x.is_contiguous() for x in found[:3])


def example(device: str, time: int = 37, norm: bool = True) -> list:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, time, heads, 32, device=device).requires_grad_() for heads in (6, 3, 3))
    k_taps, v_taps = (torch.randn(3, 2, device=device).requires_grad_() for _ in range(2))
    norms = [torch.randn(32, device=device).requires_grad_() if norm else None for _ in range(2)]
    angle = angles(1, time, 32, interleaved=False, device=device)
    starts = torch.rand(2, time, device=device) < 0.2
    return [q, k, v, k_taps, v_taps, angle.cos(), angle.sin(), *norms, starts, None, None, 1e-5, False]


BOTH_CALLS = pytest.mark.parametrize(
    "call", [torch.ops.kvshift.shift_rotary, _shift_rotary], ids=["operator", "eager"]
)


def test_two_runs_are_bitwise_equal(device: str) -> None:
    def run() -> list[Tensor]:
        inputs = example(device, time=4097 if ON_GPU else 50)
        out = _shift_rotary(*inputs)
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])
        return [*out, *(x.grad for x in inputs[:9] if x.requires_grad)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("norm", [True, False])
def test_eager_mode_takes_the_operators_own_gradient(device: str, norm: bool) -> None:
    def run(call: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        inputs = example(device, 19, norm)
        out = call(*inputs)
        torch.autograd.backward(out, [torch.full_like(x, 0.5) for x in out])
        return [*out, *(x.grad for x in inputs[:9] if x is not None and x.requires_grad)]

    registered, eager = run(torch.ops.kvshift.shift_rotary), run(_shift_rotary)
    assert len(registered) == len(eager) == (10 if norm else 8)
    for one, other in zip(registered, eager, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm", [True, False])
def test_the_operator_keeps_torchs_rules(device: str, norm: bool) -> None:
    torch.library.opcheck(torch.ops.kvshift.shift_rotary.default, tuple(example(device, 5, norm)))


@pytest.mark.parametrize("missing", [None, 2, 3], ids=["all", "no k_taps", "no v_taps"])
def test_the_operators_of_the_backward_keep_torchs_rules(device: str, missing: int | None) -> None:
    for norm in (True, False):
        q, *others = (x.detach() if isinstance(x, Tensor) else x for x in example(device, 5, norm))
        q, others[0], others[1] = (x.bfloat16() for x in (q, *others[:2]))
        if missing is not None:
            others[missing] = None
        gradients = [torch.ones_like(x) for x in (q, *others[:2])]
        torch.library.opcheck(
            torch.ops.kvshift.shift_rotary_backward.default,
            (*gradients, q if norm else None, *others),
        )


def test_queries_apart_from_keys_and_values_are_the_same(device: str) -> None:
    q, k, v, k_taps, v_taps, cos, sin, q_norm, k_norm, starts, *_ = example(device, 17)
    learned = [q, k, v, k_taps, v_taps, q_norm, k_norm]
    together = launch(
        q, k, v, k_taps, v_taps, cos, sin, q_norm=q_norm, k_norm=k_norm, eps=1e-5, starts=starts
    )
    apart = (
        rotary(q, cos, sin, norm=q_norm, eps=1e-5),
        *shift_rotary_kv(k, v, k_taps, v_taps, cos, sin, norm=k_norm, eps=1e-5, starts=starts),
    )
    weights = [torch.randn_like(x) for x in together]
    of_both = [torch.autograd.grad(out, learned, weights) for out in (apart, together)]
    for mine, right in zip((*apart, *of_both[0]), (*together, *of_both[1]), strict=True):
        assert torch.equal(mine, right)


@BOTH_CALLS
def test_a_rotation_alone_keeps_no_queries_for_its_gradient(device: str, call) -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        inputs = example(device, norm=False)
        call(*inputs)
    q, k, v, *_ = inputs
    assert q.data_ptr() not in kept
    assert {k.data_ptr(), v.data_ptr()} <= set(kept)


@BOTH_CALLS
def test_a_second_derivative_is_refused(device: str, call) -> None:
    inputs = example(device)
    out = call(*inputs)[1].square().sum()
    (gradient,) = torch.autograd.grad(out, inputs[1], create_graph=True)
    with pytest.raises(UnsupportedModelError, match="second derivative of the shift with rotary"):
        gradient.sum().backward()


@BOTH_CALLS
def test_nothing_in_nothing_out(device: str, call) -> None:
    inputs = example(device, time=0)
    out = call(*inputs)
    sum(x.sum() for x in out).backward()
    assert [x.shape for x in out] == [x.shape for x in inputs[:3]]
    for parameter in (*inputs[3:5], *inputs[7:9]):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_it_compiles_as_one_graph_for_any_length(device: str) -> None:
    def step(*inputs) -> Tensor:
        q, k, v = torch.ops.kvshift.shift_rotary(*inputs)
        return q.square().sum() + k.square().sum() + v.square().sum()

    lengths = []  # when something was compiled; once is twice, for the sake of ε

    def backend(graph, inputs):
        lengths.append(time)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for time in (5, 17, 40):
        inputs = example(device, time)
        learned = [x for x in inputs[:9] if x.requires_grad]
        mine, right = (torch.autograd.grad(run(*inputs), learned) for run in (compiled, step))
        for one, other in zip(mine, right, strict=True):
            torch.testing.assert_close(one, other)
    assert set(lengths) == {5}


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(33, 32), (32, 15), (32, 34)])
def test_channels_that_are_no_pairs_are_refused(device: str, head_dim: int, rotary_dim: int) -> None:
    q, k, v = (torch.randn(1, 3, 2, head_dim, device=device) for _ in range(3))
    cos, sin = (torch.randn(1, 3, rotary_dim, device=device) for _ in range(2))
    with pytest.raises(UsageError, match=f"{head_dim} channels of which {rotary_dim} turn"):
        launch(q, k, v, None, None, cos, sin)
