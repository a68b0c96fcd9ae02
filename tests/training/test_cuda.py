"""The path a GPU takes: bfloat16, a compiled model, resuming. Skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from interrupting import stopped_after
from task_recipes import DROPOUT, GPT2, LLAMA
from task_recipes import make_recipe as make_task_recipe
from transformers import TrainerCallback

import kvshift
from kvshift.tasks.task import IGNORED
from kvshift.tasks.text import TextData
from kvshift.training import measure_speed, read_record, run
from kvshift.training.graphed import VARIABLE, WARM_UP, GraphedStep
from kvshift.training.task_data import lessons
from kvshift.training.task_run import TaskModel, train_task
from kvshift.training.trainer import RunTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(device="auto", precision="auto", micro_batch_size=2, tokens=40 * 128)


@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_run_agrees_with_the_cpus(recipe, tmp_path, compiled):
    gpu = run(recipe.model_copy(update={"compile": compiled}), tmp_path / "gpu")
    cpu = run(recipe.model_copy(update={"device": "cpu"}), tmp_path / "cpu")
    assert gpu.extra["precision"] == "bfloat16"
    assert gpu.peak_memory_bytes > 0
    assert gpu.steps[0].loss == pytest.approx(cpu.steps[0].loss, abs=5e-3)
    assert gpu.final_loss == pytest.approx(cpu.final_loss, abs=5e-2)
    assert kvshift.from_pretrained(tmp_path / "gpu" / "final").dtype == torch.float32


def test_gpu_run_goes_on_after_an_interruption(recipe, tmp_path):
    with stopped_after(20):
        run(recipe.model_copy(update={"checkpoint_seconds": 0}), tmp_path / "run")
    assert read_record(tmp_path / "run").status == "unfinished"
    resumed, whole = run(recipe, tmp_path / "run"), run(recipe, tmp_path / "whole")
    assert [point.step for point in resumed.steps] == [point.step for point in whole.steps]
    assert resumed.final_loss == pytest.approx(whole.final_loss, abs=1e-2)


def test_gpu_speed(recipe):
    speed = measure_speed(recipe, seconds=0.5)
    assert 0 < speed.step_seconds < 1
    assert speed.peak_memory_bytes > 0


@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_graphed_step_learns_what_a_plain_one_learns(model, shift, tmp_path):
    models = {
        "llama": {**LLAMA, "hidden_size": 64, "intermediate_size": 128},
        "gpt2": {**GPT2, "n_embd": 64, "n_layer": 2},
    }
    recipe = make_task_recipe(
        task_settings={"vocab_size": 64, "candidates": 16, "length": 65},
        model=models[model],
        shift=shift,
        steps=12,
        batch_size=8,
        warmup_steps=6,
        learning_rate=3e-3,
        evaluate_every=4,
        device="cuda",
        compile=True,
    )
    graphed, plain = TaskModel(recipe), TaskModel(recipe.model_copy(update={"compile": False}))
    assert isinstance(graphed._step, GraphedStep)
    both = (graphed, plain)
    for step, lesson in enumerate(lessons(graphed.task, 8, 0, 12, graphed.device, workers=1)):
        assert (lesson.answers != IGNORED).all()
        for each in both:
            each.learn(lesson, step)
    assert graphed._step._replay is not None
    first, second = (each.take_loss() for each in both)
    assert first == pytest.approx(second, rel=2e-3)
    for mine, theirs in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        # In bfloat16 Adam may leave an element steps away, not a matrix. (A bias of keys is all noise.)
        assert mine.dim() < 2 or (mine - theirs).norm() < 0.05 * theirs.norm() + 0.02
    evaluated, expected = (each.evaluate()["determined"] for each in both)
    assert abs(evaluated.correct - expected.correct) <= 0.05 * expected.total
    graphed.save(tmp_path, {})
    graphed.load(tmp_path)  # which records anew
    for step, lesson in enumerate(lessons(graphed.task, 8, 0, 5, graphed.device, workers=1)):
        graphed.learn(lesson, step)
    assert graphed._step._replay is not None
    record = train_task(recipe, tmp_path / "whole", checkpoint_seconds=0)
    assert [point.step for point in record.points] == [4, 8, 12]


@pytest.mark.parametrize("drops", [False, True])
def test_each_replay_drops_anew(drops, tmp_path):
    model = {**GPT2, "n_embd": 64, "n_layer": 2, **(DROPOUT if drops else {})}
    recipe = make_task_recipe(model=model, learning_rate=1e-12, device="cuda", compile=True)

    def losses(trained: TaskModel, count: int) -> list[float]:
        lesson = next(iter(lessons(trained.task, 4, 0, 1, trained.device, workers=0)))
        found = []
        for _ in range(count):
            trained.learn(lesson, 0)
            found.append(trained.take_loss())
        return found

    trained = TaskModel(recipe)
    whole = losses(trained, 12)
    assert trained._step._replay is not None
    if not drops:
        assert whole == pytest.approx([whole[0]] * 12, rel=1e-2)
        return
    assert len(set(whole)) == 12
    assert max(whole) - min(whole) > 0.02
    trained.save(tmp_path, {})
    reached = torch.cuda.get_rng_state()
    again = TaskModel(recipe)
    torch.cuda.manual_seed(1)
    again.load(tmp_path)
    assert torch.equal(torch.cuda.get_rng_state(), reached)
    assert len(set(losses(again, 2 * WARM_UP))) == 2 * WARM_UP


@pytest.fixture
def text_recipe(make_recipe):
    """With batches in which a document begins inside a row, and others."""

    def make(**changes):
        return make_recipe(
            device="cuda",
            sequence_length=32,
            batch_size=2,
            tokens=40 * 64,
            learning_rate=1e-3,
            **{"precision": "float32", **changes},
        )

    return make


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_recorded_passes_leave_the_gradients_of_plain_ones(model, shift, compiled, text_recipe, tmp_path):
    recipe = text_recipe(model=model, shift=shift, compile=compiled)
    trainer = RunTrainer(recipe, TextData.open(recipe.data), tmp_path, TrainerCallback())
    assert trainer.graphed is not None
    counts, parameters = {True: set(), False: set()}, list(trainer.model.parameters())
    trainer.clock.start(0)
    for item in range(0, 80, 2):
        batch = trainer._prepare_inputs(trainer.train_dataset.__getitems__([item, item + 1]))
        count = trainer._get_num_items_in_batch([batch], trainer.args.device)
        counts["position_ids" in batch].add(int(count))
        recorded = trainer.training_step(trainer.model, batch, count).item()
        found = [parameter.grad.clone() for parameter in parameters]
        trainer.model.zero_grad()
        plain = trainer._forward_and_backward(batch, count).item()
        assert recorded == pytest.approx(plain, rel=1e-4)
        for gradient, parameter in zip(found, parameters, strict=True):
            difference = (gradient - parameter.grad).norm()
            assert difference <= 5e-3 * parameter.grad.norm() + 1e-6
        trainer.model.zero_grad()
    assert counts[True]
    assert counts[False] == {63, 64}


@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
def test_a_graphed_text_run_learns_what_a_plain_one_learns(shift, text_recipe, tmp_path, monkeypatch):
    recipe = text_recipe(shift=shift, precision="bfloat16")
    graphed = run(recipe, tmp_path / "graphed")
    monkeypatch.setenv(VARIABLE, "0")
    plain = run(recipe, tmp_path / "plain")
    assert (graphed.extra["cuda_graphs"], plain.extra["cuda_graphs"]) == (True, False)
    assert graphed.peak_memory_bytes >= 0.9 * plain.peak_memory_bytes  # replays are counted
    assert [point.loss for point in graphed.steps] == pytest.approx(
        [point.loss for point in plain.steps], abs=1e-2
    )
    assert graphed.final_loss == pytest.approx(plain.final_loss, abs=1e-2)
    assert plain.final_loss < plain.evaluations[0].nats_per_token


def test_a_graphed_text_run_goes_on_after_an_interruption(text_recipe, tmp_path):
    recipe = text_recipe()
    with stopped_after(20):
        run(recipe.model_copy(update={"checkpoint_seconds": 0}), tmp_path / "run")
    assert read_record(tmp_path / "run").status == "unfinished"
    resumed, whole = run(recipe, tmp_path / "run"), run(recipe, tmp_path / "whole")
    assert resumed.extra["cuda_graphs"]
    assert resumed.final_loss == pytest.approx(whole.final_loss, abs=1e-2)
