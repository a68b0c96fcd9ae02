"""Fixtures on the tiny models of `helpers/tiny_models.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from tiny_models import TINY, VOCABULARY, make_config, make_shifted, make_vanilla
from torch import Tensor
from transformers import PreTrainedModel

from kvshift.kernels import dispatch

FAMILIES = ("llama", "mistral", "qwen3")  # no norm, sliding window, norm of the keys: the depth of the tests


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=sorted(TINY))
def architecture(request) -> str:
    """Every supported family and variant, for tests of their width."""
    return request.param


@pytest.fixture
def vanilla() -> Callable[..., PreTrainedModel]:
    return make_vanilla


@pytest.fixture
def shifted() -> Callable[..., PreTrainedModel]:
    return make_shifted


@pytest.fixture
def config() -> Callable:
    return make_config


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    def draw(*shape: int, seed: int = 7) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))

    return draw


class Shifted(NamedTuple):
    """One call of the shift in a model: what went in and what came out."""

    rows: Tensor
    taps: Tensor
    out: Tensor


@pytest.fixture
def shifts(monkeypatch) -> Iterator[list[Shifted]]:
    """Every shift that a model makes from now on, in order; none runs as one piece with what follows."""
    made, original = [], dispatch.shift

    def shift(rows: Tensor, taps: Tensor, **options) -> tuple[Tensor, Tensor | None]:
        out, state = original(rows, taps, **options)
        made.append(Shifted(rows, taps, out))
        return out, state

    monkeypatch.setattr(dispatch, "shift", shift)
    with dispatch.forced("definition"):
        yield made


@pytest.fixture
def full_logits() -> Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]:
    """Logits of one unpadded sequence, without cache and mask: what every other way must equal."""

    @torch.no_grad()
    def run(model: PreTrainedModel, sequence: torch.Tensor) -> torch.Tensor:
        return model(sequence.view(1, -1), use_cache=False).logits[0]

    return run
