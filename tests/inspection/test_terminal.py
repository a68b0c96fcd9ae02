from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

import kvshift
from kvshift.inspection import inspect_model
from kvshift.inspection.terminal import print_inspection


def shown(width: int = 80, *, layers: int = 2, induction: bool = True, **shift) -> str:
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if shift:
        kvshift.convert(model, kvshift.KVShiftConfig(**shift))
    found = inspect_model(model, "models/mine", induction=induction, sequences=2)
    file = io.StringIO()
    print_inspection(found, Console(file=file, width=width, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "shift",
    [
        {"init": "structured"},
        {"init": "paper", "window": 4, "per_channel": True},
        {"init": "structured", "shift_values": False},
        {"init": "identity", "shift_queries": True, "shift_keys": False, "shift_values": False},
        {},
    ],
    ids=str,
)
def test_it_fits_and_needs_no_colour(width: int, shift) -> None:
    text = shown(width, **shift)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("one before it, …", "")  # nothing is cut off
    assert "\x1b" not in text
    assert "models/mine" in text


def test_the_structured_start_by_letters() -> None:
    lines = [line.rstrip() for line in shown(init="structured").splitlines()]
    assert [line.split()[-4:] for line in lines if line.endswith("I M · ·")] == [["I", "M", "·", "·"]] * 2
    quadrants = {line.split()[0]: line.split()[-3:] for line in lines if "%" in line and "key" in line}
    assert quadrants["I"] == ["2", "25%", "13%"]
    assert quadrants["·"] == ["4", "50%", "39%"]
    assert quadrants["P"] == ["0", "0%", "41%"]


def test_many_heads_are_summed_up() -> None:
    text = shown(layers=20, induction=False, init="structured")
    assert "80 KV heads; --json" in text
    assert "Taps: weight" not in text
    assert text.count("I M · ·") == 20


def test_a_vanilla_model_says_that_it_has_no_taps() -> None:
    text = shown()
    assert "no KV shift" in " ".join(text.split())
    assert "Quadrants" not in text
    assert "Prefix matching" in text


def test_an_unknown_start_is_said() -> None:
    assert "not known" in shown(init="paper", induction=False)
    assert "largest change of a tap" in shown(init="identity", induction=False)


def test_a_longer_window_tells_the_token_read() -> None:
    config = LlamaConfig(vocab_size=60, hidden_size=64, intermediate_size=16, num_hidden_layers=1)
    model = kvshift.convert(LlamaForCausalLM(config), kvshift.KVShiftConfig(window=3, init="identity"))
    with torch.no_grad():
        model.model.layers[0].self_attn.kv_shift.k_weight[0] = torch.tensor([0.0, 0.2, 0.9])
    file = io.StringIO()
    print_inspection(inspect_model(model, induction=False), Console(file=file, width=80))
    assert "t-2, t" in file.getvalue()
