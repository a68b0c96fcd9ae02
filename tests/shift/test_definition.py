"""`kv_shift` against loops by hand, and its laws: chunks, packing, gradients, rounding, compilation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import kvshift
from kvshift.errors import UsageError
from kvshift.shift import ShiftState, shift

ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Case:
    """One random call: k and v of different taps, with or without starts and state."""

    k: Tensor
    v: Tensor
    k_weight: Tensor
    v_weight: Tensor
    starts: Tensor | None
    state: ShiftState | None

    def run(self, columns: slice = slice(None), state: ShiftState | None = None):
        starts = None if self.starts is None else self.starts[:, columns]
        return kvshift.kv_shift(
            self.k[:, columns], self.v[:, columns], self.k_weight, self.v_weight, starts=starts, state=state
        )


@st.composite
def cases(draw, starts=st.booleans(), state=st.booleans()) -> Case:
    batch, time = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    heads, width, window = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
    taps = (heads, width, window) if draw(st.booleans()) else (heads, window)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    marks = None
    if draw(starts):
        flags = draw(st.lists(st.booleans(), min_size=batch * time, max_size=batch * time))
        marks = torch.tensor(flags).view(batch, time)
    before = (batch, window - 1, heads, width)
    return Case(
        normal(batch, time, heads, width),
        normal(batch, time, heads, width),
        normal(*taps),
        normal(*taps),
        marks,
        ShiftState(normal(*before), normal(*before)) if draw(state) else None,
    )


def test_the_papers_equation_by_hand() -> None:
    """K̂[t] = α1·K[t] + α2·K[t-1], K[-1] = 0: α=(2, 3), β=(1, 10)."""
    k = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    v = torch.tensor([5.0, 7.0, 9.0]).view(1, 3, 1, 1)
    k_hat, v_hat, state = kvshift.kv_shift(k, v, torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 10.0]]))
    assert k_hat.flatten().tolist() == [2, 23, 230]
    assert v_hat.flatten().tolist() == [5, 57, 79]
    assert (state.k.item(), state.v.item()) == (100, 9)  # raw rows, not shifted ones


@ANY
@given(case=cases())
def test_equals_the_loops(by_hand, case) -> None:
    k_hat, v_hat, state = case.run(state=case.state)
    before = case.state or ShiftState(None, None)
    for found, kept, x, weight, earlier in (
        (k_hat, state.k, case.k, case.k_weight, before.k),
        (v_hat, state.v, case.v, case.v_weight, before.v),
    ):
        expected, expected_state = by_hand(x, weight, case.starts, earlier)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        assert torch.equal(kept, expected_state)


@ANY
@given(case=cases(), data=st.data())
def test_any_chunking_equals_the_whole_exactly(case, data) -> None:
    time = case.k.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, time))) | {0, time})
    whole = case.run(state=case.state)
    state, pieces = case.state, []
    for start, stop in itertools.pairwise(cuts):
        *rows, state = case.run(slice(start, stop), state)
        pieces.append(rows)
    assert torch.equal(torch.cat([k for k, _ in pieces], 1), whole[0])
    assert torch.equal(torch.cat([v for _, v in pieces], 1), whole[1])
    assert all(map(torch.equal, state[:2], whole[2][:2]))


@ANY
@given(case=cases(starts=st.just(False), state=st.just(False)), data=st.data())
def test_packed_documents_equal_the_documents_alone_exactly(case, data) -> None:
    batch, time = case.k.shape[:2]
    begins = sorted(data.draw(st.sets(st.integers(0, time - 1))) | {0})
    alone = [case.run(slice(a, b)) for a, b in zip(begins, [*begins[1:], time], strict=True)]
    case.starts = torch.zeros(batch, time, dtype=torch.bool)
    case.starts[:, begins] = True
    k_hat, v_hat, state = case.run()
    assert torch.equal(k_hat, torch.cat([part[0] for part in alone], 1))
    assert torch.equal(v_hat, torch.cat([part[1] for part in alone], 1))
    assert all(map(torch.equal, state[:2], alone[-1][2][:2]))


@ANY
@given(case=cases(), data=st.data())
def test_padding_after_the_last_real_token_never_becomes_state(by_hand, case, data) -> None:
    batch, time = case.k.shape[:2]
    last = torch.tensor([data.draw(st.integers(-1, time - 1)) for _ in range(batch)])
    before = None if case.state is None else case.state.k
    _, state = shift(case.k, case.k_weight, starts=case.starts, state=before, last=last)
    assert torch.equal(state, by_hand(case.k, case.k_weight, case.starts, before, last)[1])


@ANY
@given(case=cases(starts=st.just(True)))
def test_nan_never_crosses_a_start(case) -> None:
    """A foreign row must not be multiplied by zero: it must not be read."""
    clean = case.run(state=case.state)
    for b, t in case.starts.nonzero().tolist():
        poisoned = Case(case.k.clone(), case.v.clone(), *list(vars(case).values())[2:])
        poisoned.k[b, :t], poisoned.v[b, :t] = torch.nan, torch.inf
        state = case.state
        if state is not None:
            state = ShiftState(*(torch.full_like(rows, torch.nan) for rows in state[:2]))
        k_hat, v_hat, after = poisoned.run(state=state)
        assert torch.equal(k_hat[b, t:], clean[0][b, t:])
        assert torch.equal(v_hat[b, t:], clean[1][b, t:])
        assert torch.equal(after.k[b], clean[2].k[b])


def test_nan_never_crosses_a_start_backwards() -> None:
    """A gradient of NaN stays with the document it belongs to."""
    k = torch.randn(1, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64)
    found, _ = shift(k, weight, starts=torch.tensor([[1, 0, 0, 1, 0, 0]]).bool())
    gradient = torch.ones_like(found)
    gradient[:, 3:] = torch.nan
    found.backward(gradient)
    alone = torch.autograd.grad(shift(k[:, :3], weight)[0].sum(), k)[0][:, :3]
    assert torch.equal(k.grad[:, :3], alone)
    assert torch.isnan(k.grad[:, 3:]).all()


@pytest.mark.parametrize("window", [2, 3, 4])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_rows_taps_and_state(window, per_channel, padded) -> None:
    torch.manual_seed(window)
    starts = torch.tensor([[0, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0, 0]]).bool()
    last = torch.tensor([3, -1]) if padded else None
    taps = (2, 3, window) if per_channel else (2, window)
    shapes = [(2, 7, 2, 3)] * 2 + [taps] * 2 + [(2, window - 1, 2, 3)] * 2
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(k, v, k_weight, v_weight, k_state, v_state):
        k_hat, v_hat, state = kvshift.kv_shift(
            k, v, k_weight, v_weight, starts=starts, state=ShiftState(k_state, v_state), last=last
        )
        return k_hat, v_hat, state.k, state.v

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_rows_are_rounded_once(by_hand, dtype) -> None:
    torch.manual_seed(0)
    k = torch.randn(2, 64, 2, 8).to(dtype)
    weight = torch.randn(2, 4)
    found, state = shift(k, weight)
    exact, _ = by_hand(k, weight)
    half_step = torch.finfo(dtype).eps / 2
    # Float32 sums may be off by their own rounding, which four terms of size up to 10 keep below 1e-5.
    bound = half_step * exact.abs() + 1e-5
    assert found.dtype == state.dtype == dtype
    assert ((found.double() - exact).abs() <= bound).all()
    in_narrow, _ = shift(k, weight.to(dtype))  # what rounding the taps and every product would give
    assert ((in_narrow.double() - exact).abs() > bound).any()


def test_wide_rows_keep_their_precision(by_hand) -> None:
    k, weight = torch.randn(1, 9, 2, 3, dtype=torch.float64), torch.randn(2, 3)
    found, _ = shift(k, weight)
    assert found.dtype == torch.float64
    assert torch.allclose(found, by_hand(k, weight)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("inside", ["transposed", "expanded", "sliced"])
def test_any_strides(by_hand, inside) -> None:
    base = torch.randn(2, 3, 8, 4, dtype=torch.float64)
    k = {
        "transposed": base.transpose(1, 2),
        "expanded": base[:, :1].transpose(1, 2).expand(-1, -1, 3, -1),
        "sliced": torch.randn(2, 8, 3, 8, dtype=torch.float64)[..., ::2],
    }[inside]
    weight = torch.randn(3, 2, dtype=torch.float64)
    assert torch.allclose(shift(k, weight)[0], by_hand(k, weight)[0], rtol=0, atol=1e-12)


def test_what_is_not_shifted_comes_back_itself() -> None:
    k, v, weight = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 2, 3), torch.rand(2, 2)
    k_hat, v_hat, state = kvshift.kv_shift(k, v, None, weight)
    assert k_hat is k
    assert state.k is None
    assert torch.equal(v_hat, shift(v, weight)[0])


def test_one_compiled_graph_serves_every_length() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kvshift.kv_shift, fullgraph=True, dynamic=True, backend="aot_eager")
    weight = torch.rand(2, 3, requires_grad=True)
    for number, time in enumerate((7, 12, 5)):
        k, v = torch.randn(2, time, 2, 4), torch.randn(2, time, 2, 4)
        starts = torch.rand(2, time) < 0.3
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            found = compiled(k, v, weight, weight, starts=starts)
        expected = kvshift.kv_shift(k, v, weight, weight, starts=starts)
        for one, other in zip((*found[:2], *found[2][:2]), (*expected[:2], *expected[2][:2]), strict=True):
            assert torch.equal(one, other)
        gradient = torch.autograd.grad(found[0].sum(), weight)[0]
        assert torch.allclose(gradient, torch.autograd.grad(expected[0].sum(), weight)[0])


ROWS = torch.zeros(2, 5, 3, 4)
REFUSED = {
    "three axes": ((ROWS[0], ROWS, None, None, {}), r"k has shape \(5, 3, 4\); expected \(batch, time"),
    "heads": ((ROWS, ROWS, torch.ones(2, 2), None, {}), r"k_weight has shape \(2, 2\); expected \(3, window"),
    "channels": ((ROWS, ROWS, None, torch.ones(3, 5, 2), {}), r"v_weight has shape \(3, 5, 2\)"),
    "one axis": ((ROWS, ROWS, None, torch.ones(3), {}), r"v_weight has shape \(3,\)"),
    "starts' dtype": (
        (ROWS, ROWS, None, None, {"starts": torch.zeros(2, 5, dtype=torch.long)}),
        r"starts is torch.int64.*expected torch.bool of shape \(2, 5\)",
    ),
    "starts' shape": (
        (ROWS, ROWS, None, None, {"starts": torch.zeros(1, 5, dtype=torch.bool)}),
        r"shape \(1, 5\); expected torch.bool",
    ),
    "state": (
        (ROWS, ROWS, torch.ones(3, 3), None, {"state": (torch.zeros(2, 1, 3, 4), None)}),
        r"state of k has shape \(2, 1, 3, 4\); expected \(2, 2, 3, 4\)",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED)
def test_shapes_that_do_not_fit_are_refused(call, sentence) -> None:
    *arguments, options = call
    with pytest.raises(UsageError, match=sentence):
        kvshift.kv_shift(*arguments, **options)
