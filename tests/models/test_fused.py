"""Attention layers as one piece: the same logits and gradients as over shifted projections, in every mode."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from compiled_modes import COMPILED
from modes import MODES, draw, error
from tiny_models import TINY, make_shifted, make_vanilla
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code
from transformers import PreTrainedModel, StaticCache

import kvshift
from kvshift.errors import UsageError
from kvshift.kernels import dispatch
from kvshift.models import fused, recompute_shift
from kvshift.models.families import FAMILIES

pytest.importorskip("triton", reason="Triton is not installed")
SHIFT = kvshift.KVShiftConfig(init="paper", window=3)
FUSED = {family.model_type for family in FAMILIES if family.rotary is not None}
MODELS = [name for name, (model_type, _) in TINY.items() if model_type in FUSED and name != "cohere-norm"]
LAYERS = {"smollm3": 1}
"""Of two layers those with rotary embedding."""
PARTITIONED = "aot_eager_decomp_partition"  # as Inductor divides forward and backward
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there through Triton's interpreter


@pytest.fixture(autouse=True)
def on_a_gpu_if_there_is_one() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def build(
    name: str, shift: kvshift.KVShiftConfig = SHIFT, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    with torch.device("cpu"):
        return make_shifted(name, shift).to(DEVICE, dtype)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often rows went through each of the two operators."""
    counts = {"_rotated": 0, "_decoded": 0}

    def counted(name: str):
        original = getattr(fused, name)

        def call(*args):
            counts[name] += 1
            return original(*args)

        return call

    for name in counts:
        monkeypatch.setattr(fused, name, counted(name))
    return counts


def training_step(model: PreTrainedModel, backend: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of two packed documents and a padded one."""
    model.zero_grad()
    tokens = draw(1, 7)
    with dispatch.forced(backend):
        out = model(
            tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), labels=tokens, use_cache=False
        )
        out.loss.backward()
    return out.logits.detach(), {name: x.grad.clone() for name, x in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@torch.no_grad()
def test_an_identity_start_keeps_its_bits_where_nobody_forced_the_kernels(
    name: str, dtype: torch.dtype, ran: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dispatch.FASTEST, DEVICE, "triton")
    with torch.device("cpu"):
        plain = make_vanilla(name)
    plain = plain.to(DEVICE, dtype)
    tokens = draw(2, 9)

    def everything() -> list[torch.Tensor]:
        full, cached = plain(tokens, use_cache=False), plain(tokens[:, :8], use_cache=True)
        return [
            full.logits,
            cached.logits,
            plain(tokens[:, 8:], past_key_values=cached.past_key_values).logits,
        ]

    before = everything()
    kvshift.convert(plain, init="identity")
    assert all(map(torch.equal, everything(), before))
    assert ran["_rotated"] == 0
    with dispatch.forced("triton"):
        plain(tokens, use_cache=False)
    assert ran["_rotated"] == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_the_family_s_own(name: str, ran: dict[str, int]) -> None:
    model = build(name)
    found, gradients = training_step(model, "triton")
    assert ran["_rotated"] == LAYERS.get(name, 2)
    expected, right = training_step(model, "definition")
    assert ran["_rotated"] == LAYERS.get(name, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
    for parameter, gradient in gradients.items():
        assert (gradient - right[parameter]).norm() <= 1e-5 * right[parameter].norm() + 1e-8, parameter


@pytest.mark.parametrize(
    "shift",
    [
        kvshift.KVShiftConfig(init="paper", shift_values=False),
        kvshift.KVShiftConfig(init="paper", shift_keys=False, per_channel=True),
        kvshift.KVShiftConfig(init="paper", constraint="gate"),
    ],
    ids=["keys", "values-per-channel", "gate"],
)
def test_every_kind_of_shift(shift: kvshift.KVShiftConfig, ran: dict[str, int]) -> None:
    model = build("llama", shift)
    found, gradients = training_step(model, "triton")
    expected, right = training_step(model, "definition")
    assert ran["_rotated"] == 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
    for parameter, gradient in gradients.items():
        assert (gradient - right[parameter]).norm() <= 1e-5 * right[parameter].norm() + 1e-8, parameter


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_recomputing_the_shift_gives_the_same_gradients_and_keeps_two_tensors_less(name: str) -> None:
    # On a GPU, attention of float32 and grouped queries repeats keys and values, and keeps the copies.
    model = build(name, dtype=torch.float32 if DEVICE == "cpu" else torch.bfloat16)
    found, gradients = training_step(model, "triton")
    without = kept_bytes(model)
    recompute_shift(model)
    again, recomputed = training_step(model, "triton")
    assert torch.equal(found, again)
    for parameter, gradient in gradients.items():
        if DEVICE == "cpu":
            assert torch.equal(recomputed[parameter], gradient)
        else:  # whose attention adds its gradients up in any order
            assert (recomputed[parameter] - gradient).norm() <= 1e-2 * gradient.norm()
    layers, row = 2, 2 * 8 * model.dtype.itemsize  # two KV heads of eight
    assert without - kept_bytes(model) == layers * 2 * 7 * row
    recompute_shift(model, False)
    assert kept_bytes(model) == without


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_copies_for_grouped_queries_are_recomputed_too(name: str) -> None:
    """With a mask, as every compiled model has, the library's attention copies keys and values."""
    model, mask = build(name), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    found, gradients = training_step(model, "triton")
    without = kept_bytes(model, mask)
    recompute_shift(model)
    again, recomputed = training_step(model, "triton")
    assert torch.equal(found, again)
    for parameter, gradient in gradients.items():
        assert (recomputed[parameter] - gradient).norm() <= 1e-6 * gradient.norm()
    layers, row = 2, 4 * 8 * model.dtype.itemsize  # four heads of eight, as the queries have
    assert without - kept_bytes(model, mask) == layers * 2 * 7 * row


def test_compiled_such_copies_are_not_kept_either() -> None:
    """The library gives every compiled model a mask. Less is kept than without KV shift."""
    torch._dynamo.reset()
    plain = make_vanilla("llama").to(DEVICE)
    without = kept_bytes(torch.compile(plain, fullgraph=True, backend=PARTITIONED))
    model = build("llama")
    recompute_shift(model)
    kept = kept_bytes(torch.compile(model, fullgraph=True, backend=PARTITIONED))
    layers, row = 2, 8 * model.dtype.itemsize
    # Without: four heads of keys and of values. With: two, and the taps, starts and angles.
    assert kept < without - layers * 2 * 7 * row


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_recomputing_compiles_for_any_length(name: str) -> None:
    model = build(name)
    recompute_shift(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 9):
        found = []
        for run, backend in ((compiled, "triton"), (model, "definition")):
            model.zero_grad()
            with dispatch.forced(backend):
                run(draw(2, length), labels=draw(2, length), use_cache=False).loss.backward()
            found.append({name: x.grad.clone() for name, x in model.named_parameters()})
        for parameter, gradient in found[0].items():
            right = found[1][parameter]
            assert (gradient - right).norm() <= 1e-5 * right.norm() + 1e-8, parameter


def kept_bytes(model, mask: torch.Tensor | None = None) -> int:
    """What a forward keeps for its backward, each piece of memory counted once."""
    found = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with dispatch.forced("triton"), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(draw(1, 7), attention_mask=mask, use_cache=False).logits
    del logits
    return sum(size for size, _ in found.values())


def test_recomputing_needs_a_model_with_kv_shift() -> None:
    with pytest.raises(UsageError, match="convert it first"):
        recompute_shift(make_vanilla("llama"))


@pytest.mark.parametrize(
    ("name", "mode", "decoded"),
    [
        ("llama", "chunked prefill", 0),
        ("llama", "right padded then decoding", 0),
        ("llama", "static cache left padded", 8),
        ("qwen3", "static cache", 8),
        ("mistral", "static cache", 0),  # its windows slide
        ("phi3", "greedy", 0),
    ],
)
def test_modes(name: str, mode: str, decoded: int, ran: dict[str, int]) -> None:
    model = build(name)
    with dispatch.forced("triton"):
        assert error(MODES[mode], model) < 1
    assert ran["_rotated"] > 0
    if DEVICE == "cpu":
        assert ran["_decoded"] == decoded
    else:  # where the library compiles the steps, and replays them
        assert bool(ran["_decoded"]) == bool(decoded)


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled(mode: str) -> None:
    model = build("llama")
    with dispatch.forced("triton"):
        assert error(COMPILED[mode], model) < 1


def test_what_the_operators_do_not_do_goes_the_family_s_own_way(ran: dict[str, int]) -> None:
    tokens = draw(1, 5)
    with dispatch.forced("definition"):
        build("llama")(tokens)
    with dispatch.forced("triton"):
        build("llama", kvshift.KVShiftConfig(init="paper", shift_queries=True))(tokens)
        build("cohere-norm")(tokens)
        build("opt")(tokens)
        normed = build("qwen3")
        for layer in normed.model.layers:
            layer.self_attn.k_norm = torch.nn.Identity()
        normed(tokens)
    assert ran == {"_rotated": 0, "_decoded": 0}


@torch.no_grad()
def test_compiled_decoding_computes_the_angles_once_for_all_layers() -> None:
    model, tokens = build("llama"), draw(2, 5)
    torch._dynamo.reset()
    with dispatch.forced("triton"), inductor_config.patch(force_disable_caches=True):
        cache = StaticCache(config=model.config, max_cache_len=8)
        model(tokens, past_key_values=cache, use_cache=True)
        step = torch.compile(model, fullgraph=True, dynamic=False)
        position = torch.full((2, 1), 5)
        _, code = run_and_get_code(step, tokens[:, :1], position_ids=position, past_key_values=cache)
    angles = re.findall(
        r"kvshift\.decode\.default\(.*?(buf\d+), (buf\d+), reinterpret_tensor\(\w+, \(1, \)", code[0]
    )
    assert len(angles) == 2
    assert angles[0] == angles[1]
