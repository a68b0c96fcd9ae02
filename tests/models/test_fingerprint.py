from __future__ import annotations

import copy

import pytest
import torch

from kvshift.errors import UnsupportedModelError
from kvshift.models.fingerprint import fingerprint
from kvshift.models.model import ShiftedBase


def known_by(model) -> str:
    return fingerprint(body_of(model))


def body_of(model):
    return next(module for module in model.modules() if isinstance(module, ShiftedBase))


def test_equal_weights_are_known_by_one_name(architecture, shifted, tmp_path) -> None:
    model = shifted(architecture)
    name = known_by(model)
    assert name.startswith(f"{type(body_of(model)).__name__}@")
    assert known_by(copy.deepcopy(model)) == name
    model.save_pretrained(tmp_path)
    assert known_by(type(model).from_pretrained(tmp_path)) == name
    assert known_by(shifted(architecture, seed=5)) != name


def test_weights_that_change_are_noticed(family, shifted, tokens) -> None:
    model = shifted(family)
    name = known_by(model)
    assert known_by(model) == name
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tokens(1, 9), labels=tokens(1, 9), use_cache=False).loss.backward()
    optimizer.step()
    stepped = known_by(model)
    assert stepped != name
    model.load_state_dict(shifted(family).state_dict())
    assert known_by(model) == name


def test_it_is_not_computed_again_for_every_token(family, shifted, tokens, monkeypatch) -> None:
    model = shifted(family)
    cache = model(tokens(1, 9), use_cache=True).past_key_values
    monkeypatch.setattr("kvshift.models.fingerprint._sample", lambda weight: pytest.fail("asked again"))
    model(tokens(1, 1), past_key_values=cache)


def test_weights_without_values_and_of_inference_mode_have_a_name(family, shifted, tokens) -> None:
    model = shifted(family)
    with torch.device("meta"):
        assert "@" in known_by(type(model)(model.config))
    with torch.inference_mode():
        model = shifted(family)
        assert model.generate(tokens(1, 3), max_new_tokens=3).shape == (1, 6)


@pytest.mark.parametrize("time", [1, 3])
@torch.no_grad()
def test_a_cache_of_another_model_is_refused(family, shifted, tokens, time) -> None:
    """Of the same shapes, so that only the weights tell."""
    model, other = shifted(family), shifted(family, seed=5)
    cache = other(tokens(1, 9), use_cache=True).past_key_values
    with pytest.raises(
        UnsupportedModelError, match=r"filled by another model: by KVShift\w+Model@\w+, and this"
    ):
        model(tokens(1, time), past_key_values=cache)
    copied = copy.deepcopy(cache)
    with pytest.raises(UnsupportedModelError, match="filled by another model"):
        model(tokens(1, time), past_key_values=copied)
    expected = other(tokens(1, time), past_key_values=copied).logits  # it is as it was
    assert torch.equal(other(tokens(1, time), past_key_values=cache).logits, expected)
    cache.reset()
    found = model(tokens(1, 9), past_key_values=cache).logits
    assert torch.allclose(found, model(tokens(1, 9), use_cache=False).logits, atol=1e-5)


def test_a_model_of_equal_weights_goes_on_with_a_cache(family, shifted, tokens) -> None:
    cache = shifted(family)(tokens(1, 9), use_cache=True).past_key_values
    assert shifted(family)(tokens(1, 1), past_key_values=cache).logits.shape[1] == 1
