"""The experiments with hops: their rules on made-up records."""

from __future__ import annotations

import pytest
from made_up_records import at_least, hops, made_up, published, small_at_last, verdict

from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.learning import Curve

pytest.importorskip("matplotlib")


def not_clear_at_half(layers: int, hops: int, seed: int) -> float:
    return (0.0, 0.01, 0.05)[seed] if hops == 8 else small_at_last(layers, hops, seed)


def small_with_the_fewest_layers(layers: int, hops: int, seed: int) -> float:
    return 0.5 if (layers, hops) == (4, 16) else 0.05


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (hops(at_least(0.05), small_at_last), "reproduced"),
        (hops(at_least(0.05, less=-0.04), small_at_last), "reproduced"),  # within the noise of theirs
        (hops(at_least(0.05, less=-0.06), small_at_last), "partly"),  # vanilla learned less than theirs
        (hops(at_least(0.05, less=0.06), small_at_last), "partly"),  # or more
        (hops(at_least(0.05, less=-0.08), small_at_last, spread=0.02), "reproduced"),  # within ours
        (hops(at_least(0.05, less=0.08), small_at_last, spread=0.02), "reproduced"),
        (hops(at_least(0.05), not_clear_at_half), "partly"),
        (hops(at_least(0.05), small_with_the_fewest_layers), "partly"),
        (hops(at_least(0.05), lambda *where: small_at_last(*where) * (where[1] > 7)), "reproduced"),
        (hops(at_least(0.05)), "partly"),  # lower, but not small
        (hops(at_least(0.5), lambda depth, k, seed: (0.5, 0.3, 0.1)[seed]), "partly"),
        (hops(at_least(0.5), lambda depth, k, seed: -0.1 if (depth, k) == (5, 16) else 0.1), "not"),
        (hops(at_least(0.5), lambda depth, k, seed: 0.0), "not"),
        (hops(lambda depth, k: 0.74, lambda depth, k, seed: 0.01), "undecided"),  # guesses
    ],
)
def test_fig9(shares, expected) -> None:
    assert verdict("fig9", "gpu", shares) == expected


def test_fig9_names_the_errors_that_are_not_the_published_ones() -> None:
    shares = hops(lambda depth, k: published(depth, k) + 0.1 * (k == 8 or (depth, k) == (5, 16)))
    said = EXPERIMENTS["fig9"].judge(made_up("fig9", "gpu", shares)).finding
    assert (
        "published one: 4 layers: higher at 8 hops (0.316 [0.316, 0.316]; published 0.216); "
        "5 layers: higher at 8 hops (0.137 [0.137, 0.137]; published 0.037); "
        "5 layers: higher at 16 hops (0.514 [0.514, 0.514]; published 0.414). Vanilla" in said
    )


def test_fig9_tells_how_vanilla_came_there() -> None:

    def shares(run: Curve) -> dict[str, list[float]]:
        return {f"hops={k}": [0.3, 0.4, 0.5, 0.6, 0.7] for k in range(17)}

    said = EXPERIMENTS["fig9"].judge(made_up("fig9", "gpu", shares)).finding
    assert "After 100,000 steps" in said
    assert "5 layers 0.600 (10,000), 0.500 (15,000), 0.400 (20,000), 0.300 (25,000)" in said


def test_fig9_shows_the_published_errors_where_the_task_is_the_papers() -> None:
    with_them, without = (
        EXPERIMENTS["fig9"].draw(made_up("fig9", scale, hops(at_least(0.05))), "svg")
        for scale in ("gpu", "small")
    )
    assert b"vanilla, published" in with_them
    assert b"published" not in without


# Hops with dropout


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (hops(at_least(0.05)), "reproduced"),  # lower is enough, whatever is left
        (hops(at_least(0.05, less=-0.06)), "not"),  # vanilla learned less than the published ones
        (hops(at_least(0.05, less=0.06)), "not"),  # or more
        (hops(at_least(0.05, less=0.08), spread=0.02), "reproduced"),  # within ours
        (hops(at_least(0.05), not_clear_at_half), "partly"),
        (hops(at_least(0.05), lambda depth, k, seed: 0.0 if k == 8 else 0.05), "not"),
        (hops(at_least(0.05), lambda depth, k, seed: 0.05 if k >= 8 else -0.05), "reproduced"),
        (hops(lambda depth, k: 0.74, lambda depth, k, seed: 0.01), "undecided"),  # guesses
    ],
)
def test_hops_dropout(shares, expected) -> None:
    assert verdict("hops_dropout", "gpu", shares) == expected


def test_hops_dropout_asks_for_no_published_errors_of_another_task() -> None:
    shares = hops(lambda depth, k: 0.5)
    said = EXPERIMENTS["hops_dropout"].judge(made_up("hops_dropout", "small", shares))
    assert said.verdict == "reproduced"
    assert "published" not in said.finding


def test_hops_dropout_tells_where_it_stands() -> None:
    shares = hops(lambda depth, k: published(depth, k) + 0.1 * (k == 8), not_clear_at_half)
    said = EXPERIMENTS["hops_dropout"].judge(made_up("hops_dropout", "gpu", shares))
    assert "8 hops: 0.316 → 0.296; 16 hops: 0.612 → 0.312" in said.ours
    assert "at 9 of 9 numbers of hops" in said.finding
    assert "leaves out 0 at 8 (16 hops: 0.300 [0.300, 0.300])" in said.finding
    assert "published one: higher at 8 hops (0.316 [0.316, 0.316]; published 0.216)." in said.finding


@pytest.mark.parametrize("scale", ["tiny", "small", "gpu"])
def test_hops_dropout_differs_from_fig9_in_dropout_alone(scale) -> None:
    theirs = {run.name: run.settings for run in EXPERIMENTS["fig9"].runs[scale]}
    for run in EXPERIMENTS["hops_dropout"].runs[scale]:
        model = dict(run.settings["model"])
        drops = {name: model.pop(name) for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")}
        assert set(drops.values()) == {0.1}
        same = {**run.settings, "model": {**model, **dict.fromkeys(drops, 0.0)}}
        assert same == theirs[run.name]
