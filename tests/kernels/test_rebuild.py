from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import save_on_cpu
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from kvshift.errors import UnsupportedModelError
from kvshift.kernels.rebuild import rebuilt

pytest.importorskip("triton", reason="Triton is not installed")
from attention_layers import WAYS, causal, gradients, inputs, kept_by, layer, plainly, unshifted
from kernel_checks import ON_GPU

FUSED = (
    [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    if ON_GPU
    else [SDPBackend.FLASH_ATTENTION]
)


def assert_same(mine: list[Tensor], right: list[Tensor]) -> None:
    """Bit for bit, but for attention's own gradients on a GPU, which may differ from run to run."""
    for one, other in zip(mine, right, strict=True):
        assert not one.isnan().any()
        if ON_GPU:
            torch.testing.assert_close(one, other)
        else:
            assert torch.equal(one, other)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With an additive mask and heads repeated by a copy, as models do it."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    mask = torch.full((q.shape[2], q.shape[2]), -2.0, device=q.device, dtype=q.dtype).triu(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None].expand(2, 4, -1, -1))


def mathematical(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return causal(q, k, v)


def with_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)


class OfAPackage(torch.autograd.Function):
    """As packages like flash-attention come: a function of their own that keeps what it was given."""

    runs = 0

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        OfAPackage.runs += 1
        ctx.save_for_backward(q, k, v)
        return causal(q, k, v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in ctx.saved_tensors)
            out = causal(q, k, v)
        assert len(ctx.saved_tensors) == 3  # a second look finds them, too
        return torch.autograd.grad(out, (q, k, v), gradient)


ATTENTIONS = {
    "causal": causal,
    "masked": masked,
    "mathematical": mathematical,
    "with dropout": with_dropout,
    "of a package": OfAPackage.apply,
}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("norm", "starts", "fused"), [(False, False, True), (True, True, False)])
def test_nothing_changes_but_memory(device: str, attention: str, norm, starts, fused) -> None:
    given = inputs(device, 33, norm=norm, starts=starts, fused=fused)
    found = []
    for run in (plainly, rebuilt):
        torch.manual_seed(1)  # of dropout
        found.append(gradients(layer(run, given, "definition", ATTENTIONS[attention]), given))
        found[-1].append(torch.rand(3))  # the next random numbers
    assert_same(found[1], found[0])


def test_nothing_changes_with_the_kernels(device: str) -> None:
    given = inputs(device, norm=True, starts=True, fused=True)
    right, mine = (gradients(layer(run, given, "kernels", causal), given) for run in (plainly, rebuilt))
    assert_same(mine, right)


def test_attention_runs_once_and_the_shift_twice(device: str) -> None:
    given = inputs(device)
    OfAPackage.runs, shifts = 0, 0

    def counted(build: Callable[..., tuple[Tensor, ...]], attend: Callable[..., Tensor], *tensors) -> Tensor:
        def build_counted(*read):
            nonlocal shifts
            shifts += 1
            return build(*read)

        return rebuilt(build_counted, attend, *tensors)

    gradients(layer(counted, given, "definition", OfAPackage.apply), given)
    assert (OfAPackage.runs, shifts) == (1, 2)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("way", WAYS)
def test_no_more_is_kept_than_without_shift(device: str, way: str, backend: SDPBackend) -> None:
    given = inputs(device)
    if backend == SDPBackend.EFFICIENT_ATTENTION:  # which takes no grouped queries
        given.q = given.q[:, :, :2].detach().requires_grad_()
    with sdpa_kernel(backend):
        without, plain, mine = (
            kept_by(run)
            for run in (
                lambda: unshifted(given, causal),
                lambda: layer(plainly, given, way, causal),
                lambda: layer(rebuilt, given, way, causal),
            )
        )
    taps = given.k_taps.nbytes + given.v_taps.nbytes
    assert sum(mine.values()) == sum(without.values()) + taps
    assert sum(plain.values()) >= sum(without.values()) + taps + given.k.nbytes + given.v.nbytes


def operators() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """What SDPA runs on a GPU."""
    aten = torch.ops.aten
    return {
        "flash": lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v, 0.1, True)[0],
        "cuDNN": lambda q, k, v: aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.1, True)[0],
        "efficient": lambda q, k, v: aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.1, True
        )[0],
    }


@pytest.mark.parametrize("name", operators())
def test_the_operators_of_gpus_keep_no_more(name: str) -> None:
    attention = operators()[name]
    with FakeTensorMode():
        given = inputs("cpu", norm=False)
        given.q = given.q[:, :, :2].detach().requires_grad_()
        without = kept_by(lambda: unshifted(given, attention))
        mine = kept_by(lambda: layer(rebuilt, given, "definition", attention))
        assert sum(mine.values()) == sum(without.values()) + given.k_taps.nbytes + given.v_taps.nbytes
        found = gradients(layer(rebuilt, given, "definition", attention), given)
    assert [x.shape for x in found[1:]] == [x.shape for x in given.learned()]


def test_what_was_rebuilt_is_dropped_as_soon_as_it_was_used(device: str) -> None:
    given, seen = inputs(device), []

    def watched(build: Callable[..., tuple[Tensor, ...]], attend: Callable[..., Tensor], *tensors) -> Tensor:
        def build_watched(*read):
            built = build(*read)
            seen.extend(StorageWeakRef(x.untyped_storage()) for x in built)
            return built

        return rebuilt(build_watched, attend, *tensors)

    loss = layer(watched, given, "definition", causal).square().sum()
    assert [memory.expired() for memory in seen] == [True, True]
    loss.backward()
    assert [memory.expired() for memory in seen] == [True] * 4
    assert loss.grad_fn is not None  # the graph is still here


def test_taps_that_are_not_handed_over_learn_the_same(device: str) -> None:
    given = inputs(device, 9, norm=True)

    def capturing(
        build: Callable[..., tuple[Tensor, ...]], attend: Callable[..., Tensor], *tensors
    ) -> Tensor:
        k, v, *rest = tensors
        return rebuilt(lambda k, v: build(k, v, *rest), attend, k, v)

    right, mine = (gradients(layer(run, given, "definition", causal), given) for run in (plainly, capturing))
    assert_same(mine, right)


def test_keys_or_values_may_go_through_as_they_are(device: str) -> None:
    given = inputs(device, 9)

    def mixed(run: Callable[..., Tensor]) -> list[Tensor]:
        out = run(
            lambda k, taps: (k * taps[0, 0], k),
            lambda k, v: causal(given.q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
            given.k,
            given.k_taps,
        )
        return [out, *torch.autograd.grad(out.square().sum(), [given.q, given.k, given.k_taps])]

    assert_same(mixed(rebuilt), mixed(plainly))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_around_it(device: str, reentrant: bool) -> None:
    given, outputs = inputs(device, 9), []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = causal(q, k, v)
        outputs.append(StorageWeakRef(out.untyped_storage()))
        return out

    def body(run: Callable[..., Tensor], *learned: Tensor) -> Tensor:
        given.q, given.k, given.v, given.k_taps, given.v_taps = learned
        return layer(run, given, "definition", attention) * 2

    learned = given.learned()
    right, mine = (
        checkpoint(body, run, *learned, use_reentrant=reentrant) for run in (plainly, rebuilt)
    )  # what keeps nothing now makes all again later
    assert all(memory.expired() for memory in outputs)
    assert_same(*(torch_gradients(out, learned) for out in (mine, right)))


def torch_gradients(out: Tensor, learned: list[Tensor]) -> list[Tensor]:
    """By `backward`: reentrant checkpoints know nothing else."""
    for x in learned:
        x.grad = None
    out.square().sum().backward()
    return [out, *(x.grad for x in learned)]


def test_activations_may_be_offloaded(device: str) -> None:
    given = inputs(device, 9)
    right = gradients(layer(plainly, given, "definition", causal), given)
    with save_on_cpu():
        out = layer(rebuilt, given, "definition", causal)
    assert_same(gradients(out, given), right)


def test_what_is_cast_in_the_forward_is_cast_in_the_backward(device: str) -> None:
    given = inputs(device, 9)
    q, turn = given.q.transpose(1, 2).bfloat16(), torch.eye(32, device=device)

    def step(run: Callable[..., Tensor]) -> list[Tensor]:
        with torch.autocast(device, dtype=torch.bfloat16):
            out = run(
                lambda k, v, turn: (k.float() @ turn, v.float() @ turn),
                lambda k, v: causal(q, k.transpose(1, 2), v.transpose(1, 2)),
                given.k,
                given.v,
                turn,
            )
        assert out.dtype == torch.bfloat16
        return [out, *torch.autograd.grad(out.square().sum(), [given.k, given.v])]

    assert_same(step(rebuilt), step(plainly))


def test_the_graph_can_be_kept_for_another_gradient(device: str) -> None:
    given = inputs(device, 9)
    loss = layer(rebuilt, given, "definition", causal).square().sum()
    first = torch.autograd.grad(loss, given.learned(), retain_graph=True)
    assert_same(list(torch.autograd.grad(loss, given.learned())), list(first))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, given.learned())


def test_two_runs_are_bitwise_equal(device: str) -> None:
    given = inputs(device, 40, norm=True, starts=True)
    with sdpa_kernel(SDPBackend.MATH):
        first, second = (gradients(layer(rebuilt, given, "definition", causal), given) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_rows_changed_since_are_noticed(device: str) -> None:
    given = inputs(device, 9)
    given.k = given.k * 1
    loss = layer(rebuilt, given, "definition", causal).square().sum()
    given.k.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_derivative_is_refused(device: str) -> None:
    given = inputs(device, 9)
    loss = layer(rebuilt, given, "definition", mathematical).square().sum()
    (gradient,) = torch.autograd.grad(loss, given.k, create_graph=True)
    with pytest.raises(UnsupportedModelError, match="no second derivative"):
        gradient.sum().backward()


def test_a_gradient_beside_the_output_is_refused(device: str) -> None:
    given, weights = inputs(device, 9), []

    def attend(k: Tensor, v: Tensor) -> Tensor:
        weights.append(k * v)
        return k + v

    rebuilt(lambda k, v: (k * 2, v * 2), attend, given.k, given.v)
    with pytest.raises(UnsupportedModelError, match="none through attention weights"):
        weights[0].sum().backward()


def test_without_a_gradient_it_is_the_plain_call(device: str) -> None:
    given = inputs(device, 9)
    result = torch.zeros(3)
    with torch.no_grad():
        assert rebuilt(lambda k: (k,), lambda k: result, given.k) is result
    assert rebuilt(lambda k: (k,), lambda k: result, given.k.detach()) is result


def test_inside_a_transform_of_torch_func_it_is_the_plain_call(device: str) -> None:
    def loss(run: Callable[..., Tensor], k: Tensor) -> Tensor:
        return run(lambda k: (k * 2,), lambda k: k.exp(), k).sum()

    k = torch.randn(4, device=device)
    right, mine = (torch.func.hessian(lambda k, run=run: loss(run, k))(k) for run in (plainly, rebuilt))
    assert torch.equal(mine, right)


@pytest.mark.parametrize("strict", [False, True])
def test_it_is_exported_as_the_plain_call(device: str, strict: bool) -> None:
    class Layer(torch.nn.Module):
        def forward(self, k: Tensor) -> Tensor:
            return rebuilt(lambda k: (k * 2,), lambda k: k.exp(), k)

    k = torch.randn(4, device=device, requires_grad=True)
    graph = torch.export.export(Layer(), (k,), strict=strict).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.mul.Tensor", "aten.exp.default"]


def compiled(
    function: Callable[..., Tensor], dynamic: bool
) -> tuple[Callable[..., Tensor], list[int], list[int]]:
    """As Inductor partitions it, but without generating code.

    Also the bytes that each forward keeps, and one number for each graph.
    """
    kept, graphs = [], []

    def forward(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*args: Any) -> Any:
            results = graph.forward(*args)
            memories = (x.untyped_storage() for x in results[1:] if isinstance(x, Tensor))
            kept.append(sum({memory._cdata: memory.nbytes() for memory in memories}.values()))
            return results

        graphs.append(len(graph.graph.nodes))
        return make_boxed_func(run)

    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic), kept, graphs


@pytest.mark.parametrize(("way", "times"), [("kernels", [8]), ("definition", [8, 5, 13])])
def test_compiled_it_keeps_no_more_either(device: str, way: str, times: list[int]) -> None:
    step, kept, graphs = compiled(lambda given: layer(rebuilt, given, way, causal), len(times) > 1)
    for time in times:
        given = inputs(device, time)
        mine, right = (gradients(out, given) for out in (step(given), layer(plainly, given, way, causal)))
        for one, other in zip(mine, right, strict=True):
            torch.testing.assert_close(one, other)
        without = kept_by(lambda given=given: unshifted(given, causal))
        assert kept[-1] == sum(without.values()) + given.k_taps.nbytes + given.v_taps.nbytes
    assert len(graphs) == 1


def test_gradient_checkpointing_around_it_compiled(device: str) -> None:
    given = inputs(device, 9)

    def step(run: Callable[..., Tensor]) -> Tensor:
        return checkpoint(lambda: layer(run, given, "definition", causal).square(), use_reentrant=False)

    kept = []
    for run in (plainly, rebuilt):
        compiled_step, bytes_kept, _ = compiled(lambda run=run: step(run), False)
        for one, other in zip(
            gradients(compiled_step(), given), gradients(step(plainly), given), strict=True
        ):
            torch.testing.assert_close(one, other)
        kept += bytes_kept
    assert kept[0] == kept[1]  # the inputs, and the state of the random numbers
