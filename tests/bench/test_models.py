"""Arms, training steps and decoding."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import CPU, MICRO, PretendedGraphs

from kvshift.bench import steps
from kvshift.bench.arms import ARMS, BASELINE, Arm
from kvshift.bench.configurations import CONFIGURATIONS, build, twin
from kvshift.bench.decoding import WAYS, measure_decoding
from kvshift.bench.decoding import Effort as DecodingEffort
from kvshift.bench.steps import Trainer, fitting_layers, measure_steps
from kvshift.bench.watch import Watch
from kvshift.kernels import dispatch
from kvshift.models import is_shifted

FLOAT = torch.float32
EFFORT = steps.Effort(rounds=2, steps=2, most_seconds=5)
DECODING = DecodingEffort(batches=(2,), prompt=5, new=6, rounds=2, most_seconds=5)
NAMES = [arm.name for arm in ARMS]
OURS = [arm for arm in ARMS if arm.name == "kvshift"]


def test_arms_share_their_weights() -> None:
    vanilla = build(MICRO, 1, CPU, FLOAT)
    weights = {id(parameter) for parameter in vanilla.parameters()}
    for arm in ARMS:
        model = arm.make(vanilla)
        assert model is not vanilla
        others = [name for name, each in model.named_parameters() if id(each) not in weights]
        assert all("kv_shift" in name for name in others)
        assert is_shifted(model) == bool(others) == (not arm.name.startswith(BASELINE))
    assert not is_shifted(vanilla)


def test_arms_compute_the_same() -> None:
    vanilla = build(MICRO, 2, CPU, FLOAT)
    tokens = torch.randint(MICRO.vocabulary, (2, 7))
    right = vanilla(tokens).logits
    for arm in ARMS:
        with arm.inside(CPU):
            torch.testing.assert_close(arm.make(vanilla)(tokens).logits, right)


def test_arms_run_what_their_names_say(monkeypatch) -> None:
    """The formula step by step, and what a model does by itself, whatever the environment says."""
    monkeypatch.setattr(dispatch, "_chosen", "triton")
    chosen = {}
    for arm in ARMS:
        with arm.inside(CPU):
            chosen[arm.name] = dispatch._chosen
    assert chosen["formula"] == "definition"
    assert chosen["kvshift"] == "auto"
    assert dispatch._chosen == "triton"


def test_a_compiled_arm_keeps_to_its_backend() -> None:
    """Arms run the same code on the same weights; what one compiled must not serve another."""
    pytest.importorskip("triton")
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object):
        graphs.append(str(graph.code))
        return graph.forward

    call = torch.compile(dispatch.shift, backend=backend, fullgraph=True)
    x, taps = torch.randn(1, 4, 1, 32), torch.randn(1, 2)
    for arm in ("definition", "triton", "definition", "triton"):
        with dispatch.forced(arm):
            call(x, taps, keep_state=False)
    assert ["kvshift" in code for code in graphs] == [False, True]


def test_configurations_are_the_papers() -> None:
    llama = CONFIGURATIONS["1.5b"].llama(28)
    assert (llama.hidden_size, llama.num_hidden_layers, llama.intermediate_size) == (2048, 28, 5504)
    assert llama.rope_parameters["rope_theta"] == 100_000
    paper = CONFIGURATIONS["2.9b"]
    assert (paper.hidden, paper.layers, paper.heads, paper.kv_heads, paper.length) == (2560, 32, 20, 4, 4096)
    layer = CONFIGURATIONS["19b-layer"]
    assert (layer.built_layers, layer.length, layer.kv_heads, layer.hidden) == (1, 12_288, 4, 6144)


def test_steps_of_every_arm(quick_compiler) -> None:
    watch = Watch()
    rows = list(measure_steps(MICRO, CPU, FLOAT, EFFORT, watch, layers=1))
    assert [(row.mode, row.arm) for row in rows] == [
        (mode, name) for mode in ("eager", "compiled") for name in NAMES
    ]
    assert not watch.traces
    for row in rows:
        assert row.status == "timed"
        assert (row.layers, row.of_layers) == (1, 2)
        assert len(row.seconds.samples) == 2
        assert row.tokens_per_second == pytest.approx(2 * 16 / row.seconds.median)
        assert (row.over_vanilla is None) == (row.arm == BASELINE)
        assert row.peak_bytes is None
    by_name = {row.arm: row.parameters for row in rows}
    assert by_name["kvshift"] == by_name[BASELINE] + 2 * 2 * 2  # a layer's keys and values, 2 heads, 2 taps


def test_a_step_trains_the_shared_weights_and_its_own_taps() -> None:
    trainer = Trainer(MICRO, 1, CPU, FLOAT)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-2
    arm = next(arm for arm in ARMS if arm.name == "kvshift")
    step, _ = trainer.ready(arm, "eager")
    before = [parameter.detach().clone() for parameter in trainer.vanilla.parameters()]
    taps = trainer.optimizer.param_groups[1]["params"]
    assert len(taps) == 2
    started = [parameter.detach().clone() for parameter in taps]
    first = step()
    assert not any(torch.equal(x, y) for x, y in zip(before, trainer.vanilla.parameters(), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(started, taps, strict=True))
    assert all(parameter.grad is None for parameter in trainer.vanilla.parameters())
    assert not first.requires_grad
    assert step() < first
    trainer.forget_taps()
    assert len(trainer.optimizer.param_groups) == 1
    assert all(parameter not in trainer.optimizer.state for parameter in taps)


def test_an_arm_that_fails_does_not_stop_the_others() -> None:
    def broken(model):
        raise RuntimeError("it does not compile")

    arms = (ARMS[0], Arm("broken", broken), ARMS[-1])
    watch = Watch()
    rows = list(measure_steps(MICRO, CPU, FLOAT, EFFORT, watch, layers=1, modes=("eager",), arms=arms))
    assert [row.status for row in rows] == ["timed", "failed", "timed"]
    assert rows[1].reason == "RuntimeError: it does not compile"
    assert rows[2].over_vanilla is not None
    assert len(watch.traces) == 1


def test_when_vanilla_fails_there_are_no_ratios() -> None:
    def broken(model):
        raise RuntimeError("no")

    arms = (Arm(BASELINE, broken), ARMS[-1])
    rows = list(measure_steps(MICRO, CPU, FLOAT, EFFORT, Watch(), layers=1, modes=("eager",), arms=arms))
    assert rows[1].seconds is not None
    assert rows[1].over_vanilla is None


def test_as_many_layers_as_fit(monkeypatch) -> None:
    tried: list[int] = []
    original = Trainer.__init__

    def small_memory(self, configuration, layers, device, dtype):
        tried.append(layers)
        if layers > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
        original(self, configuration, 1, device, dtype)

    monkeypatch.setattr(Trainer, "__init__", small_memory)
    assert fitting_layers(MICRO, 8, CPU, FLOAT, Watch()) == (4, None)
    assert tried == [8, 6, 4]

    def broken(self, *given):
        tried.append(0)
        raise ValueError("something else")

    monkeypatch.setattr(Trainer, "__init__", broken)
    tried.clear()
    layers, failure = fitting_layers(MICRO, 8, CPU, FLOAT, Watch())
    assert layers == 0
    assert failure.reason == "ValueError: something else"
    assert len(tried) == 1
    rows = list(measure_steps(MICRO, CPU, FLOAT, EFFORT, Watch()))
    assert {row.status for row in rows} == {"failed"}
    assert len(rows) == 2 * len(ARMS)


def test_peak_memory_is_of_one_step(monkeypatch) -> None:
    PretendedGraphs(monkeypatch)
    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: happened.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: happened.append("read") or 77)
    assert steps._peak_bytes(lambda: happened.append("step"), torch.device("cuda")) == 77
    assert happened == ["reset", "step", "read"]
    assert steps._peak_bytes(lambda: None, CPU) is None


def test_memory_in_vanillas() -> None:
    rows = list(measure_steps(MICRO, CPU, FLOAT, EFFORT, Watch(), layers=1, modes=("eager",)))
    with_memory = [
        row.model_copy(update={"peak_bytes": 100 + place, "over_vanilla": None})
        for place, row in enumerate(rows)
    ]
    compared = steps._compared(with_memory)
    assert [row.memory_over_vanilla for row in compared] == [None, 1.01, 1.02, 1.03, 1.04]


def test_decoding_of_every_arm_in_every_way(quick_compiler) -> None:
    watch = Watch()
    effort = dataclasses.replace(DECODING, batches=(1, 2))
    rows = list(measure_decoding(MICRO, CPU, FLOAT, effort, watch, layers=1, arms=(ARMS[0], *OURS)))
    expected = [(WAYS[0].name, 1), (WAYS[0].name, 2), (WAYS[1].name, 1), (WAYS[2].name, 1)]
    assert [(row.way, row.batch, row.arm) for row in rows] == [
        (*place, arm.name) for place in expected for arm in (ARMS[0], *OURS)
    ]
    assert not watch.traces
    for row in rows:
        assert row.status == "timed"
        assert row.tokens_per_second == pytest.approx(row.batch * 6 / row.seconds.median)
        if row.arm != BASELINE:
            assert row.same_tokens
            assert row.over_vanilla.samples[0] == pytest.approx(
                next(
                    other.seconds.samples[0]
                    for other in rows
                    if (other.way, other.batch, other.arm) == (row.way, row.batch, BASELINE)
                )
                / row.seconds.samples[0]
            )


def test_every_way_decodes_the_same_tokens(quick_compiler) -> None:
    from kvshift.bench.decoding import Job

    model = twin(build(MICRO, 2, CPU, FLOAT, 32)).eval()
    job = Job(torch.randint(MICRO.vocabulary, (2, 5)), 6)
    made = [way.ready(model, job, lambda call: call() or 1.0) for way in WAYS]
    tokens = [decode()[1] for decode in made]
    again = [decode()[1] for decode in made]  # on the same caches
    assert tokens[0].shape == (2, 6)
    assert all(torch.equal(tokens[0], other) for other in (*tokens, *again))


def test_a_loop_counts_the_steps_it_timed() -> None:
    from kvshift.bench.decoding import Job, _by_loop

    model = build(MICRO, 1, CPU, FLOAT, 32).eval()
    job = Job(torch.randint(MICRO.vocabulary, (1, 5)), 6)
    with torch.compiler.set_stance("force_eager"):
        seconds, _ = _by_loop(model, job, lambda call: call() or 5.0)()
    assert seconds == pytest.approx(6.0)  # five of six tokens were timed, a second each


def test_decoding_reports_what_fails() -> None:
    def broken(model):
        raise RuntimeError("no")

    arms = (ARMS[0], Arm("broken", broken))
    watch = Watch()
    rows = list(measure_decoding(MICRO, CPU, FLOAT, DECODING, watch, ways=WAYS[1:2], arms=arms))
    assert rows == []  # the batch is too large for that way
    effort = dataclasses.replace(DECODING, batches=(1,))
    rows = list(measure_decoding(MICRO, CPU, FLOAT, effort, watch, ways=WAYS[1:2], arms=arms))
    assert [row.status for row in rows] == ["timed", "failed"]
    assert rows[1].seconds is None
    assert watch.traces
