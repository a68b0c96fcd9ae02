"""Every supported family, shifted and not: what is watched is what the library computes."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch

from kvshift.errors import UnsupportedModelError
from kvshift.inspection import inspect_model
from kvshift.inspection.induction import longest
from kvshift.inspection.inspect import _heads
from kvshift.inspection.watch import attention_layers, find_ways, projection, to_logits, watching

GATED = {"qwen3_next"}  # a gate multiplies what attention gives before the output projection

# Before 5.21 the library ran Gemma 2 through sdpa, which drops the cap of the scores: unshifted logits are
# then 8e-3 from those of its eager attention, and 2e-6 without a cap. Eager is what is watched.
SDPA_WITHOUT_CAP = {"gemma2"}


REFUSED = {"falcon-alibi"}


@pytest.fixture(params=sorted(set(tiny.TINY) - REFUSED))
def architecture(request) -> str:
    return request.param


@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_weights_times_values_is_what_the_layer_gives(architecture: str, shifted: bool) -> None:
    model = (tiny.make_shifted if shifted else tiny.make_vanilla)(architecture)
    if architecture in SDPA_WITHOUT_CAP and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")
    tokens = torch.randint(1, tiny.VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = model(tokens, use_cache=False).logits
    before = model.config._attn_implementation
    seen, projected = {}, {}
    hooks = [
        projection(attention).register_forward_pre_hook(
            lambda module, inputs, layer=layer: projected.update({layer: inputs[0]})
        )
        for layer, (_, attention) in attention_layers(model).items()
    ]
    with watching(model, lambda layer, weights, values: seen.update({layer: (weights, values)})):
        watched = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(watched, plain, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == before
    torch.testing.assert_close(model(tokens, use_cache=False).logits, plain, rtol=0, atol=0)
    for _, attention in attention_layers(model).values():
        assert "_split_heads" not in vars(attention)

    assert seen.keys() == projected.keys() != set()
    for layer, (weights, values) in seen.items():
        assert weights.shape[2:] == (7, 7)
        assert not weights.triu(1).any()
        if architecture not in GATED:
            every = values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)
            given = (weights @ every).transpose(1, 2).flatten(2)
            torch.testing.assert_close(given, projected[layer], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_way_to_the_logits_is_the_models_own(architecture: str) -> None:
    """The last layer's output projection moves the logits exactly as the way says, all else left alone."""
    model = tiny.make_vanilla(architecture)
    tokens = torch.randint(1, tiny.VOCABULARY, (1, 7), generator=torch.Generator().manual_seed(0))
    ways = find_ways(model, tokens)
    streams = {}
    end = to_logits(model)
    assert len(end) == 1
    hook = end[0].register_forward_hook(lambda module, inputs, output: streams.update(end=output))
    model(tokens, use_cache=False)
    hook.remove()
    scale = getattr(model.config, "logit_scale", None) or 1 / getattr(model.config, "logits_scaling", 1)
    capped = getattr(model.config, "final_logit_softcapping", None)
    logits = model.get_output_embeddings()(streams["end"]) * (
        scale if model.config.model_type in ("cohere", "granite") else 1
    )
    if model.config.model_type == "falcon_h1":
        logits = logits * model.config.lm_head_multiplier
    if capped:
        logits = torch.tanh(logits / capped) * capped
    torch.testing.assert_close(model(tokens, use_cache=False).logits, logits, rtol=1e-4, atol=1e-4)
    with_norm = architecture.startswith(("gemma", "olmo"))
    for way in ways.values():
        assert any("Norm" in type(part).__name__ for part in way.after) == with_norm


@pytest.mark.parametrize("shifted", [False, True])
def test_every_family_is_inspected(architecture: str, shifted: bool) -> None:
    model = (tiny.make_shifted if shifted else tiny.make_vanilla)(architecture)
    found = inspect_model(model, sequences=2)
    assert found.induction.length == min(25, longest(model))
    assert len(found.induction.heads) == found.model.query_heads * found.model.attention_layers
    for head in found.induction.heads:
        assert 0 <= head.prefix_matching <= 1
        assert -1 <= head.copying <= 1
    assert (found.taps is not None) == shifted
    if shifted:
        assert len(found.taps.heads) == found.model.kv_heads * found.model.attention_layers
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_falcons_doubled_positions_are_refused() -> None:
    """The library's own two ways of attention disagree there; the taps can be read all the same."""
    model = tiny.make_shifted("falcon-alibi")
    with pytest.raises(UnsupportedModelError, match="--no-induction"):
        inspect_model(model)
    assert len(inspect_model(model, induction=False).taps.heads) == 2


def test_heads_of_a_models_own_attention_are_as_its_configuration_says() -> None:
    class OwnAttention(torch.nn.Module):
        """Of a family's model_type, but not as the family's layer projects."""

        def __init__(self, layer: int) -> None:
            super().__init__()
            self.layer_idx = layer
            self.o_proj = torch.nn.Linear(2, 2)

    model = tiny.make_vanilla("llama")
    for number, layer in enumerate(model.model.layers):
        layer.self_attn = OwnAttention(number)
    assert len(attention_layers(model)) == len(model.model.layers)
    assert _heads(model) == (model.config.num_attention_heads, model.config.num_key_value_heads)
