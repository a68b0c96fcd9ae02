from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pilot_fakes import CPU, GPU, FakeText, machine

from kvshift.durations import parse_duration
from kvshift.errors import BudgetError, DataError, RunsFailedError, UsageError
from kvshift.pilot import fit
from kvshift.pilot.arms import AGAIN_SEED_OFFSET, ARMS
from kvshift.pilot.ladder import rung
from kvshift.pilot.notes import note
from kvshift.pilot.plan import BATCHES, SEQUENCE_LENGTH, learning_rate, make_plan
from kvshift.pilot.settings import PilotSettings, Plan
from kvshift.training.recipe import Recipe

PlanFor = Callable[..., Plan]
random_machines = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def true_seconds(plan: Plan, measure: Callable[[Recipe, float], Any]) -> float:
    """What the plan's runs would take on that machine, counted run by run from their recipes."""
    durations = []
    for run in plan.runs:
        speed = measure(run.recipe, 1.0)
        tokens = run.recipe.steps * run.recipe.step_tokens
        durations.append(
            speed.startup_seconds
            + tokens / speed.tokens_per_second
            + run.recipe.evaluations * speed.evaluation_seconds
        )
    return fit.total_seconds(durations, plan.devices)


@random_machines
@given(
    flops=st.floats(3e9, 3e12),
    layer=st.floats(1e-4, 1e-2),
    slower=st.floats(0.9, 1.6),
    startup=st.floats(0.1, 5),
    budget=st.floats(60, 36_000),
    train=st.integers(200_000, 10**9),
)
def test_whatever_the_machine_the_runs_fit_the_budget(
    plan_for: PlanFor, flops: float, layer: float, slower: float, startup: float, budget: float, train: int
) -> None:
    measure = machine(flops, layer, slower, startup)
    text = FakeText(train, 300_000)
    try:
        plan = plan_for(text, measure, budget_seconds=budget, spent=5.0)
    except BudgetError as error:
        least = parse_duration(re.search(r"--budget (\S+)", str(error))[1])  # type: ignore[index]
        assert least > budget
        plan_for(text, measure, budget_seconds=least, spent=5.0)
        return
    assert true_seconds(plan, measure) + 5.0 <= budget
    assert plan.tokens <= fit.MOST_EPOCHS * train
    assert plan.runs[0].recipe.steps >= fit.LEAST_STEPS
    assert len(plan.sizes) in (2, 3)
    parameters = [size.parameters for size in plan.sizes]
    assert parameters == sorted(parameters)


@random_machines
@given(flops=st.floats(1e10, 1e12), budget=st.floats(300, 7200))
def test_most_of_the_budget_is_used_unless_the_text_runs_out(
    plan_for: PlanFor, flops: float, budget: float
) -> None:
    measure = machine(flops)
    try:
        plan = plan_for(FakeText(10**9), measure, budget_seconds=budget)
    except BudgetError:
        return
    assert true_seconds(plan, measure) > 0.7 * budget


def test_a_larger_budget_never_means_a_smaller_top(plan_for: PlanFor) -> None:
    tops = [
        plan_for(FakeText(10**9), budget_seconds=seconds).sizes[-1].parameters
        for seconds in (600, 1800, 7200, 36_000)
    ]
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]


def test_pairs_share_everything_but_the_shift(plan_for: PlanFor) -> None:
    plan = plan_for()
    mains = [run for run in plan.runs if run.role == "main"]
    assert len(mains) == 2 * len(plan.sizes) * len(plan.seeds)
    for baseline, candidate in zip(mains[::2], mains[1::2], strict=True):
        assert (baseline.arm, candidate.arm) == ("vanilla", "kvshift")
        one, other = baseline.recipe.model_dump(), candidate.recipe.model_dump()
        assert one.pop("shift") is None
        assert other.pop("shift") is not None
        one.pop("checkpoint_seconds"), other.pop("checkpoint_seconds")
        assert one == other


def test_seeds_come_one_after_the_other(plan_for: PlanFor) -> None:
    seeds = [run.seed for run in plan_for().runs]
    assert seeds == sorted(seeds)


def test_sizes_train_on_equally_many_tokens(plan_for: PlanFor) -> None:
    plan = plan_for()
    assert {run.recipe.tokens for run in plan.runs if run.role == "main"} == {plan.tokens}


def test_check_runs_are_the_smallest_candidate_planned_at_half_the_length(
    plan_for: PlanFor,
) -> None:
    plan = plan_for()
    checks = [run for run in plan.runs if run.role == "check"]
    assert [run.seed for run in checks] == list(plan.seeds)
    for check in checks:
        same_pair = ("main", "kvshift", plan.sizes[-1].name, check.seed)
        main = next(run for run in plan.runs if (run.role, run.arm, run.size, run.seed) == same_pair)
        assert check.arm == "kvshift"
        assert check.recipe.steps == pytest.approx(plan.check_share * main.recipe.steps, abs=1)
        same = {"tokens", "evaluations", "checkpoint_seconds"}
        assert check.recipe.model_dump(exclude=same) == main.recipe.model_dump(exclude=same)


def test_run_names_are_unique_and_safe_folder_names(plan_for: PlanFor) -> None:
    names = [run.name for run in plan_for(arms=("vanilla", "vanilla-again")).runs]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names)


def test_a_plan_survives_its_file(plan_for: PlanFor) -> None:
    plan = plan_for(price_per_hour=2.5)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_three_seeds_and_three_sizes_by_default(plan_for: PlanFor) -> None:
    plan = plan_for(FakeText(10**9), budget_seconds=1200)
    assert plan.seeds == (0, 1, 2)
    assert len(plan.sizes) == 3


def test_where_the_text_is_the_limit_spare_time_buys_seeds_and_it_is_said(plan_for: PlanFor) -> None:
    plan = plan_for(FakeText(120_000, 50_000), machine(1e13, 1e-5), budget_seconds=3600)
    assert plan.tokens == pytest.approx(4 * 120_000, rel=0.01)
    assert len(plan.seeds) == fit.MOST_SEEDS
    used_up = next(note for note in plan.warnings if note.key == "text_used_up")
    assert used_up.values == {"epochs": 4.0, "expected": plan.expected_seconds, "budget": 3600}


def test_a_small_budget_gives_two_sizes_and_says_so(plan_for: PlanFor) -> None:
    found = None
    for seconds in range(20, 400, 5):
        try:
            found = plan_for(budget_seconds=seconds)
        except BudgetError:
            continue
        break
    assert found is not None
    assert len(found.sizes) == 2
    assert note("two_sizes") in found.warnings


def test_what_the_user_gives_is_taken(plan_for: PlanFor) -> None:
    plan = plan_for(
        sizes=("d64-L2", "d32-L1"), seeds=(7,), tokens=800_000, sequence_length=128, batch_size=4,
        learning_rate=0.01, arms=("paper", "gate"),
    )  # fmt: skip
    assert [size.name for size in plan.sizes] == ["d32-L1", "d64-L2"]
    assert plan.seeds == (7,)
    recipe = plan.runs[0].recipe
    assert recipe.tokens == pytest.approx(800_000, abs=512)
    assert (recipe.sequence_length, recipe.batch_size, recipe.learning_rate) == (128, 4, 0.01)
    assert [arm.name for arm in plan.arms] == ["paper", "gate"]
    assert note("one_seed") in plan.warnings


def test_start_and_multiplier_reach_the_candidate_but_not_the_papers_arm(plan_for: PlanFor) -> None:
    plan = plan_for(arms=("paper", "kvshift"), start="identity", multiplier=30)
    paper, ours = (arm.shift for arm in plan.arms)
    assert (paper["init"], paper["lr_multiplier"]) == ("paper", 1.0)
    assert (ours["init"], ours["lr_multiplier"]) == ("identity", 30)


@pytest.mark.parametrize("name", [name for name in ARMS if name != "vanilla"])
def test_every_arm_can_be_planned(plan_for: PlanFor, name: str) -> None:
    plan = plan_for(arms=("vanilla", name))
    shifts = [json.dumps(arm.shift) for arm in plan.arms]
    assert (shifts[0] == shifts[1]) == (name == "vanilla-again")


def test_an_aa_pilot_trains_the_same_model_on_other_seeds(plan_for: PlanFor) -> None:
    plan = plan_for(arms=("vanilla", "vanilla-again"))
    one, other = plan.runs[0], plan.runs[1]
    assert one.seed == other.seed
    assert other.recipe.seed - one.recipe.seed == AGAIN_SEED_OFFSET
    assert one.recipe.shift is other.recipe.shift is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"arms": ("vanilla", "vanilla")}, "vanilla-again"),
        ({"arms": ("vanilla", "nonsense")}, "known are"),
        ({"sizes": ("d64-L2", "d64-L2")}, "twice"),
        ({"sizes": ("d64-L2", "d064-L2")}, "twice"),
        ({"sizes": ("huge",)}, "not a size"),
        ({"sizes": ("d64-L2",), "model": Path("config.json")}, "contradict"),
        (
            {"arms": ("vanilla", "gate"), "start": "structured"},
            "--start structured does not suit",
        ),
        ({"arms": ("vanilla", "paper"), "multiplier": 30}, "--multiplier 30"),
        ({"arms": ("vanilla", "vanilla-again"), "start": "paper"}, "--start paper would change neither"),
    ],
)
def test_contradictions_are_refused(plan_for: PlanFor, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_for(**wrong)


def test_a_gpu_that_is_not_there_is_refused(plan_for: PlanFor) -> None:
    with pytest.raises(UsageError, match="no usable GPU"):
        make_plan(PilotSettings(device="cuda"), FakeText(), measure=machine(), device_info=CPU)


def test_a_budget_too_small_names_the_least_that_works(plan_for: PlanFor) -> None:
    with pytest.raises(BudgetError, match="least pilot"):
        plan_for(budget_seconds=5)


LEAST_TRAIN_TOKENS = math.ceil(
    fit.LEAST_STEPS * BATCHES["cpu"][-1] * SEQUENCE_LENGTH["cpu"] / fit.MOST_EPOCHS
)


def test_a_text_too_small_says_how_much_is_needed_before_anything_is_measured(plan_for: PlanFor) -> None:
    def never(recipe: Recipe, seconds: float) -> Any:
        raise AssertionError("measured")

    kilobytes = round(4 * LEAST_TRAIN_TOKENS / 1000)
    said = rf"10,000 training tokens.*needs {LEAST_TRAIN_TOKENS:,} .*about {kilobytes} kB"
    with pytest.raises(DataError, match=said):
        plan_for(FakeText(10_000), never)
    with pytest.raises(DataError, match="validation"):
        plan_for(FakeText(validation_tokens=300), never)


def test_a_text_that_is_just_large_enough_can_be_planned(plan_for: PlanFor) -> None:
    assert plan_for(FakeText(LEAST_TRAIN_TOKENS, 5_000)).runs[0].recipe.steps == fit.LEAST_STEPS


def test_sizes_that_do_not_fit_the_memory_are_left_out(plan_for: PlanFor) -> None:
    plan = plan_for(FakeText(10**9), machine(1e12, too_large=3_000_000), budget_seconds=7200)
    assert plan.sizes[-1].parameters <= 3_000_000
    left_out = [warning for warning in plan.warnings if warning.key == "size_left_out"]
    assert left_out
    assert all("out of memory" in warning.values["reason"] for warning in left_out)
    with pytest.raises(RunsFailedError, match="out of memory"):
        plan_for(measure=machine(too_large=10))


def test_a_model_larger_than_the_memory_is_refused_untried(plan_for: PlanFor) -> None:
    def never(recipe: Recipe, seconds: float) -> Any:
        raise AssertionError("tried")

    laptop = dataclasses.replace(CPU, memory_bytes=8 << 30)
    said = r"d2048-L24 .*\d\d\.\d GB of memory, and 8\.6 GB are there\. Give smaller --sizes\."
    with pytest.raises(RunsFailedError, match=said):
        plan_for(measure=never, machine_info=laptop, sizes=("d64-L2", "d2048-L24"))
    assert plan_for(machine_info=laptop).sizes == plan_for().sizes


def test_a_model_of_the_user_that_is_too_large_says_what_to_give_instead(tmp_path: Path) -> None:
    own = tmp_path / "config.json"
    own.write_text('{"model_type": "llama"}')
    top = rung("d2048-L24", vocab_size=2048, sequence_length=256)
    said = r"are there\. Give a smaller --model, or --sizes in its place\."
    with pytest.raises(RunsFailedError, match=said):
        make_plan(
            PilotSettings(model=own),
            FakeText(),
            measure=machine(),
            device_info=dataclasses.replace(CPU, memory_bytes=8 << 30),
            derive=lambda *_: [top],
        )


def test_measuring_is_bounded(plan_for: PlanFor) -> None:
    asked: list[float] = []
    fake = machine(1e12)

    def measure(recipe: Recipe, seconds: float) -> Any:
        asked.append(seconds)
        return fake(recipe, seconds)

    plan_for(FakeText(10**9), measure, budget_seconds=7200)
    assert sum(asked) <= 0.03 * 7200
    assert max(asked) <= 2.0


def test_on_a_gpu_batches_suit_the_length_and_memory_is_bounded(plan_for: PlanFor) -> None:
    data = FakeText(100_000_000, 5_000_000, vocab_size=16_000)
    plan = plan_for(data, machine(1e14, 4e-3), GPU, budget_seconds=3600)
    for run in plan.runs:
        recipe = run.recipe
        assert recipe.device == "cuda"
        assert recipe.sequence_length == 1024
        assert recipe.step_tokens <= 65_536
        micro = recipe.micro_batch_size or recipe.batch_size
        assert recipe.batch_size % micro == 0
        assert micro * 1024 * 16_000 * 4 <= 8e9
    assert plan.runs[0].recipe.steps >= 300
    assert true_seconds(plan, machine(1e14, 4e-3)) < 3600


@pytest.mark.parametrize(
    ("flops", "layer_seconds", "batch"),
    [(4e14, 9e-3, 32), (4e13, 5e-4, 16)],
    ids=["the GPU waits for its host", "the host waits for its GPU"],
)
def test_a_smaller_batch_is_taken_only_for_more_steps(
    plan_for: PlanFor, flops: float, layer_seconds: float, batch: int
) -> None:
    data = FakeText(18_000_000, 1_000_000, vocab_size=16_384)
    sizes = ("d256-L5", "d384-L6", "d512-L8")
    plan = plan_for(data, machine(flops, layer_seconds), GPU, budget_seconds=900, sizes=sizes)
    assert plan.runs[0].recipe.batch_size == batch
    assert plan.runs[0].recipe.steps >= 300


def test_compiling_is_for_long_runs_on_a_gpu(plan_for: PlanFor) -> None:
    data = FakeText(10**9, 5_000_000)
    short = plan_for(data, machine(1e14, 4e-3), GPU, budget_seconds=300)
    long = plan_for(data, machine(1e14, 4e-3), GPU, budget_seconds=6 * 3600)
    assert not short.runs[0].recipe.compile
    assert long.runs[0].recipe.compile
    assert plan_for(data, machine(1e14, 4e-3), GPU, budget_seconds=600, compile=True).runs[0].recipe.compile
    assert not plan_for(data, budget_seconds=36_000).runs[0].recipe.compile


@pytest.mark.parametrize("budget", [900, 3600])
def test_compiled_models_are_measured_and_get_the_time_they_save(plan_for: PlanFor, budget: int) -> None:
    data = FakeText(10**9, 5_000_000)
    fake, seen = machine(1e14, 4e-3), []

    def measure(recipe: Recipe, seconds: float) -> Any:
        seen.append(recipe)
        return fake(recipe, seconds)

    sizes = ("d256-L5", "d384-L6", "d512-L8")
    plan = plan_for(data, measure, GPU, budget_seconds=budget, sizes=sizes)
    eager = plan_for(data, fake, GPU, budget_seconds=budget, sizes=sizes, compile=False)
    assert all(run.recipe.compile for run in plan.runs)
    measured = [(recipe.model["hidden_size"], recipe.shift is None) for recipe in seen if recipe.compile]
    assert len(measured) == len(set(measured)) == 6  # every size and arm, once
    assert {recipe.batch_size for recipe in seen if recipe.compile} == {plan.runs[0].recipe.batch_size}
    assert plan.tokens > 1.2 * eager.tokens
    assert true_seconds(plan, fake) < budget


def test_several_gpus_share_the_runs(plan_for: PlanFor) -> None:
    data = FakeText(10**9, 5_000_000)
    measure = machine(1e14, 4e-3)
    one = plan_for(data, measure, GPU, budget_seconds=1800)
    four = plan_for(data, measure, type(GPU)("cuda", "A GPU", 4, 80 << 30), budget_seconds=1800)
    assert four.devices == 4
    assert true_seconds(four, measure) < 1800
    assert (four.sizes[-1].parameters, four.tokens) > (one.sizes[-1].parameters, one.tokens)


def test_learning_rate_falls_with_width() -> None:
    assert learning_rate(64) == learning_rate(128) == 3e-3
    assert learning_rate(512) == pytest.approx(1e-3, rel=0.1)


def test_the_cpu_is_asked_for_even_where_there_is_a_gpu(plan_for: PlanFor) -> None:
    assert plan_for(machine_info=CPU, device="cpu").runs[0].recipe.device == "cpu"
