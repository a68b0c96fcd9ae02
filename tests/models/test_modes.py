"""Every way of running a model gives the logits of full forwards: families × modes, from one table."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
import transformers
from compiled_modes import COMPILED
from modes import MODES, error
from tiny_models import TINY, make_shifted, make_vanilla

import kvshift
from kvshift.errors import UnsupportedModelError

SHIFT = kvshift.KVShiftConfig(init="paper", window=3)

RECURRENT = ("falcon_h1", "jamba", "qwen3_next")
FALCON = ("falcon", "falcon-alibi", "falcon-many", "falcon-new")
SLIDING = ("gemma2", "gemma3", "gpt_oss", "mistral", "olmo3", "qwen2-sliding", "starcoder2")
ASSISTED = [mode for mode in MODES if mode.startswith("assisted")]
CHUNKS = ["chunked prefill", "continuing from a cache", "own dynamic cache", "own static cache"]

REFUSED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (*(mode for mode in MODES if mode.startswith("packed")), "own 4d mask"),
        (*FALCON, *RECURRENT, "gpt_oss", "llama4", "opt"),
    ),
    "right padded then decoding": (*SLIDING, *RECURRENT),
    **dict.fromkeys(("crop and continue", "prefill column by column"), RECURRENT),
    **dict.fromkeys((*CHUNKS, "static cache chunked prefill", "batch changes"), ("jamba",)),
}
"""Mode → models that are refused with a sentence: the library's own layers would be wrong there."""

NOT_IN_THE_LIBRARY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*ASSISTED, "prompt lookup"), RECURRENT),
    **dict.fromkeys(("own bare dynamic cache", "reset"), RECURRENT),
    "batch changes": ("falcon_h1", "qwen3_next"),
    **dict.fromkeys(
        ("static cache", "static cache left padded", "static cache beam search", "own static cache"),
        ("falcon-alibi",),
    ),
    "static cache chunked prefill": FALCON,
    "left padded forward": ("gpt2",),  # learned positions, counted from the padding on
}
"""Mode → models that do not have it, with KV shift or without."""

STATIC = (
    "static cache",
    "static cache left padded",
    "static cache chunked prefill",
    "static cache beam search",
)
VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))


class Gap(NamedTuple):
    """What the library's first versions that we admit stop at with an error of their own, shifted or not."""

    until: tuple[int, int]
    """The first version without it."""

    error: type[Exception]
    says: str
    modes: dict[str, tuple[str, ...]]
    """Mode → models. Unshifted ones stop at least in the first mode."""


GAPS = (
    # create_masks_for_generate gives every kind of mask a keyword that the chunked one takes since 5.20 only.
    Gap((5, 20), TypeError, "block_sequence_ids", dict.fromkeys(STATIC, ("llama4",))),
)

FLOAT32 = ("left padded forward",)
"""Modes in which the library's rotary embedding, always float32, turns the same tokens by other angles."""


@cache
def model_of(name: str, dtype: torch.dtype, shifted: bool = True):
    # A configuration of these may say how many KV heads there are, but all heads are.
    changes = {"num_key_value_heads": 4} if name in ("gpt2", "gpt_neox", "opt") else {}
    return make_shifted(name, SHIFT, dtype=dtype, **changes) if shifted else make_vanilla(name, **changes)


def test_the_table_names_modes_and_models_that_there_are() -> None:
    for table in (REFUSED, NOT_IN_THE_LIBRARY, *(gap.modes for gap in GAPS)):
        assert set(table) <= set(MODES)
        assert {name for names in table.values() for name in names} <= set(TINY)


@pytest.mark.parametrize("mode", MODES)
def test_mode(architecture, mode) -> None:
    model = model_of(architecture, torch.float32)
    if architecture in REFUSED.get(mode, ()):
        with pytest.raises(UnsupportedModelError):
            error(MODES[mode], model)
    elif architecture in NOT_IN_THE_LIBRARY.get(mode, ()):
        assert not exact(mode, model)
        assert not exact(mode, model_of(architecture, torch.float32, shifted=False))
    elif gap := gap_at(mode, architecture):
        with pytest.raises(gap.error, match=gap.says):
            error(MODES[mode], model)
        with pytest.raises(gap.error, match=gap.says):
            error(MODES[next(iter(gap.modes))], model_of(architecture, torch.float32, shifted=False))
    else:
        assert error(MODES[mode], model) < 1


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in FLOAT32])
def test_mode_in_float64(family, mode) -> None:
    if family not in REFUSED.get(mode, ()) and not gap_at(mode, family):
        assert error(MODES[mode], model_of(family, torch.float64)) < 1


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_mode(family, mode) -> None:
    torch._dynamo.reset()
    assert error(COMPILED[mode], model_of(family, torch.float32)) < 1


def gap_at(mode: str, name: str) -> Gap | None:
    """What stops a model in the installed version of the library."""
    return next((gap for gap in GAPS if gap.until > VERSION and name in gap.modes.get(mode, ())), None)


def exact(mode: str, model) -> bool:
    try:
        return error(MODES[mode], model) < 1
    except (AttributeError, IndexError, RuntimeError, ValueError):  # what the library raises there
        return False
