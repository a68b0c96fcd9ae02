"""Weights in the layouts of public models: synthetic checkpoints in exactly those, there and back."""

from __future__ import annotations

import pytest
import torch

import kvshift
from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.models import from_foreign, shift_modules, to_foreign

HIDDEN, QUERIES, KV, HEAD, LAYERS = 32, 4, 2, 8, 2


def random(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def baichuan(prefix: str = "model.", kv: int = KV) -> dict[str, torch.Tensor]:
    """PAPER §1: conv_k and conv_v (1, 1, H_kv, 1, 2), previous first; W_pack holds q, k, v."""
    weights = {f"{prefix}embed_tokens.weight": random(61, HIDDEN), "lm_head.weight": random(61, HIDDEN)}
    for layer in range(LAYERS):
        attention = f"{prefix}layers.{layer}.self_attn"
        weights |= {
            f"{attention}.W_pack.weight": random((QUERIES + 2 * kv) * HEAD, HIDDEN) + layer,
            f"{attention}.o_proj.weight": random(HIDDEN, QUERIES * HEAD),
            f"{attention}.conv_k": torch.rand(1, 1, kv, 1, 2).bfloat16(),
            f"{attention}.conv_v": torch.rand(1, 1, kv, 1, 2).bfloat16(),
            f"{prefix}layers.{layer}.mlp.gate_proj.weight": random(48, HIDDEN),
        }
    return weights


def authors(prefix: str = "model.") -> dict[str, torch.Tensor]:
    """PAPER §1: the 2.9B's K and V of shape (H_kv, 2), [previous, current]."""
    weights = {f"{prefix}embed_tokens.weight": random(61, HIDDEN)}
    for layer in range(LAYERS):
        attention = f"{prefix}layers.{layer}.self_attn"
        weights |= {
            f"{attention}.q_proj.weight": random(QUERIES * HEAD, HIDDEN),
            f"{attention}.k_proj.weight": random(KV * HEAD, HIDDEN),
            f"{attention}.v_proj.weight": random(KV * HEAD, HIDDEN) + 1,
            f"{attention}.o_proj.weight": random(HIDDEN, QUERIES * HEAD),
            f"{attention}.K": torch.rand(KV, 2),
            f"{attention}.V": torch.rand(KV, 2),
        }
    return weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prefix", ["model.", "", "transformer.model."])
def test_baichuan_m1(prefix) -> None:
    theirs = baichuan(prefix)
    ours = from_foreign(theirs)
    for layer in range(LAYERS):
        attention = f"{prefix}layers.{layer}.self_attn"
        packed = theirs[f"{attention}.W_pack.weight"]
        rows = QUERIES * HEAD
        assert torch.equal(ours[f"{attention}.q_proj.weight"], packed[:rows])
        assert torch.equal(ours[f"{attention}.k_proj.weight"], packed[rows : rows + KV * HEAD])
        assert torch.equal(ours[f"{attention}.v_proj.weight"], packed[rows + KV * HEAD :])
        for part, name in (("k", "conv_k"), ("v", "conv_v")):
            taps = ours[f"{attention}.kv_shift.{part}_weight"]
            conv = theirs[f"{attention}.{name}"].float()
            assert taps.dtype == torch.float32
            for head in range(KV):
                assert taps[head, 0] == conv[0, 0, head, 0, 1]  # current
                assert taps[head, 1] == conv[0, 0, head, 0, 0]  # previous
    assert not [name for name in ours if "W_pack" in name or "conv_" in name]
    assert ours["lm_head.weight"] is theirs["lm_head.weight"]
    assert same(to_foreign(ours, "baichuan-m1", dtype=torch.bfloat16), theirs)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_authors_model(prefix) -> None:
    theirs = authors(prefix)
    ours = from_foreign(theirs)
    attention = f"{prefix}layers.1.self_attn"
    assert torch.equal(ours[f"{attention}.kv_shift.k_weight"][:, 0], theirs[f"{attention}.K"][:, 1])
    assert torch.equal(ours[f"{attention}.kv_shift.v_weight"][:, 1], theirs[f"{attention}.V"][:, 0])
    assert same(to_foreign(ours, "kv-shifting"), theirs)


def test_a_bias_is_split_too() -> None:
    theirs = baichuan()
    theirs |= {f"model.layers.{layer}.self_attn.W_pack.bias": torch.arange(64.0) for layer in range(LAYERS)}
    ours = from_foreign(theirs)
    assert torch.equal(ours["model.layers.0.self_attn.k_proj.bias"], torch.arange(32.0, 48.0))
    assert same(to_foreign(ours, "baichuan-m1", dtype=torch.bfloat16), theirs)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["baichuan-m1", "kv-shifting"])
def test_a_model_there_and_back_computes_the_same(shifted, vanilla, tokens, layout) -> None:
    """The foreign formula, written out here from its layout, gives our keys."""
    model = shifted("llama")
    theirs = to_foreign(model.state_dict(), layout)
    again = kvshift.convert(vanilla("llama", seed=1), kvshift.KVShiftConfig(init="paper"))
    again.load_state_dict(from_foreign(theirs))
    assert torch.equal(again(tokens(2, 7)).logits, model(tokens(2, 7)).logits)

    taps = shift_modules(model)[0]
    raw = torch.randn(1, 5, KV, HEAD)
    name = {"baichuan-m1": "conv_k", "kv-shifting": "K"}[layout]
    weight = theirs[f"model.layers.0.self_attn.{name}"].reshape(KV, 2)
    previous = torch.cat((torch.zeros(1, 1, KV, HEAD), raw[:, :-1]), dim=1)
    expected = weight[:, 0, None] * previous + weight[:, 1, None] * raw
    shifted_keys, _, _ = kvshift.kv_shift(raw, raw, taps.k_weight, taps.v_weight)
    assert torch.allclose(shifted_keys, expected, atol=1e-6)


A = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("make", "change", "match"),
    [
        (
            baichuan,
            {f"{A}.conv_k": torch.rand(KV, 2)},
            r"expected floating point of shape \(1, 1, kv_heads, 1, 2",
        ),
        (baichuan, {f"{A}.conv_k": torch.rand(1, 1, KV, 1, 3)}, r"conv_k is .* of shape \(1, 1, 2, 1, 3\)"),
        (baichuan, {f"{A}.conv_k": torch.rand(1, 1, KV, 2, 2)}, "expected floating point"),
        (baichuan, {f"{A}.conv_v": torch.rand(1, 1, 1, 1, 2)}, "conv_k has 2 KV heads and conv_v 1"),
        (baichuan, {f"{A}.conv_k": torch.ones(1, 1, KV, 1, 2, dtype=torch.int32)}, "expected floating point"),
        (baichuan, {f"{A}.conv_v": None}, "self_attn has no conv_v; expected taps in every layer"),
        (baichuan, {f"{A}.conv_k": None, f"{A}.conv_v": None}, "has no conv_k; expected taps in every layer"),
        (baichuan, {f"{A}.o_proj.weight": None}, r"do not divide into queries .*\(missing\)"),
        (
            baichuan,
            {f"{A}.W_pack.weight": random(65, HIDDEN)},
            "W_pack.weight has 65 rows, which do not divide",
        ),
        (
            baichuan,
            {f"{A}.W_pack.weight": random(32, HIDDEN)},
            "W_pack.weight has 32 rows, which do not divide",
        ),
        (
            baichuan,
            {f"{A}.W_pack.weight": random(38, HIDDEN)},
            "W_pack.weight has 38 rows, which do not divide",
        ),
        (baichuan, {f"{A}.W_pack.bias": random(63)}, "W_pack.bias has 63 rows; expected 64"),
        (baichuan, {f"{A}.K": torch.rand(KV, 2)}, "taps of both layouts"),
        (
            authors,
            {f"{A}.K": torch.rand(1, 1, KV, 1, 2)},
            r"expected floating point of shape \(kv_heads, 2\)",
        ),
        (authors, {f"{A}.V": torch.rand(KV, 1)}, "expected floating point"),
        (authors, {f"{A}.V": torch.rand(3, 2)}, "K has 2 KV heads and V 3"),
        (authors, {f"{A}.V": None}, "has no V; expected taps in every layer"),
    ],
)
def test_wrong_shapes(make, change, match) -> None:
    weights = {**make(), **change}
    with pytest.raises(UnsupportedModelError, match=match):
        from_foreign({name: tensor for name, tensor in weights.items() if tensor is not None})


def test_weights_without_taps(vanilla) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"have no taps: expected .*conv_k and conv_v, or K and V"
    ):
        from_foreign(vanilla("llama").state_dict())
    with pytest.raises(UnsupportedModelError, match="have no taps"):
        from_foreign({})
    with pytest.raises(UnsupportedModelError, match="have no taps"):
        to_foreign(vanilla("llama").state_dict(), "kv-shifting")


@pytest.mark.parametrize(
    ("shift", "match"),
    [
        (kvshift.KVShiftConfig(window=3), r"k_weight is of shape \(2, 3\); baichuan-m1 has two free taps"),
        (kvshift.KVShiftConfig(per_channel=True), "two free taps a KV head"),
        (kvshift.KVShiftConfig(init="paper", constraint="gate"), r"k_weight is of shape \(2, 1\)"),
        (kvshift.KVShiftConfig(shift_values=False), "v_weight is missing"),
        (kvshift.KVShiftConfig(shift_queries=True), r"kv_shift\.q_weight has no place in baichuan-m1"),
    ],
)
def test_taps_that_have_no_place_there(shifted, shift, match) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        to_foreign(shifted("llama", shift).state_dict(), "baichuan-m1")


def test_an_unknown_layout(shifted) -> None:
    with pytest.raises(UsageError, match="Unknown layout 'gguf'; known are baichuan-m1, kv-shifting"):
        to_foreign(shifted("llama").state_dict(), "gguf")
