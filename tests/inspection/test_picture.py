from __future__ import annotations

import struct
import sys
from xml.etree import ElementTree

import pytest

from kvshift.errors import UsageError
from kvshift.inspection.picture import check_drawable, draw

pytest.importorskip("matplotlib")


SHIFTS = [
    {"init": "structured"},
    {"init": "paper", "window": 4},
    {"init": "paper", "per_channel": True},
    {"init": "structured", "shift_values": False},
    {"init": "identity", "shift_keys": False, "shift_values": False, "shift_queries": True},
    {},
]


def texts(svg: bytes) -> str:
    """What an SVG says: matplotlib notes each text as a comment beside its outline."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.fromstring(svg, parser=parser)
    return "\n".join(part.text or "" for part in root.iter() if part.tag is ElementTree.Comment)


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_pictures_of_every_kind_of_shift(inspected, shift) -> None:
    found = inspected(**shift)
    png = draw(found, "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width == 1650
    assert 400 < height < 4000
    said = texts(draw(found, "svg"))
    assert "models/mine" in said
    assert "Prefix matching" in said
    both = found.taps is not None and sum(found.taps.quadrants.values()) > 0
    assert ("Quadrants by layer and head" in said) == both
    assert ("Queries: " in said) == bool(shift.get("shift_queries"))
    assert ("Keys: " in said) == (found.taps is not None and any(head.keys for head in found.taps.heads))


def test_the_same_picture_twice(inspected) -> None:
    found = inspected(init="structured")
    assert draw(found, "svg") == draw(found, "svg")


def test_the_quadrants_are_counted_in_the_picture(inspected) -> None:
    said = texts(draw(inspected(induction=False, init="structured"), "svg"))
    assert said.count("2 of 8") == 2  # the induction corner and its mirror
    assert said.count("4 of 8") == 1
    assert said.count("0 of 8") == 1


def test_many_layers_fit(inspected) -> None:
    height = struct.unpack(">I", draw(inspected(layers=40, init="structured"), "png")[20:24])[0]
    assert height < 5000


def test_taps_that_are_not_finite_leave_a_gap(inspected) -> None:
    found = inspected(init="structured", induction=False)
    head = found.taps.heads[0]
    broken = head.model_copy(
        update={"keys": head.keys.model_copy(update={"mean": [None, 1.0]}), "quadrant": None}
    )
    taps = found.taps.model_copy(update={"heads": [broken, *found.taps.heads[1:]]})
    draw(found.model_copy(update={"taps": taps}), "png")


def test_nothing_to_draw_is_refused(inspected) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        draw(inspected(induction=False), "png")


def test_without_matplotlib_the_command_to_install_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'kvshift\[plots\]'"):
        check_drawable()
