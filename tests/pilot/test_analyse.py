"""A pilot's records, whole, broken and missing, to results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvshift.errors import RunsFailedError
from kvshift.pilot.notes import note
from kvshift.pilot.pairs import Pairs
from kvshift.pilot.results import Results
from kvshift.pilot.settings import Arm
from kvshift.shift import KVShiftConfig
from kvshift.training.record import EvaluationPoint, TapsPoint

GAINS = {"small": [0.30, 0.28, 0.31], "medium": [0.20, 0.22, 0.21], "large": [0.10, 0.12, 0.11]}
VANILLA = Arm(name="vanilla", shift=None)
AGAIN = Arm(name="vanilla-again", shift=None, seed_offset=1000)


def test_gains_are_paired_differences(make_pilot_from_gains):
    results = make_pilot_from_gains(GAINS).results()
    assert [size.size for size in results.by_size] == list(GAINS)
    for size in results.by_size:
        assert size.differences == pytest.approx(GAINS[size.size])
        assert size.seeds == [0, 1, 2]
        assert size.gain.value == pytest.approx(sum(GAINS[size.size]) / 3)
        assert size.gain_bits_per_byte.value == pytest.approx(size.gain.value / 2)
        assert size.baseline_loss.value - size.candidate_loss.value == pytest.approx(size.gain.value)
        assert size.note is None
    per_seed = [sum(column) / 3 for column in zip(*GAINS.values(), strict=True)]
    spread = math.sqrt(sum((gain - sum(per_seed) / 3) ** 2 for gain in per_seed) / 2)
    assert results.overall_gain.value == pytest.approx(sum(per_seed) / 3)
    assert results.overall_gain.high - results.overall_gain.value == pytest.approx(
        4.302652729911275 * spread / math.sqrt(3)
    )
    assert results.overall_gain.n == 9
    assert (results.verdict.decision, results.verdict.reason) == ("adopt", "adopt_clear")


def test_results_are_valid_json_and_come_back(make_pilot_from_gains):
    results = make_pilot_from_gains(GAINS, price_per_hour=2.0).results()
    text = results.model_dump_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert Results.model_validate_json(text) == results


def test_swapped_arms_change_the_sign(make_pilot_from_gains):
    forward = make_pilot_from_gains(GAINS)
    here = forward.results()
    backward = dataclasses.replace(
        forward, plan=forward.plan.model_copy(update={"arms": forward.plan.arms[::-1]})
    ).results()
    assert backward.overall_gain.value == -here.overall_gain.value
    assert backward.overall_gain.low == -here.overall_gain.high
    for ours, theirs in zip(here.by_size, backward.by_size, strict=True):
        assert theirs.gain.value == -ours.gain.value
        assert theirs.data_saved.value == -ours.data_saved.value
        assert theirs.data_saved.low == -ours.data_saved.high
    assert (here.verdict.decision, backward.verdict.decision) == ("adopt", "harmful")


def test_curves_rows_and_taps(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    results = pilot.results()
    assert len(results.curves) == 18
    assert {(curve.arm, curve.size, curve.seed) for curve in results.curves} == {
        (run.arm, run.size, run.seed) for run in pilot.plan.runs
    }
    assert [row.name for row in results.runs] == [run.name for run in pilot.plan.runs]
    assert all(row.status == "finished" and row.tokens == 1_000_000 for row in results.runs)
    heads = sum(size.layers * min(size.kv_heads, 2) for size in results.sizes) * 3
    assert len(results.taps) == heads
    assert sum(results.quadrants.values()) == heads
    assert results.quadrants["previous_current"] == results.quadrants["current_current"] == heads / 2
    assert "seed" not in results.recipe
    assert results.recipe["sequence_length"] == 256


@pytest.mark.parametrize(
    ("keys", "values", "quadrant"),
    [
        ([0.6, 0.4], [0.6, 0.4], "current_current"),
        ([0.4, 0.6], [0.6, 0.4], "previous_current"),
        ([0.5, 0.5], [0.6, 0.4], "previous_current"),  # the paper: α1 <= α2
        ([0.6, 0.4], [0.5, 0.5], "current_previous"),
        ([0.4, 0.6], [0.4, 0.6], "previous_previous"),
        ([0.5, 0.2, 0.6], [0.9, 0.0, 0.1], "previous_current"),
    ],
)
def test_quadrants(make_pilot_from_gains, keys, values, quadrant):
    pilot = make_pilot_from_gains({"small": [0.1, 0.2]})
    early = TapsPoint(0, 0, [[[9.0, 0.0]]], [[[0.0, 9.0]]])
    pilot.change("small-kvshift-seed0", taps=[early, TapsPoint(9, 9, [[keys]], [[values]])])
    pilot.change("small-kvshift-seed1", taps=[])
    counts = pilot.results().quadrants
    assert {name for name, count in counts.items() if count} == {quadrant}


@pytest.mark.parametrize(
    "point", [TapsPoint(1, 1, [[[0.4, 0.6]]], None), TapsPoint(1, 1, None, [[[0.4, 0.6]]])]
)
def test_half_a_shift_has_no_quadrant(make_pilot_from_gains, point):
    pilot = make_pilot_from_gains({"small": [0.1, 0.2]})
    for seed in range(2):
        pilot.change(f"small-kvshift-seed{seed}", taps=[point])
    results = pilot.results()
    assert len(results.taps) == 2
    assert sum(results.quadrants.values()) == 0


def test_added_cost(make_pilot_from_gains):
    added = make_pilot_from_gains(GAINS).results().added
    assert added.parameters == 5 * 8 * 4  # layers, KV heads, taps
    assert added.state_bytes_per_sequence == 1 * 8 * 32 * 2 * 2 * 5
    assert added.lines_of_code == 2
    assert added.user_model is None
    window3 = Arm(name="kvshift", shift=KVShiftConfig(window=3, shift_values=False).to_dict())
    wider = make_pilot_from_gains(GAINS, arms=(VANILLA, window3)).results().added
    assert wider.state_bytes_per_sequence == 2 * 8 * 32 * 1 * 2 * 5
    user = make_pilot_from_gains(GAINS, model="config.json").results().added
    assert (user.user_model, user.user_model_supported) == ("llama", True)


def test_aa_pilot(make_pilot_from_gains):
    gains = {"small": [0.02, -0.03, 0.01], "medium": [-0.02, 0.01, 0.02], "large": [0.03, 0.0, -0.04]}
    results = make_pilot_from_gains(gains, arms=(VANILLA, AGAIN)).results()
    assert results.verdict.decision == "bigger_pilot"
    assert not results.verdict.decided
    assert results.taps == []
    assert (
        results.added.parameters == results.added.state_bytes_per_sequence == results.added.lines_of_code == 0
    )


def test_identical_losses_claim_nothing(make_pilot_from_gains):
    results = make_pilot_from_gains({name: [0.0] * 3 for name in GAINS}, arms=(VANILLA, AGAIN)).results()
    assert (results.verdict.decision, results.verdict.decided) == ("no_benefit", False)
    assert results.overall_gain.low == results.overall_gain.high == 0
    assert all(size.data_saved.value == 0 for size in results.by_size)


# Broken and missing runs.


def test_a_diverged_candidate_costs_its_pair_and_the_adoption(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    points = pilot.records["large-kvshift-seed1"].evaluations
    points = [*points[:10], EvaluationPoint(10, points[10].tokens, math.nan, math.nan, 1.0)]
    pilot.change("large-kvshift-seed1", status="diverged", error="loss is nan", evaluations=points)
    results = pilot.results()
    large = results.by_size[-1]
    assert (large.pairs, large.seeds) == (2, [0, 2])
    assert large.differences == pytest.approx([0.10, 0.11])
    assert results.verdict.reason != "adopt_clear"
    cut = next(c for c in results.curves if (c.arm, c.size, c.seed) == ("kvshift", "large", 1))
    assert len(cut.tokens) == 10
    assert (
        note("candidate_diverged_alone", pairs=1, baseline="vanilla", candidate="kvshift") in results.warnings
    )
    row = next(row for row in results.runs if row.name == "large-kvshift-seed1")
    assert (row.status, row.error, row.final_nats_per_token) == ("diverged", "loss is nan", None)
    json.loads(results.model_dump_json(), parse_constant=lambda word: pytest.fail(word))


def test_only_the_baseline_diverges(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    pilot.change("small-vanilla-seed0", status="diverged")
    results = pilot.results()
    assert results.verdict.values["baseline_diverged"] == 1
    assert (
        note("baseline_diverged_alone", pairs=1, baseline="vanilla", candidate="kvshift") in results.warnings
    )
    assert results.by_size[0].gain.value == pytest.approx((0.28 + 0.31) / 2)
    assert results.overall_gain.n == 6  # two seeds at three sizes


def test_a_pair_that_diverged_in_both_arms_is_held_against_neither(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    for arm in ("vanilla", "kvshift"):
        pilot.change(f"small-{arm}-seed0", status="diverged")
    values = pilot.results().verdict.values
    assert (values["baseline_diverged"], values["candidate_diverged"], values["pairs"]) == (0, 0, 8)


def test_runs_side_by_side_share_the_machine(make_pilot_from_gains):
    """Two devices: a run occupies half of the machine, for the cost and for the next budget."""
    pilot = make_pilot_from_gains({"small": [0.9, -0.9, 0.0], "large": [0.9, -0.9, 0.1]}, price_per_hour=36.0)
    alone = pilot.results(seconds=300 + 1260.0)
    pilot.plan = pilot.plan.model_copy(update={"devices": 2})
    shared = pilot.results(seconds=300 + 630.0)
    assert shared.cost.baseline_run == alone.cost.baseline_run / 2
    # 300 s beside the 12 runs of 105 s; 4 of them a seed, 32 seeds at most.
    assert alone.verdict.next_budget_seconds == 300 + 105 * 4 * 32
    assert shared.verdict.next_budget_seconds == 300 + 105 * 2 * 32


def test_a_finished_run_whose_loss_is_not_a_number_has_diverged(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    pilot.change("small-kvshift-seed0", evaluations=[EvaluationPoint(1, 10, math.inf, math.inf, 1.0)])
    results = pilot.results()
    assert results.by_size[0].pairs == 2
    assert results.verdict.values["candidate_diverged"] == 1


def test_every_candidate_diverges(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    for name in list(pilot.records):
        if "kvshift" in name:
            pilot.change(name, status="diverged", evaluations=[])
    results = pilot.results()
    assert (results.verdict.decision, results.verdict.reason) == ("harmful", "harmful_diverges")
    assert results.overall_gain is None
    assert all(size.note == "no_pairs" for size in results.by_size)


def test_one_pair_at_the_top_has_no_interval(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    del pilot.records["large-vanilla-seed0"]
    pilot.change("large-kvshift-seed1", status="failed", error="killed")
    results = pilot.results()
    large = results.by_size[-1]
    assert (large.pairs, large.note, large.gain.low) == (1, "one_pair", None)
    assert (results.verdict.reason, results.verdict.decided) == ("few_pairs", False)
    assert results.verdict.next_budget_seconds >= 2000
    assert {row.status for row in results.runs} == {"finished", "missing", "failed"}
    assert note("runs_lost", lost=2, total=18) in results.warnings


def test_the_overall_gain_leaves_out_a_small_size_that_was_lost(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    for seed in (0, 1):
        del pilot.records[f"small-vanilla-seed{seed}"]
    results = pilot.results()
    assert results.overall_gain.value == pytest.approx((0.15 + 0.17 + 0.16) / 3)
    assert results.overall_gain.n == 6


@pytest.mark.parametrize("status", ["failed", "unfinished", "diverged"])
def test_nothing_to_compare(make_pilot_from_gains, status):
    pilot = make_pilot_from_gains(GAINS)
    for name in list(pilot.records):
        pilot.change(name, status=status, error="out of memory")
    with pytest.raises(
        RunsFailedError, match=r"of 18 main runs 0 finished.*out of memory.*Start the same pilot"
    ):
        pilot.results()


def test_no_records_at_all(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    pilot.records.clear()
    with pytest.raises(RunsFailedError, match="No pair of runs finished"):
        pilot.results()


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pattern_of_losses_gives_results_or_a_sentence(make_pilot_from_gains, data):
    pilot = make_pilot_from_gains(GAINS, check=("large", 0.5), price_per_hour=1.0)
    for name in list(pilot.records):
        fate = data.draw(
            st.sampled_from(
                ["finished"] * 4 + ["diverged", "failed", "unfinished", "missing", "nan", "empty"]
            )
        )
        if fate == "missing":
            del pilot.records[name]
        elif fate == "nan":
            pilot.change(name, evaluations=[EvaluationPoint(1, 100, math.nan, math.nan, 0.1)])
        elif fate == "empty":
            pilot.change(
                name, evaluations=[], taps=[], tokens_per_second=0.0, peak_memory_bytes=0, wall_seconds=0.0
            )
        else:
            cut = data.draw(st.integers(1, 50))
            points = pilot.records[name].evaluations
            pilot.change(name, status=fate, evaluations=points if fate == "finished" else points[:cut])
    if not any(pair.complete for pair in Pairs.of(pilot.plan, pilot.records)):
        with contextlib.suppress(RunsFailedError):
            assert pilot.results().verdict.reason == "harmful_diverges"
        return
    results = pilot.results()
    text = results.model_dump_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert Results.model_validate_json(text) == results
    spans = results.overall_gain is not None and not results.overall_gain.clear_of_zero
    assert not (
        spans
        and results.verdict.decision in ("adopt", "harmful")
        and results.verdict.reason != "harmful_diverges"
    )
    for size in results.by_size:
        assert (size.gain is None) == (size.pairs == 0)
        assert size.pairs < 2 or size.gain.low <= size.gain.value <= size.gain.high
        assert size.data_saved is None or -1 <= size.data_saved.value <= 1


# Warnings.


def test_warnings_about_the_design(make_pilot_from_gains):
    few = make_pilot_from_gains({"small": [0.3, 0.3], "large": [0.1, 0.1]})
    warnings = few.results(
        data_summary={"passages": True, "validation_documents": 3, "train_tokens": 100_000}
    ).warnings
    for expected in (
        note("few_seeds", seeds=2),
        note("few_sizes", sizes=2),
        note("few_pairs", pairs=4),
        note("passages_of_one_text"),
        note("few_validation_documents", documents=3),
        note("learned_by_heart", epochs=10.0),
    ):
        assert expected in warnings


def test_a_sound_design_warns_of_little(make_pilot_from_gains):
    warnings = make_pilot_from_gains(GAINS).results().warnings
    assert [warning.key for warning in warnings] == ["few_tokens", "timed_on_a_cpu"]


@pytest.mark.parametrize(
    ("device", "compiled", "said"),
    [
        ("CPU, 2 threads", False, ["timed_on_a_cpu"]),
        ("NVIDIA H200", False, ["timed_uncompiled"]),
        ("NVIDIA H200", True, []),
    ],
)
def test_what_a_speed_was_measured_on_is_mentioned(make_pilot_from_gains, device, compiled, said):
    pilot = make_pilot_from_gains(GAINS)
    for run in pilot.plan.runs:
        pilot.change(run.name, device=device)
    runs = [
        run.model_copy(update={"recipe": run.recipe.model_copy(update={"compile": compiled})})
        for run in pilot.plan.runs
    ]
    pilot.plan = pilot.plan.model_copy(update={"runs": tuple(runs)})
    keys = [warning.key for warning in pilot.results().warnings]
    assert [key for key in keys if key.startswith("timed")] == said
    pilot.plan = pilot.plan.model_copy(update={"arms": (VANILLA, VANILLA)})
    assert "timed_uncompiled" not in {warning.key for warning in pilot.results().warnings}


def test_warnings_of_the_plan_come_first_and_once(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    pilot.plan = pilot.plan.model_copy(update={"warnings": (note("one_size"), note("one_size"))})
    assert pilot.results().warnings[0] == note("one_size")
    assert pilot.results().warnings.count(note("one_size")) == 1


def test_what_the_results_say_better_is_not_said_twice(make_pilot_from_gains):
    pilot = make_pilot_from_gains({"small": [0.3, 0.3], "large": [0.1, 0.1]})
    planned = (
        note("two_seeds"),
        note("two_sizes"),
        note("far_from_trained", ratio=0.5),
        note("few_steps", steps=9),
    )
    pilot.plan = pilot.plan.model_copy(update={"warnings": planned})
    keys = [warning.key for warning in pilot.results().warnings]
    assert keys[0] == "few_steps"
    assert {"few_seeds", "few_sizes", "few_tokens"} < set(keys)
    assert not {"two_seeds", "two_sizes", "far_from_trained"} & set(keys)


def test_unsteady_clocks_are_mentioned(make_pilot_from_gains):
    pilot = make_pilot_from_gains(GAINS)
    pilot.change("large-kvshift-seed0", tokens_per_second=5_000.0)
    unsteady = [warning for warning in pilot.results().warnings if warning.key == "unsteady_clock"]
    assert [warning.values["size"] for warning in unsteady] == ["large"]
