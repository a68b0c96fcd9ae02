"""Attention layers as one piece on a CPU: the family's own logits and gradients, or the family's own way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from modes import draw
from tiny_models import TINY, make_shifted, make_vanilla
from transformers import PreTrainedModel

import kvshift
from kvshift.kernels import dispatch
from kvshift.models import fused, recompute_shift
from kvshift.models.families import FAMILIES

SHIFT = kvshift.KVShiftConfig(init="paper", window=3)
FUSED = {family.model_type for family in FAMILIES if family.rotary is not None and family.rotary.norm is None}
MODELS = [name for name, (model_type, _) in TINY.items() if model_type in FUSED and name != "cohere-norm"]
LAYERS = {"smollm3": 1}
"""Of two layers those with rotary embedding."""


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """By which path each layer ran as one piece."""
    found, original = [], fused.forward

    def forward(attention, path, *args, **kwargs):
        found.append(path)
        return original(attention, path, *args, **kwargs)

    monkeypatch.setattr(fused, "forward", forward)
    return found


def training_step(model: PreTrainedModel, backend: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of packed documents."""
    model.zero_grad()
    tokens = draw(2, 7)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 0]])
    with dispatch.forced(backend):
        out = model(tokens, position_ids=positions, labels=tokens, use_cache=False)
        out.loss.backward()
    return out.logits.detach(), {name: x.grad.clone() for name, x in model.named_parameters()}


def check(model: PreTrainedModel, paths: list[str], layers: int = 2) -> None:
    found, gradients = training_step(model, "auto")
    assert paths == ["cpu"] * layers
    expected, right = training_step(model, "definition")
    assert len(paths) == layers
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    for name, gradient in gradients.items():
        assert (gradient - right[name]).norm() <= 5e-6 * right[name].norm(), name


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_the_familys_own(name: str, paths: list[str]) -> None:
    check(make_shifted(name, SHIFT).train(), paths, LAYERS.get(name, 2))


@pytest.mark.parametrize(
    "shift",
    [
        kvshift.KVShiftConfig(init="paper", shift_values=False),
        kvshift.KVShiftConfig(init="paper", shift_keys=False, per_channel=True),
        kvshift.KVShiftConfig(init="paper", constraint="gate"),
        kvshift.KVShiftConfig(init="paper", window=4, per_channel=True),
    ],
    ids=["keys", "values-per-channel", "gate", "four-per-channel"],
)
def test_every_kind_of_shift(shift: kvshift.KVShiftConfig, paths: list[str]) -> None:
    check(make_shifted("llama", shift), paths)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_identity_start_runs_as_one_piece_and_keeps_its_bits(
    name: str, attention: str, paths: list[str]
) -> None:
    """Only Triton's rotation rounds otherwise than the library's."""
    model, tokens = make_vanilla(name), draw(2, 7)
    model.set_attn_implementation(attention)
    expected = model(tokens, use_cache=False).logits
    kvshift.convert(model, init="identity")
    assert torch.equal(model(tokens, use_cache=False).logits, expected)
    assert paths == ["cpu"] * LAYERS.get(name, 2)


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("time", [1, 2, 3])
@pytest.mark.parametrize("documents", ["one", "a token each"])
def test_documents_shorter_than_the_window(window: int, time: int, documents: str, paths: list[str]) -> None:
    model, tokens = make_shifted("llama", kvshift.KVShiftConfig(init="paper", window=window)), draw(2, time)
    positions = (torch.arange(time) if documents == "one" else torch.zeros(time).long()).expand(2, -1)

    def run(backend: str) -> tuple[torch.Tensor, ...]:
        with dispatch.forced(backend):
            logits = model(tokens, position_ids=positions, use_cache=False).logits
        return logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))

    for mine, exact in zip(run("auto"), run("definition"), strict=True):
        assert (mine - exact).norm() <= 5e-6 * exact.norm()
    assert paths == ["cpu"] * 2


def test_checkpointed_gradients_are_the_same(paths: list[str]) -> None:
    model = make_shifted("llama", SHIFT).train()
    _, expected = training_step(model, "auto")
    model.gradient_checkpointing_enable()
    _, found = training_step(model, "auto")
    assert paths == ["cpu"] * 6
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_recomputing_changes_nothing(paths: list[str]) -> None:
    model = make_shifted("llama", SHIFT)
    _, expected = training_step(model, "auto")
    recompute_shift(model)
    _, found = training_step(model, "auto")
    assert paths == ["cpu"] * 4
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_second_derivative_is_the_familys_own() -> None:
    model, tokens = make_shifted("llama", SHIFT), draw(1, 5)
    model.set_attn_implementation("eager")  # the other has none on a CPU
    taps = model.model.layers[0].self_attn.kv_shift.k_weight

    def penalty(backend: str) -> torch.Tensor:
        with dispatch.forced(backend):
            loss = model(tokens, labels=tokens, use_cache=False).loss
            (first,) = torch.autograd.grad(loss, taps, create_graph=True)
            return torch.autograd.grad(first.square().sum(), taps)[0]

    torch.testing.assert_close(penalty("auto"), penalty("definition"), rtol=1e-4, atol=1e-7)


def test_a_prompt_fills_the_cache_as_the_familys_own_does(paths: list[str]) -> None:
    model, tokens = make_shifted("llama", SHIFT), draw(1, 8)
    with torch.no_grad():
        full = model(tokens, use_cache=False).logits
        paths.clear()
        prompt = model(tokens[:, :5], use_cache=True)
        assert paths == ["cpu"] * 2
        rest = model(tokens[:, 5:], past_key_values=prompt.past_key_values).logits
        assert paths == ["cpu"] * 2  # rows after others are not its business
    torch.testing.assert_close(torch.cat((prompt.logits, rest), dim=1), full, rtol=0, atol=1e-5)


def autocast(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens)


LEFT = {
    "norms": lambda tokens: make_shifted("qwen3", SHIFT)(tokens),
    "queries": lambda tokens: make_shifted("llama", kvshift.KVShiftConfig(init="paper", shift_queries=True))(
        tokens
    ),
    "another family": lambda tokens: make_shifted("opt", SHIFT)(tokens),
    "double precision": lambda tokens: make_shifted("llama", SHIFT).double()(tokens),
    "half precision": lambda tokens: make_shifted("llama", SHIFT).bfloat16()(tokens),
    "autocast": lambda tokens: autocast(make_shifted("llama", SHIFT), tokens),
    "compiled": lambda tokens: torch.compile(make_shifted("llama", SHIFT), backend="eager", fullgraph=True)(
        tokens, use_cache=False
    ),
    "exported": lambda tokens: torch.export.export(
        make_shifted("llama", SHIFT), (tokens,), {"use_cache": False}, strict=False
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_it_does_not_do_goes_the_familys_own_way(name: str, paths: list[str]) -> None:
    with torch.no_grad():
        LEFT[name](draw(1, 5))
    assert paths == []
