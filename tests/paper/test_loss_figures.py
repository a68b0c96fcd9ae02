from __future__ import annotations

import numpy as np
import pytest

from kvshift.paper import loss_figures
from kvshift.paper.curves import Panel, Series, draw_curves, draw_series
from kvshift.paper.learning import Curve, interval

pytest.importorskip("matplotlib")
LOSSES = [[5.0, 4.0, 3.0], [5.2, 4.4, 2.9], [5.1, 3.9, 3.4]]
MILLIONS = [0.0, 1.0, 2.0]


@pytest.fixture
def painted(monkeypatch):
    """The axes that a figure would have had."""
    from matplotlib.figure import Figure

    def paint(kind, width, height, painter):
        figure = Figure()
        painter(figure)
        return figure.axes

    monkeypatch.setattr("kvshift.paper.curves.paint", paint)
    monkeypatch.setattr(loss_figures, "paint", paint)


def points(losses):
    return [(int(1e6 * million), loss) for million, loss in zip(MILLIONS, losses, strict=False)]


def band(axes, number=0) -> list[tuple[float, float, float]]:
    """Where, from, to."""
    corners = np.unique(axes.collections[number].get_paths()[0].vertices, axis=0)
    return [
        (x, corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max())
        for x in np.unique(corners[:, 0])
    ]


def test_an_arm_of_several_seeds_has_a_band_of_its_interval(painted) -> None:
    arms = {"several": [points(losses) for losses in LOSSES], "one": [points(LOSSES[0])]}
    (axes,) = loss_figures.draw_over_tokens({"title": arms}, "loss", "png")
    found = [interval(column) for column in zip(*LOSSES, strict=True)]
    assert len(axes.collections) == 1
    assert band(axes) == [
        pytest.approx((x, each.low, each.high)) for x, each in zip(MILLIONS, found, strict=True)
    ]
    assert axes.collections[0].get_facecolor()[0][3] < 0.3
    means = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert means["several"] == pytest.approx([each.mean for each in found])
    assert means["one"] == LOSSES[0]


def test_a_band_goes_as_far_as_every_run_does(painted) -> None:
    arms = {"half": [points(LOSSES[0]), points(LOSSES[1][:2])], "none": [points(LOSSES[0]), []], "lost": [[]]}
    (axes,) = loss_figures.draw_over_tokens({"title": arms}, "loss", "png")
    assert [x for x, _, _ in band(axes)] == MILLIONS[:2]
    means = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert len(means["half"]) == 2
    assert means["none"] == means["lost"] == []
    assert not any(collection.get_paths() for collection in axes.collections[1:])


def test_a_band_has_no_impossible_numbers(painted) -> None:
    shares = {"arm": [points([0.1, 0.9]), points([0.0, 1.0])]}
    (axes,) = loss_figures.draw_over_tokens({"title": shares}, "share", "png", highest=1)
    assert [ends[1:] for ends in band(axes)] == [
        (0, pytest.approx(0.685, abs=1e-3)),
        (pytest.approx(0.315, abs=1e-3), 1),
    ]


def test_a_legend_for_panels_of_other_depths_names_no_layers(painted) -> None:
    def curves(*arms: tuple[bool, int]) -> list[Curve]:
        scores = [{"first": [1, 10]}] * 2
        return [Curve(shifted, layers, 8, 0, {}, False, 1, [1, 2], scores, {}) for shifted, layers in arms]

    def legend(*panels: list[Curve]) -> list[str]:
        axes = draw_curves([Panel("", panel) for panel in panels], "first", "accuracy", "png")[-1]
        return [text.get_text() for text in axes.get_legend().get_texts()]

    deep, shallow = curves((True, 2), (False, 2)), curves((True, 1), (False, 1))
    assert legend(shallow, deep) == ["KV shift", "vanilla"]
    assert legend(deep) == ["KV shift, 2 layers", "vanilla, 2 layers"]
    mixed = curves((True, 1), (False, 2))
    assert legend(mixed, mixed) == ["KV shift, 1 layer", "vanilla, 2 layers"]


def test_accuracies_have_the_same_band(painted) -> None:
    def curve(seed: int, right: list[int]) -> Curve:
        scores = [{"first": [count, 10]} for count in right]
        return Curve(True, 1, 8, seed, {}, False, 1, [1, 2], scores, {})

    (axes,) = draw_curves([Panel("one", [curve(0, [0, 9]), curve(1, [1, 10])])], "first", "accuracy", "png")
    assert band(axes) == [
        pytest.approx((1, 0, interval([0, 0.1]).high)),
        pytest.approx((2, interval([0.9, 1]).low, 1)),
    ]


def test_an_interval_of_a_gain_is_as_long_as_its_confidence_asks(painted) -> None:
    gains = [0.1, 0.2, 0.6]

    def drawn(*confidence: float) -> tuple[float, float]:
        (axes,) = loss_figures.draw_gains({"title": {"arm": gains}}, "gain", "png", *confidence)
        (low, high) = next(line.get_xdata() for line in axes.lines if line.get_linestyle() == "-")
        return low, high

    for found, asked in ((drawn(), 0.95), (drawn(0.983), 0.983)):
        expected = interval(gains, asked)
        assert found == pytest.approx((expected.low, expected.high))


def test_each_seed_has_a_dot_beside_the_mean(painted) -> None:
    several = Series("arm", {1: [0.1, 0.3], 2: [0.5]})
    (axes,) = draw_series([("title", [several])], "x", "y", "png")
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "None"]
    assert [[1, 0.1], [1, 0.3], [2, 0.5]] in dots
    (alone,) = draw_series([("title", [Series("arm", {1: [0.1]})])], "x", "y", "png")
    assert not any(line.get_alpha() == 0.4 for line in alone.lines)
