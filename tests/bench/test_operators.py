"""Operators and peers: what is compared is the same, what is not is said."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from helpers import EFFORT, PretendedGraphs, machine
from torch import nn

import kvshift.bench.peers  # noqa: F401  (fills the operators' lists)
from kvshift.bench.contenders import DECODE, NORM_ROTARY, OURS, ROTARY, SHIFT, Call, Contender, Operator
from kvshift.bench.operators import _Bench, measure_operator
from kvshift.bench.shapes import DECODING, FIRST, ON_CPU, QUICK, SHAPES, SMALL, WITH_NORM, Case, Shape
from kvshift.bench.watch import Watch

PLAIN, PACKED = Shape(2, 5, 2, 32, 4), Shape(2, 17, 1, 32, 2, packed=True)
STEP = Shape(3, 1, 2, 32, 4)
ROUNDING = 2e-5  # in float32: of a tap's gradient, a sum in which little may be left; elsewhere a tenth of it


@pytest.fixture(autouse=True)
def many_documents(monkeypatch) -> None:
    monkeypatch.setattr("kvshift.bench.shapes.MEAN_DOCUMENT", 5)


def check(operator: Operator, shape: Shape, names: list[str]) -> tuple[dict[str, float], list]:
    """The errors of contenders, and the rows of those that are not ready."""
    rows: list = []
    known = {each.name: each for each in operator.contenders}
    chosen = [known[name] for name in names]
    ready, errors = _Bench(operator, shape, machine(on_gpu=True), EFFORT, Watch()).check(chosen, rows)
    assert {each.name for each in ready} | {row.contender for row in rows} == set(names)
    return errors, rows


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_the_floor_is_the_papers(direction: str) -> None:
    """Its §6: one tensor of [8, 2048, 16, 128] in bfloat16 at 3.0 TB/s takes 45 and 112 µs; we move two."""
    backward = direction != "forward"
    floor = SHIFT.floor_bytes(FIRST, torch.bfloat16, backward=backward) / 3.0e12
    assert floor / 2 == pytest.approx(112e-6 if backward else 45e-6, rel=0.01)


def test_floors_are_those_of_the_guide() -> None:
    q, e = 2 * SHAPES[1].numbers(20), 2 * SHAPES[1].numbers(4)  # bytes of the queries and of a KV tensor
    shape, dtype = SHAPES[1], torch.bfloat16
    assert ROTARY.floor_bytes(shape, dtype, backward=False) == (q + 2 * e) + (q + 2 * e)
    assert ROTARY.floor_bytes(shape, dtype, backward=True) == 2 * (q + 2 * e) + (q + 4 * e) + (q + 2 * e)
    assert (
        NORM_ROTARY.floor_bytes(shape, dtype, backward=True)
        == ROTARY.floor_bytes(shape, dtype, backward=True) + q
    )


def test_the_shapes_of_the_issue_are_there() -> None:
    sizes = {(shape.batch, shape.time, shape.kv_heads, shape.head_dim) for shape in SHAPES}
    assert sizes >= {(8, 2048, 16, 128), (8, 4096, 4, 128), (1, 12288, 4, 128), (8, 2048, 32, 128)}
    assert SMALL in SHAPES
    assert any(shape.packed for shape in SHAPES)
    for shapes in (SHAPES, QUICK, ON_CPU, DECODING, WITH_NORM):
        assert len(set(shapes)) == len(shapes)
        assert all(shape.query_heads % shape.kv_heads == 0 for shape in shapes)


def test_a_packed_case_has_starts_within_rows() -> None:
    starts = Case.random(PACKED, torch.float32, torch.device("cpu"), seed=0).starts
    assert starts[:, 0].all()
    assert starts[:, 1:].any()
    assert Case.random(PLAIN, torch.float32, torch.device("cpu"), seed=0).starts is None


@pytest.mark.parametrize("shape", [PLAIN, PACKED], ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("operator", "names"),
    [
        (SHIFT, [OURS, "formula"]),
        (ROTARY, [OURS, "formula", "shift, HF rotary"]),
        (NORM_ROTARY, [OURS, "formula"]),
    ],
    ids=["shift", "rotary", "norm"],
)
def test_ours_and_the_formula_are_the_definition(operator, names, shape) -> None:
    pytest.importorskip("triton")
    errors, rows = check(operator, shape, names)
    assert not rows
    assert max(errors.values()) < ROUNDING, errors


def test_decoding_writes_the_same_caches_and_states() -> None:
    pytest.importorskip("triton")
    errors, rows = check(DECODE, STEP, [OURS, "formula"])
    assert not rows
    assert max(errors.values()) < ROUNDING, errors


def test_compiled_contenders_are_the_definition(quick_compiler) -> None:
    for operator, shape in ((SHIFT, PACKED), (ROTARY, PLAIN), (DECODE, STEP)):
        errors, rows = check(operator, shape, ["formula, compiled"])
        assert not rows
        assert errors["formula, compiled"] < 2e-6


def convolution(x: torch.Tensor, weight: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """Depthwise, causal, width 2, of `(batch, time, channels)`, read by the packages' documentation:
    `weight[:, -1]` multiplies the current row, and nothing is read across a beginning."""
    before = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1].masked_fill(begins[..., None], 0)
    return (x * weight[:, 1] + before * weight[:, 0]).to(x.dtype)


def begins_by(x: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    begins = torch.zeros(x.shape[:2], dtype=torch.bool)
    begins[:, 0] = True
    if cu_seqlens is not None:
        assert x.shape[0] == 1
        assert cu_seqlens[-1] == x.shape[1]
        begins[0, cu_seqlens[:-1]] = True
    return begins


class ShortConvolution(nn.Conv1d):
    def __init__(self, hidden_size, kernel_size, bias=False, activation="silu", device=None, dtype=None):
        assert activation is None
        super().__init__(
            hidden_size, hidden_size, kernel_size, groups=hidden_size, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x, cu_seqlens=None):
        return convolution(x, self.weight[:, 0], begins_by(x, cu_seqlens)), None


def fla_token_shift(x, cu_seqlens=None):
    return convolution(x, torch.tensor([[1.0, -1.0]]), begins_by(x, cu_seqlens))


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    assert bias is None
    assert activation is None
    assert x.stride(1) == 1  # channels last, which it asks for with seq_idx
    begins = begins_by(x.transpose(1, 2), None)
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        begins[:, 1:] |= seq_idx.diff(dim=1) != 0
    return convolution(x.transpose(1, 2), weight, begins).transpose(1, 2)


def forgetting_token_shift(x, previous, current):
    assert previous.shape == current.shape == x.shape[:3]
    assert previous.stride() == current.stride()
    before = torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1]
    return x * current[..., None] + before * previous[..., None]


class LigerRopeFunction:
    """Overwrites what it is given; `(batch, heads, time, head_dim)`."""

    @staticmethod
    def apply(q, k, cos, sin):
        turned = []
        for x in (q, k):
            half = x.shape[-1] // 2
            turned.append(x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None])
            with torch.no_grad():
                x.detach().fill_(float("nan"))
        return *turned, cos, sin


@pytest.fixture
def packages(monkeypatch) -> None:
    for name, contents in {
        "fla": {},
        "fla.modules": {"ShortConvolution": ShortConvolution},
        "fla.modules.token_shift": {"token_shift": fla_token_shift},
        "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
        "forgetting_transformer": {},
        "forgetting_transformer.model": {},
        "forgetting_transformer.model.forgetting_transformer": {},
        "forgetting_transformer.model.forgetting_transformer.token_shift": {
            "token_shift": forgetting_token_shift
        },
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.rope": {"LigerRopeFunction": LigerRopeFunction},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


SHIFTING = ["fla ShortConvolution", "causal-conv1d", "forgetting token_shift", "fla token_shift"]


@pytest.mark.parametrize("shape", [PLAIN, PACKED], ids=lambda shape: shape.name)
def test_peers_get_our_taps_and_starts(packages, shape) -> None:
    """Against stand-ins with the packages' interfaces: layouts, the taps' order, where sequences begin."""
    errors, rows = check(SHIFT, shape, SHIFTING)
    assert not rows
    assert max(errors.values()) < ROUNDING, errors


def test_one_peer_may_overwrite_its_inputs(packages) -> None:
    pytest.importorskip("triton")
    # The stand-in leaves NaN where it read; what others are given must not be the same tensors.
    errors, rows = check(ROTARY, PLAIN, ["shift, Liger rotary", "shift, HF rotary"])
    assert not rows
    assert max(errors.values()) < ROUNDING, errors


def test_what_is_not_installed_fails_or_is_wrong_is_said(monkeypatch) -> None:
    def not_there(case: Case) -> Call:
        import a_package_that_nobody_has  # noqa: F401

        raise AssertionError

    def broken(case: Case) -> Call:
        raise ValueError("no such luck\nand more")

    def wrong(case: Case) -> Call:
        return Call(lambda: (case.k * 2, case.v), {"k": case.k, "v": case.v})

    def not_a_number(case: Case) -> Call:
        return Call(lambda: (case.k * float("nan"), case.v), {"k": case.k, "v": case.v})

    others = [Contender(each.__name__, each) for each in (not_there, broken, wrong, not_a_number)]
    monkeypatch.setattr(
        SHIFT, "contenders", [*SHIFT.contenders[:2], *others], raising=False
    ) if False else None
    operator = Operator(
        "shift", SHIFT.results, SHIFT.leaves, SHIFT.exact, SHIFT.numbers, [*SHIFT.contenders[:2], *others]
    )
    watch = Watch()
    rows = measure_operator(operator, PLAIN, machine(on_gpu=False), EFFORT, watch)
    assert {row.contender for row in rows} == {OURS, "formula"}  # the others need a GPU

    PretendedGraphs(monkeypatch)
    rows = measure_operator(operator, PLAIN, machine(on_gpu=True), EFFORT, watch)
    found = {row.contender: row for row in rows if row.direction == "forward+backward"}
    assert found["not_there"].status == "not installed"
    assert "a_package_that_nobody_has" in found["not_there"].reason
    assert found["broken"].status == "failed"
    assert found["broken"].reason == "ValueError: no such luck"
    assert found["wrong"].status == found["not_a_number"].status == "wrong"
    assert found["wrong"].time is None
    assert found[OURS].status == found["formula"].status == "timed"
    assert any("no such luck" in trace for trace in watch.traces)
    assert len(rows) == 2 * 6


def test_ratios_and_shares(monkeypatch) -> None:
    PretendedGraphs(monkeypatch)
    chosen = Operator("shift", SHIFT.results, SHIFT.leaves, SHIFT.exact, SHIFT.numbers, SHIFT.contenders[:2])
    rows = measure_operator(chosen, PLAIN, machine(on_gpu=True), EFFORT, Watch())
    assert [(row.contender, row.direction) for row in rows] == [
        (name, direction) for direction in ("forward", "forward+backward") for name in (OURS, "formula")
    ]
    for row in rows:
        assert row.error < 2e-6
        assert len(row.launched.samples) == len(row.device.samples) == EFFORT.rounds
        assert row.time is row.device
        assert row.share == pytest.approx(row.floor_bytes / 1e9 / row.device.median)
        assert row.over_ours.median == 1.0  # each replay takes 5 ms of the pretended clock
    assert rows[0].floor_bytes < rows[2].floor_bytes


def test_what_waits_for_the_device_is_not_recorded(packages, monkeypatch) -> None:
    gpu = PretendedGraphs(monkeypatch)
    chosen = Operator(
        "shift",
        SHIFT.results,
        SHIFT.leaves,
        SHIFT.exact,
        SHIFT.numbers,
        [each for each in SHIFT.contenders if each.name in (OURS, "fla ShortConvolution")],
    )
    rows = measure_operator(chosen, PACKED, machine(on_gpu=True), EFFORT, Watch())
    assert "begin" in gpu.happened
    for row in rows:
        assert row.launched is not None
        assert (row.device is None) == (row.contender != OURS)
        assert row.over_ours is not None
    assert "waits for the device" in rows[1].reason


def test_when_the_time_is_over_only_ours_is_measured(monkeypatch) -> None:
    watch = Watch(budget=0.0)
    rows = measure_operator(SHIFT, PLAIN, machine(), EFFORT, watch)
    assert {row.contender: row.status for row in rows} == {
        OURS: "timed",
        "formula": "left out",
        "formula, compiled": "left out",
    }
