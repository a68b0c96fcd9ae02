from __future__ import annotations

import math

import pytest
import torch
from tiny_models import make_shifted, make_vanilla
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

import kvshift
from kvshift.errors import UnsupportedModelError, UsageError
from kvshift.inspection.induction import induction_scores, longest


def make(name: str = "llama", *, shifted: bool = False, **changes):
    changes = {"pad_token_id": None, **changes}  # else the library keeps that token's embedding at zero
    if shifted:
        return make_shifted(name, kvshift.KVShiftConfig(), **changes)
    return make_vanilla(name, **changes)


def test_a_hand_built_induction_head_scores_one(induction_head) -> None:
    scores = induction_scores(induction_head())
    head, idle = scores.heads
    assert head.prefix_matching > 0.99
    assert head.copying > 0.99
    assert idle.prefix_matching == pytest.approx(scores.prefix_matching_chance, rel=0.02)
    assert idle.copying == 0  # it writes nothing: no token above another
    assert scores.second_copy_accuracy > 0.99
    assert scores.second_minus_first < -5


def test_the_shift_is_what_makes_it_one(induction_head) -> None:
    scores = induction_scores(induction_head(keys=(1.0, 0.0)))  # looks for its own token: finds itself
    assert scores.heads[0].prefix_matching < 0.01
    assert scores.heads[0].copying > 0.99
    assert scores.second_copy_accuracy < 0.05


def test_a_head_that_reads_the_previous_value_does_not_copy(induction_head) -> None:
    scores = induction_scores(induction_head(values=(0.0, 1.0)))
    assert scores.heads[0].prefix_matching > 0.99
    assert abs(scores.heads[0].copying) < 0.1
    assert scores.second_copy_accuracy < 0.05  # it predicts the token again, not what followed it


def test_a_head_that_lowers_what_it_reads_scores_minus_one(induction_head) -> None:
    model = induction_head()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.neg_()
    assert induction_scores(model).heads[0].copying < -0.99


def test_two_vanilla_layers_make_an_induction_head(two_layer_induction) -> None:
    scores = induction_scores(two_layer_induction)
    previous, induction = scores.heads
    assert previous.prefix_matching < 0.05
    assert induction.prefix_matching > 0.95
    assert induction.copying > 0.95
    assert scores.second_copy_accuracy > 0.95


@pytest.mark.parametrize("shifted", [False, True])
def test_random_models_score_as_chance_does(shifted: bool) -> None:
    model = make(shifted=shifted, num_attention_heads=8, initializer_range=0.02, vocab_size=2000)
    scores = induction_scores(model)
    assert scores.prefix_matching_chance == pytest.approx(
        sum(1 / seen for seen in range(26, 51)) / 25
    )  # 25 to 49 tokens before it, and itself
    for head in scores.heads:
        assert head.prefix_matching == pytest.approx(scores.prefix_matching_chance, rel=0.1)
    if not shifted:
        assert sum(head.copying for head in scores.heads) / len(scores.heads) == pytest.approx(0, abs=0.1)
    assert scores.first_copy_loss == pytest.approx(math.log(2000), rel=0.05)
    assert abs(scores.second_minus_first) < 0.05


@pytest.mark.parametrize("shifted", [False, True])
def test_scores_are_the_attention_weights_the_library_gives(shifted: bool) -> None:
    model = make(shifted=shifted)
    scores = induction_scores(model, sequences=1, length=10, seed=3)
    ordinary = torch.randperm(61, generator=torch.Generator().manual_seed(3))[:10]
    tokens = ordinary.repeat(2)[None]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(tokens, output_attentions=True)
    expected = [
        float(weights[0, head, range(10, 20), range(1, 11)].mean())
        for weights in output.attentions
        for head in range(4)
    ]
    torch.testing.assert_close([head.prefix_matching for head in scores.heads], expected)
    second = functional.cross_entropy(output.logits[0, 10:19], tokens[0, 11:])
    first = functional.cross_entropy(output.logits[0, :9], tokens[0, 1:10])
    assert scores.second_minus_first == pytest.approx(float(second - first), abs=1e-5)


def test_copying_follows_the_norms_on_the_way() -> None:
    """Against the same path written out for Gemma 2, whose attention output has a norm of its own."""
    model = make("gemma2", num_hidden_layers=1, layer_types=None, sliding_window=64)
    inner = model.model.layers[0]
    with torch.no_grad():
        inner.post_attention_layernorm.weight.normal_()
        model.model.norm.weight.normal_()
    scores = induction_scores(model, sequences=1, length=10, seed=3)
    tokens = torch.randperm(61, generator=torch.Generator().manual_seed(3))[:10]
    with torch.no_grad():
        hidden = inner.input_layernorm(model.model.embed_tokens(tokens))
        values = inner.self_attn.v_proj(hidden).view(10, 2, 8)
        for head in range(4):
            written = values[:, head // 2] @ inner.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8].T
            gains = (1 + inner.post_attention_layernorm.weight) * (1 + model.model.norm.weight)
            logits = (written * gains) @ model.lm_head.weight[tokens].T
            own = logits.diagonal()[:, None]
            above = ((own > logits).sum() / (10 * 9)).item()
            assert scores.heads[head].copying == pytest.approx(2 * above - 1, abs=1e-6)


def test_the_seed_decides_and_batches_do_not(monkeypatch) -> None:
    model = make(shifted=True)
    torch.manual_seed(11)
    one = induction_scores(model, sequences=5, length=8, seed=1)
    torch.manual_seed(12)
    assert induction_scores(model, sequences=5, length=8, seed=1) == one
    assert induction_scores(model, sequences=5, length=8, seed=2) != one
    monkeypatch.setattr("kvshift.inspection.induction.BATCH_BYTES", 1)
    single = induction_scores(model, sequences=5, length=8, seed=1)
    for a, b in zip(one.heads, single.heads, strict=True):
        assert a.prefix_matching == pytest.approx(b.prefix_matching, abs=1e-6)
        assert a.copying == pytest.approx(b.copying, abs=1e-6)
    assert single.second_copy_loss == pytest.approx(one.second_copy_loss, abs=1e-5)


def test_the_model_is_as_it_was() -> None:
    model = make(shifted=True).train()
    before = (model.config._attn_implementation, torch.random.get_rng_state().clone())
    induction_scores(model, sequences=2, length=5)
    assert model.training
    assert model.config._attn_implementation == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_is_as_it_was_after_a_failure(monkeypatch) -> None:
    model = make()
    before = model.config._attn_implementation
    model.lm_head.register_forward_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        induction_scores(model, sequences=2, length=5)
    assert model.config._attn_implementation == before


def _fail(*args) -> None:
    raise ZeroDivisionError


def test_a_start_token_stands_before_the_copies() -> None:
    model = make(bos_token_id=5)
    scores = induction_scores(model, sequences=3, length=10)
    assert scores.start_token == 5
    assert scores.prefix_matching_chance == pytest.approx(sum(1 / seen for seen in range(12, 22)) / 10)


def test_what_does_not_fit_is_refused() -> None:
    model = make(max_position_embeddings=32)
    assert longest(model) == 15
    with pytest.raises(UsageError, match="expected 2 to 15"):
        induction_scores(model, length=16)
    with pytest.raises(UsageError, match="expected 2 to 15"):
        induction_scores(model, length=1)
    with pytest.raises(UsageError, match="1 or more"):
        induction_scores(model, sequences=0)
    assert longest(make("mistral", sliding_window=7)) == 7


def test_an_attention_that_cannot_be_seen_is_refused() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("mpt", d_model=32, n_heads=4, n_layers=1, vocab_size=61, max_seq_len=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="--no-induction"):
        induction_scores(model)


def test_copying_leaves_biases_out_and_the_start_token_too() -> None:
    """Against the same path written out for GPT-2, whose every projection and norm has a bias."""
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "n_inner": 48}
    model = make("gpt2", bos_token_id=60, **shape)
    inner = model.transformer.h[0]
    with torch.no_grad():
        for bias in (inner.attn.c_proj.bias, model.transformer.ln_f.bias):
            bias.normal_(0, 10)
        model.transformer.ln_f.weight.normal_()
    scores = induction_scores(model, sequences=1, length=10, seed=3)
    tokens = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:10]
    with torch.no_grad():
        places = model.transformer.wpe.weight[1:11]  # the start token is in place 0
        hidden = inner.ln_1(model.transformer.wte(tokens) + places)
        values = inner.attn.c_attn(hidden)[:, 64:].view(10, 4, 8)
        for head in range(4):
            written = values[:, head] @ inner.attn.c_proj.weight[8 * head : 8 * head + 8]
            centred = written - written.mean(-1, keepdim=True)
            logits = (centred * model.transformer.ln_f.weight) @ model.lm_head.weight[tokens].T
            above = (logits.diagonal()[:, None] > logits).sum().item() / (10 * 9)
            assert scores.heads[head].copying == pytest.approx(2 * above - 1, abs=1e-6)
