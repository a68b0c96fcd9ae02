"""What only a GPU can show: caches that are offloaded over real streams, and every way of running in float32.

Without one these tests are skipped; `benchmarks/modes.py --device cuda` is the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from modes import MODES, draw, each, error, generate, in_pieces, made_logits
from tiny_models import make_shifted
from transformers import DynamicCache

import kvshift
from kvshift.errors import UnsupportedModelError

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
SHIFT = kvshift.KVShiftConfig(init="paper", window=3)


@pytest.fixture(autouse=True)
def drawn_on_the_gpu() -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(before)


def on_the_gpu(family: str):
    with torch.device("cpu"):
        return make_shifted(family, SHIFT).cuda()


@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_offloaded_generation(family, implementation) -> None:
    if implementation == "offloaded_static" and family == "mistral":
        pytest.skip("the library leaves sliding layers where they are, and then finds nothing to offload")

    def mode(model):
        # Not compiled: with 5.17 and PyTorch 2.11 the process dies there, with KV shift or without.
        made = generate(model, draw(2, 6), cache_implementation=implementation, disable_compile=True)
        assert made.past_key_values.offloading
        return made_logits(model, made, [6, 6])

    assert error(mode, on_the_gpu(family)) < 1


def test_an_offloaded_cache_in_pieces(family) -> None:
    def mode(model):
        batch, cache = draw(2, 9), DynamicCache(config=model.config, offloading=True)
        return each(model, in_pieces(model, cache, batch, [3, 1, 5]), batch)

    model = on_the_gpu(family)
    for _ in range(100):  # what is brought back too early is wrong now and then
        assert error(mode, model) < 1


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_running(family, mode) -> None:
    if family == "mistral" and mode == "right padded then decoding":  # not with sliding windows
        with pytest.raises(UnsupportedModelError):
            error(MODES[mode], on_the_gpu(family))
    else:
        assert error(MODES[mode], on_the_gpu(family)) < 1
