"""The library's quantized caches: what they lose, they lose with KV shift as without."""

from __future__ import annotations

import pytest
import torch
from modes import NEW, draw, generate
from tiny_models import make_shifted, make_vanilla
from transformers import cache_utils

import kvshift
from kvshift.models import shift_modules

GROUPS = {"q_group_size": 32, "residual_length": 3}  # some steps quantize everything again, some nothing
BACKENDS = {
    "quanto": {"nbits": 4, "axis_key": 0, "axis_value": 0, **GROUPS},
    "hqq": {"nbits": 4, "axis_key": 1, "axis_value": 1, **GROUPS},
    "fp8": {},
}
WIDER = {"hidden_size": 64, "head_dim": 16}  # so that a head's rows fill the groups


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_error_is_the_quantizers_alone(family, backend) -> None:
    """An unshifted model whose projections are shifted by hand loses the same in the same cache."""
    if backend == "quanto":
        pytest.importorskip("optimum.quanto")
    elif backend == "hqq":
        pytest.importorskip("hqq")
    elif not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this transformers has no such cache")
    # In float64, so that the last bit of a sum does not decide to which of 16 numbers a value is rounded.
    shifted = make_shifted(family, kvshift.KVShiftConfig(init="paper"), dtype=torch.float64, **WIDER)
    by_hand = shift_by_hand(make_vanilla(family, **WIDER).double(), shifted)
    found, expected = (
        generate(
            model,
            draw(2, 12),
            cache_implementation="quantized",
            cache_config={"backend": backend, **BACKENDS[backend]},  # of which some versions take keys out
        )
        for model in (shifted, by_hand)
    )
    assert torch.allclose(found.exact_logits, expected.exact_logits, rtol=0, atol=1e-4)
    assert torch.equal(found.sequences, expected.sequences)
    exact = generate(shifted, draw(2, 12)).exact_logits
    assert (exact - found.exact_logits)[:, 1].abs().max() > 1e-3  # something was lost
    assert found.exact_logits.shape[1] == NEW


def shift_by_hand(plain, shifted):
    """Hooks keep every raw row outside of the cache, and add the row before to each."""
    for layer, module in zip(plain.model.layers, shift_modules(shifted), strict=True):
        for projection, taps in (
            (layer.self_attn.k_proj, module.k_weight),
            (layer.self_attn.v_proj, module.v_weight),
        ):
            projection.register_forward_hook(_shifting(taps.detach()))
    return plain


def _shifting(taps: torch.Tensor):
    before = []

    def hook(module, inputs, output: torch.Tensor) -> torch.Tensor:
        rows = output.unflatten(-1, (len(taps), -1))
        earlier = torch.cat((before.pop() if before else torch.zeros_like(rows[:, :1]), rows[:, :-1]), 1)
        before.append(rows[:, -1:])
        return (rows * taps[:, None, 0] + earlier * taps[:, None, 1]).flatten(-2)

    return hook
