from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from kvshift.inspection import Inspection, inspect_model
from kvshift.inspection.terminal import print_inspection


def printed(inspection: Inspection, width: int = 80) -> str:
    file = io.StringIO()
    print_inspection(inspection, Console(file=file, width=width, color_system=None))
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
def test_it_fits_and_needs_no_colour(inspected, width: int, shift) -> None:
    text = printed(inspected(**shift), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("one before it, …", "")  # nothing is cut off
    assert "\x1b" not in text
    assert "models/mine" in text


def test_the_structured_start_by_letters(inspected) -> None:
    lines = [line.rstrip() for line in printed(inspected(init="structured")).splitlines()]
    assert [line.split()[-4:] for line in lines if line.endswith("I M · ·")] == [["I", "M", "·", "·"]] * 2
    quadrants = {line.split()[0]: line.split()[-3:] for line in lines if "%" in line and "key" in line}
    assert quadrants["I"] == ["2", "25%", "13%"]
    assert quadrants["·"] == ["4", "50%", "39%"]
    assert quadrants["P"] == ["0", "0%", "41%"]


def test_many_heads_are_summed_up(inspected) -> None:
    text = printed(inspected(layers=20, induction=False, init="structured"))
    assert "80 KV heads; --json" in text
    assert "Taps: weight" not in text
    assert text.count("I M · ·") == 20


def test_a_vanilla_model_says_that_it_has_no_taps(inspected) -> None:
    text = printed(inspected())
    assert "no KV shift" in " ".join(text.split())
    assert "Quadrants" not in text
    assert "Prefix matching" in text


def test_an_unknown_start_is_said(inspected) -> None:
    assert "not known" in printed(inspected(init="paper", induction=False))
    assert "largest change of a tap" in printed(inspected(init="identity", induction=False))


def test_a_longer_window_tells_the_token_read(eight_heads) -> None:
    model = eight_heads(layers=1, window=3, init="identity")
    with torch.no_grad():
        model.model.layers[0].self_attn.kv_shift.k_weight[0] = torch.tensor([0.0, 0.2, 0.9])
    assert "t-2, t" in printed(inspect_model(model, induction=False))
