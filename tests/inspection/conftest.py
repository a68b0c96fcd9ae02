"""Models whose scores are known: built by hand, their weights follow from what they shall do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import kvshift
from kvshift.inspection import Inspection, inspect_model

HEAD_DIM = 64
VOCABULARY = 200
STEADY = torch.tensor([*range(12, 32), *range(44, 64)])
"""Channels of a head that rotary embedding with this base hardly turns: their products do not depend on
distance."""


def _llama(layers: int, heads: int, hidden: int) -> PreTrainedModel:
    """A Llama of zeros, its norms ones; tokens are random signs in the steady channels of the first head."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        signs = torch.randint(0, 2, (VOCABULARY, len(STEADY)), generator=torch.Generator().manual_seed(1))
        model.model.embed_tokens.weight[:, STEADY] = 2.0 * signs - 1
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    return model


def _read_tokens(model: PreTrainedModel, layer: int, head: int, sharpness: float = 4.0) -> None:
    """Gives a head identity projections: it looks for its own token and writes what it finds, strongly."""
    attention = model.model.layers[layer].self_attn
    eye = torch.zeros(HEAD_DIM, model.config.hidden_size)
    eye[STEADY, STEADY] = 1.0
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    with torch.no_grad():
        attention.q_proj.weight[rows] = sharpness * eye
        attention.k_proj.weight[rows] = eye
        attention.v_proj.weight[rows] = eye
        attention.o_proj.weight[:, rows] = 5 * eye.T


@pytest.fixture
def eight_heads() -> Callable[..., PreTrainedModel]:
    """Random Llamas whose eight query heads share four KV heads; a shift's settings make them shifted."""

    def build(*, layers: int = 2, **shift) -> PreTrainedModel:
        config = LlamaConfig(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        return kvshift.convert(model, kvshift.KVShiftConfig(**shift)) if shift else model

    return build


@pytest.fixture
def inspected(eight_heads) -> Callable[..., Inspection]:
    def inspect(*, induction: bool = True, layers: int = 2, **shift) -> Inspection:
        model = eight_heads(layers=layers, **shift)
        return inspect_model(model, "models/mine", induction=induction, sequences=2)

    return inspect


@pytest.fixture
def induction_head() -> Callable[..., PreTrainedModel]:
    """One layer, two heads: with α=(0, 1), β=(1, 0) head 0 is an induction head (PAPER.md §3, theorem 2);
    head 1 attends to everything alike and writes nothing."""

    def build(keys: tuple[float, float] = (0.0, 1.0), values: tuple[float, float] = (1.0, 0.0)):
        model = _llama(layers=1, heads=2, hidden=2 * HEAD_DIM)
        _read_tokens(model, layer=0, head=0)
        kvshift.convert(model, kvshift.KVShiftConfig(init="identity"))
        taps = model.model.layers[0].self_attn.kv_shift
        with torch.no_grad():
            taps.k_weight[0] = torch.tensor(keys)
            taps.v_weight[0] = torch.tensor(values)
        return model

    return build


@pytest.fixture
def two_layer_induction() -> PreTrainedModel:
    """Vanilla, as Elhage et al. 2021 found it: layer 0 copies each token's predecessor beside it, layer 1
    looks there for its own token."""
    copied = STEADY + HEAD_DIM  # where the predecessor is written
    constant = 2 * HEAD_DIM  # a channel that is one for every token
    model = _llama(layers=2, heads=1, hidden=3 * HEAD_DIM)
    first, second = (layer.self_attn for layer in model.model.layers)
    turn = 1e30 ** (-2 * torch.arange(HEAD_DIM // 2) / HEAD_DIM)  # of each pair of channels, for one step
    with torch.no_grad():
        model.model.embed_tokens.weight[:, constant] = 1.0
        for pair in (0, 1):  # a query that is its key one step ago: attention peaks at the previous token
            first.k_proj.weight[pair, constant] = 30.0
            first.q_proj.weight[pair, constant] = 30.0 * torch.cos(turn[pair])
            first.q_proj.weight[pair + HEAD_DIM // 2, constant] = -30.0 * torch.sin(turn[pair])
        first.v_proj.weight[STEADY, STEADY] = 1.0
        first.o_proj.weight[copied, STEADY] = 1.0
        second.q_proj.weight[STEADY, STEADY] = 6.0
        second.k_proj.weight[STEADY, copied] = 1.0
        second.v_proj.weight[STEADY, STEADY] = 1.0
        second.o_proj.weight[STEADY, STEADY] = 5.0
    return model
