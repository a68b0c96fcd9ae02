from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch

from kvshift.errors import OutputError, UsageError
from kvshift.paper.theory import landscape, picture
from kvshift.paper.theory.landscape import Landscape, compute, descend, downhill
from kvshift.paper.theory.logits import Counts, loss


def loss_at(alpha1: float, beta1: float, order: float) -> float:
    taps = torch.tensor([alpha1, 1 - alpha1, beta1, 1 - beta1], dtype=torch.float64)
    return float(loss(taps, Counts.paper(order)))


@pytest.fixture(scope="module")
def computed() -> Landscape:
    return compute(points=9, starts=5)


def test_grids_hold_the_loss_and_its_slope_by_rows_of_beta(computed) -> None:
    assert [panel.order for panel in computed.panels] == [0, 10, 100]
    step = 1e-6
    for panel in computed.panels:
        for row, column in ((0, 0), (2, 7), (8, 0), (5, 5), (0, 8)):
            alpha1, beta1 = computed.grid[column], computed.grid[row]
            assert panel.loss[row][column] == pytest.approx(loss_at(alpha1, beta1, panel.order), abs=1e-14)
            for flow, right, up in ((panel.flow_alpha1, step, 0), (panel.flow_beta1, 0, step)):
                rise = loss_at(alpha1 + right, beta1 + up, panel.order)
                rise -= loss_at(alpha1 - right, beta1 - up, panel.order)
                assert flow[row][column] == pytest.approx(-rise / (2 * step), abs=1e-8)


def test_the_induction_head_is_lowest_and_every_descent_arrives_there(computed) -> None:
    for panel in computed.panels:
        assert panel.corner_loss == pytest.approx(loss_at(0, 1, panel.order), abs=1e-14)
        assert panel.corner_is_lowest
        assert panel.share_to_corner == 1
        assert panel.highest_loss > panel.corner_loss
        assert [(end.alpha1, end.beta1) for end in panel.ends] == [(0, 1)]


def test_free_taps_would_go_on_past_the_corner(computed) -> None:
    """The previous key and current value still grow at α = (0, 1), β = (1, 0), the others fall below 0."""
    for panel in computed.panels:
        step, corner = 1e-6, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        for tap, flow in enumerate(panel.free_flow):
            move = torch.zeros(4, dtype=torch.float64)
            move[tap] = step
            rise = loss(corner + move, Counts.paper(panel.order)) - loss(
                corner - move, Counts.paper(panel.order)
            )
            assert flow == pytest.approx(-float(rise) / (2 * step), abs=1e-8)
        alpha1, alpha2, beta1, beta2 = panel.free_flow
        assert max(alpha1, beta2) < 0 < min(alpha2, beta1)


def test_a_slip_changes_where_descents_arrive() -> None:
    slipped = compute([0.0], points=9, starts=5, slipped=["i-1", "T"])
    assert slipped.slipped == ["i-1", "T"]
    assert slipped.panels[0].share_to_corner < 1
    assert (slipped.panels[0].ends[1].alpha1, slipped.panels[0].ends[1].beta1) == (1, 0)  # the mirror


def bowl(places, counts, slipped):
    """Flows to (0.3, 0.6)."""
    away = places - torch.tensor([0.3, 0.6], dtype=torch.float64)
    return away.square().sum(-1), -2 * away


def ridge(places, counts, slipped):
    """Flows from the line α1 = 0.4 to both sides, and to β1 = 0."""
    flow = torch.stack((places[:, 0] - 0.4, -torch.ones_like(places[:, 0])), dim=-1)
    return torch.zeros_like(places[:, 0]), flow


def test_descents_find_points_inside(monkeypatch) -> None:
    monkeypatch.setattr(landscape, "downhill", bowl)
    starts = torch.tensor([[0.0, 0.0], [0.9, 0.1], [0.3, 1.0], [0.3, 0.6]], dtype=torch.float64)
    ends = descend(starts, Counts.paper(0))
    torch.testing.assert_close(ends, starts.new_tensor([[0.3, 0.6]] * 4), atol=0.006, rtol=0)
    assert len(landscape._gather(ends)) == 1


def test_descents_run_along_edges_and_are_counted_apart(monkeypatch) -> None:
    monkeypatch.setattr(landscape, "downhill", ridge)
    starts = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.39, 0.5], [0.8, 0.2]], dtype=torch.float64)
    ends = landscape._gather(descend(starts, Counts.paper(0)))
    assert [(end.alpha1, end.beta1, end.share) for end in ends] == [(0, 0, 0.75), (1, 0, 0.25)]
    panel = compute([1.0], points=2, starts=1).panels[0]
    assert panel.model_copy(update={"ends": ends}).share_to_corner == 0


def test_downhill_leaves_its_arguments_alone() -> None:
    places = torch.rand(3, 2, dtype=torch.float64)
    before = places.clone()
    downhill(places, Counts.paper(1))
    assert places.equal(before)
    assert not places.requires_grad


def test_a_record_comes_back_whole(computed, tmp_path) -> None:
    computed.save(tmp_path / "fig2.json")
    assert Landscape.load(tmp_path / "fig2.json") == computed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "fig2.json cannot be read as a landscape.*Compute it again"),
        ("{", "cannot be read as a landscape"),
        ('{"grid": [0, 1], "starts": 1, "panels": [], "colour": 1}', "cannot be read as a landscape"),
        ('{"version": 99, "grid": [0, 1], "starts": 1, "panels": []}', "version 99; this kvshift reads 1"),
    ],
)
def test_records_that_cannot_be_read_are_refused(tmp_path, content, said) -> None:
    path = tmp_path / "fig2.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OutputError, match=said):
        Landscape.load(path)


@pytest.mark.parametrize(
    "arguments",
    [{"points": 1}, {"starts": 0}, {"orders": []}, {"orders": [-1.0]}, {"slipped": ["others"]}],
    ids=str,
)
def test_impossible_requests_are_refused(arguments) -> None:
    with pytest.raises(UsageError, match=r"expected"):
        compute(**arguments)


def test_the_figure_comes_from_the_record_alone(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    compute([10.0], points=9, starts=1).save(tmp_path / "fig2.json")
    for name in ("compute", "downhill", "descend", "loss"):
        monkeypatch.setattr(landscape, name, None)
    stored = Landscape.load(tmp_path / "fig2.json")
    stored.draw(tmp_path / "one.svg")
    stored.draw(tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    record = json.loads((tmp_path / "fig2.json").read_text())
    record["panels"][0]["loss"][4][4] += 0.02
    (tmp_path / "fig2.json").write_text(json.dumps(record))
    Landscape.load(tmp_path / "fig2.json").draw(tmp_path / "three.svg")
    assert (tmp_path / "three.svg").read_bytes() != drawn


def test_the_figure_has_a_panel_for_each_order(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    compute([0.0, 7.5], points=5, starts=1).draw(tmp_path / "fig2.png")
    width, height = struct.unpack(">II", (tmp_path / "fig2.png").read_bytes()[16:24])
    assert (width, height) == (1230, 585)


def test_other_kinds_of_figure_and_no_matplotlib_are_refused(computed, tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="'pdf': expected png or svg"):
        computed.draw(tmp_path / "fig2.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'kvshift\[plots\]'"):
        computed.draw(Path(tmp_path / "fig2.png"))
    assert not list(tmp_path.iterdir())


def test_the_picture_says_what_its_axes_are(computed) -> None:
    pytest.importorskip("matplotlib")
    said = picture.draw_landscape(computed, "svg").decode()
    titles = ("O(T) = 0", "O(T) = 10", "O(T) = 100")
    for text in (*titles, "β1 (current value)", "α1 (current key)", "induction head"):
        assert f"<!-- {text}" in said
