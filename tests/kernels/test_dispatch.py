from __future__ import annotations

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import EagerAndRecordGraphs

from kvshift.errors import UsageError
from kvshift.kernels import dispatch
from kvshift.shift import definition

pytest.importorskip("triton", reason="Triton is not installed")
from kvshift.kernels import shift_alone


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    time=st.integers(1, 9),
    window=st.integers(2, 4),
    k_shifted=st.booleans(),
    v_shifted=st.booleans(),
    starts=st.booleans(),
    state=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rows_and_state_are_the_definitions(
    device: str, time, window, k_shifted, v_shifted, starts, state, padded, seed
) -> None:
    torch.manual_seed(seed)
    k, v = torch.randn(2, 3, time, 2, 8, device=device)
    k_taps = torch.randn(2, window, device=device) if k_shifted else None
    v_taps = torch.randn(2, window, device=device) if v_shifted else None
    before = tuple(torch.randn(2, 3, window - 1, 2, 8, device=device)) if state else None
    begins = torch.rand(3, time, device=device) < 0.3 if starts else None
    last = torch.randint(-1, time, (3,), device=device) if padded else None
    found, right = (
        run(k, v, k_taps, v_taps, starts=begins, state=before, last=last, **forced)
        for run, forced in ((dispatch.kv_shift, {"backend": "triton"}), (definition.kv_shift, {}))
    )
    for mine, exact in zip((*found[:2], *found[2]), (*right[:2], *right[2]), strict=True):
        assert (mine is None) == (exact is None)
        if mine is not None:
            torch.testing.assert_close(mine, exact)


def test_no_state_is_computed_where_none_is_kept(device: str) -> None:
    x, taps = torch.randn(1, 5, 2, 8, device=device), torch.randn(2, 2, device=device)
    for backend in ("auto", "triton", "definition"):
        assert dispatch.shift(x, taps, keep_state=False, backend=backend)[1] is None


def test_without_a_gpu_nothing_is_said() -> None:
    x, taps = torch.randn(1, 5, 2, 8, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dispatch.shift(x, taps)
    torch.testing.assert_close(found[0], definition.shift(x, taps)[0])


def needs_grad() -> torch.Tensor:
    return torch.randn(1, 1, 2, 8).requires_grad_()


CANNOT = {
    "float64": (torch.float64, torch.float32, 2, None, "rows of torch.float64"),
    "taps": (torch.float32, torch.float64, 2, None, "taps of torch.float64"),
    "window": (torch.float32, torch.float32, 5, None, "windows of 2 to 4, not 5"),
    "state": (torch.float32, torch.float32, 2, needs_grad, "reach the state"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_the_kernels_cannot_do_is_refused_if_they_were_asked_for_and_said_once_if_not(
    device: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, of_taps, window, state, why = CANNOT[case]
    x, taps = torch.randn(1, 5, 2, 8, dtype=dtype, device=device), torch.randn(2, window, dtype=of_taps)
    before = None if state is None else state().to(device)
    with pytest.raises(UsageError, match=why):
        dispatch.shift(x, taps.to(device), state=before, backend="triton")
    monkeypatch.setitem(dispatch.FASTEST, device, "triton")
    dispatch._warn.cache_clear()
    with pytest.warns(UserWarning, match=why):
        dispatch.shift(x, taps.to(device), state=before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        dispatch.shift(x, taps.to(device), state=before)


def test_where_nothing_can_be_launched_the_definition_runs_and_the_reason_is_said_once(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*given, **named):
        raise RuntimeError("Failed to find C compiler.")

    x, taps = torch.randn(1, 5, 2, 8, device=device), torch.randn(2, 2, device=device)
    monkeypatch.setattr(shift_alone, "shift", no_compiler)
    monkeypatch.setitem(dispatch.FASTEST, device, "triton")
    for known in (dispatch._failure_of_a_launch, dispatch._warn):
        known.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"slower: a first launch failed \(RuntimeError: Failed to find"):
            found, _ = dispatch.shift(x, taps)
        assert torch.equal(found, definition.shift(x, taps)[0])
        assert dispatch.fused_path(x, [taps], []) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dispatch.shift(x, taps)
        with pytest.raises(UsageError, match="Failed to find C compiler"):
            dispatch.shift(x, taps, backend="triton")
    finally:
        dispatch._failure_of_a_launch.cache_clear()


def test_inside_a_transform_of_torch_func_the_kernels_are_refused(device: str) -> None:
    x, taps = torch.randn(3, 1, 5, 2, 8, device=device), torch.randn(2, 2, device=device)
    with pytest.raises(UsageError, match=r"torch\.func"):
        torch.func.vmap(lambda one: dispatch.shift(one, taps, backend="triton")[0])(x)


def test_forward_derivatives_are_the_definitions(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.FASTEST, device, "triton")
    x, taps, tangent = torch.randn(1, 5, 2, 8, device=device), torch.randn(2, 2, device=device), None
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the definition runs
        out, _ = dispatch.shift(forward_ad.make_dual(x, torch.ones_like(x)), taps)
        tangent = forward_ad.unpack_dual(out).tangent
        assert tangent is not None
        torch.testing.assert_close(tangent, definition.shift(torch.ones_like(x), taps)[0])
        with pytest.raises(UsageError, match="no derivatives but the usual"):
            dispatch.shift(x, taps, backend="triton")


def test_compiled_code_takes_the_kernels_in_one_graph(device: str) -> None:
    x, taps = torch.randn(2, 5, 2, 8, device=device), torch.randn(2, 2, device=device)
    starts = torch.rand(2, 5, device=device) < 0.3

    def run(x: torch.Tensor) -> torch.Tensor:
        return dispatch.shift(x, taps, starts=starts, keep_state=False, backend="triton")[0]

    graphs = EagerAndRecordGraphs()
    torch._dynamo.reset()
    found = torch.compile(run, fullgraph=True, backend=graphs)(x)
    assert torch.equal(found, run(x))
    assert "kvshift.shift" in str(graphs.graphs[0].graph)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    x, taps = torch.randn(1, 5, 2, 8, device="cuda:1"), torch.randn(2, 2, device="cuda:1")
    assert torch.cuda.current_device() == 0
    found = dispatch.shift(x, taps, backend="triton")
    torch.testing.assert_close(found, definition.shift(x, taps))


def test_on_the_cpu_kernels_are_refused_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    x, taps = torch.randn(1, 5, 2, 8), torch.randn(2, 2)
    with pytest.raises(UsageError, match="need a CUDA GPU"):
        dispatch.shift(x, taps, backend="triton")


def test_without_triton_they_are_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    x, taps = torch.randn(1, 5, 2, 8, device=device), torch.randn(2, 2, device=device)
    with pytest.raises(UsageError, match="not installed"):
        dispatch.shift(x, taps, backend="triton")


@pytest.mark.parametrize("by_variable", [True, False])
def test_an_unknown_backend_is_named_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    x, taps = torch.randn(1, 5, 2, 8), torch.randn(2, 2)
    if by_variable:
        monkeypatch.setattr(dispatch, "_chosen", "cuda")
    name = "KVSHIFT_BACKEND" if by_variable else "backend"
    with pytest.raises(UsageError, match=f"{name} is 'cuda'; expected one of auto, triton, cpu, definition"):
        dispatch.shift(x, taps, backend=None if by_variable else "cuda")


def test_shapes_that_do_not_fit_are_told_before_anything_runs(device: str) -> None:
    k, taps = torch.randn(1, 5, 2, 8, device=device), torch.randn(3, 2, device=device)
    for backend in ("triton", "definition"):
        with pytest.raises(UsageError, match="k_weight has shape"):
            dispatch.kv_shift(k, k, taps, taps, backend=backend)
