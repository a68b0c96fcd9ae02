"""A step that is recorded once and replayed. The recording is a stand-in; test_cuda.py has CUDA's."""

from __future__ import annotations

import contextlib
import operator
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
import torch
from interrupting import stopped_after
from task_recipes import GPT2, LLAMA
from task_recipes import make_recipe as make_task_recipe
from transformers import TrainerCallback

from kvshift.tasks.task import IGNORED
from kvshift.tasks.text import TextData
from kvshift.training import read_record, run
from kvshift.training.graphed import (
    VARIABLE,
    WARM_UP,
    WHOLE_ROWS,
    Cuda,
    GraphedPass,
    GraphedStep,
    can_be_graphed,
    take_whole_rows,
)
from kvshift.training.meters import Clock
from kvshift.training.model import build_model
from kvshift.training.task_data import Lesson, lessons, make_lesson
from kvshift.training.task_recipe import TaskRecipe
from kvshift.training.task_run import TaskModel
from kvshift.training.trainer import RunTrainer, is_graphed

ONE = torch.ones(())


class Recorder(Cuda):
    """Counts. Like CUDA's it records without doing, and what it recorded reads the same tensors each time."""

    def __init__(self) -> None:
        super().__init__()
        self.warmed = self.recorded = self.replayed = 0

    def warm_up(self, work) -> None:
        self.warmed += 1
        work()

    def record(self, work):
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return (), replay


class MakingRecorder(Recorder):
    """For work that makes tensors: before the first replay they hold nothing, and they stay the same."""

    replaying = False

    def record(self, work):
        made = tuple(each if each is None else torch.full_like(each, torch.nan) for each in work())

        def again() -> None:
            self.replaying = True
            for mine, new in zip(made, work(), strict=True):
                if mine is not None:
                    mine.copy_(new)
            self.replaying = False

        return made, super().record(again)[1]


def _lesson(asked: int) -> Lesson:
    return Lesson(torch.randint(9, (2, 5)), None, torch.randint(10, (asked,)), torch.randint(9, (asked,)))


def test_it_warms_up_then_replays_each_lesson_in_the_same_tensors() -> None:
    seen, device = [], Recorder()

    def step(lesson: Lesson) -> None:
        used = lesson.answers != IGNORED
        seen.append((lesson, lesson.inputs.clone(), lesson.asked[used].clone(), lesson.answers[used].clone()))

    graphed = GraphedStep(step, device)
    given = [_lesson(asked) for asked in (3, 5, 2, 4, 5, 0, 6, 3, 7, 1)]
    for lesson in given:
        graphed(lesson)
    assert (device.warmed, device.recorded, device.replayed) == (WARM_UP, 1, 6)
    assert len(seen) == len(given)
    for (_, *found), lesson in zip(seen, given, strict=True):
        for mine, expected in zip(found, (lesson.inputs, lesson.asked, lesson.answers), strict=True):
            assert torch.equal(mine, expected)
    # Of the warm-up's most and a tenth more, 7 is too many: as it is, without the recording.
    rooms = [
        id(lesson) for (lesson, *_), given_one in zip(seen, given, strict=True) if lesson is not given_one
    ]
    assert len(rooms) == 6
    assert len(set(rooms)) == 1
    assert seen[8][0] is given[8]


def test_packed_rows_are_refused() -> None:
    packed = _lesson(2)._replace(positions=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="one sequence, not packed"):
        GraphedStep(lambda lesson: None, Recorder())(packed)


def _trained(recipe: TaskRecipe, graphed: bool) -> TaskModel:
    model = TaskModel(recipe)
    model.model.double()
    if graphed:
        take_whole_rows(model.model)
        rates = [torch.tensor(peak, dtype=torch.float64) for peak in model._peaks]
        for group, rate in zip(model.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        model._step = GraphedStep(model._learn_from, Recorder())
    steps = lessons(model.task, recipe.batch_size, 0, recipe.steps, model.device, workers=0)
    for done, lesson in enumerate(steps):
        model.learn(lesson, done)
    if graphed:  # a recording reads the tensors that it was made with
        assert all(map(operator.is_, (group["lr"] for group in model.optimizer.param_groups), rates))
    return model


@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
def test_it_learns_what_plain_steps_learn(shift) -> None:
    recipe = make_task_recipe(shift=shift, steps=9, warmup_steps=5)
    counts = {len(make_lesson(make_task_recipe().made_task.batch(i, 4)).asked) for i in range(9)}
    assert len(counts) > 3
    plain, graphed = (_trained(recipe, each) for each in (False, True))
    assert graphed.take_loss() == pytest.approx(plain.take_loss(), rel=1e-6)
    for mine, theirs in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_whole_rows_are_attended_to_as_before(model, shift) -> None:
    one, other = (TaskModel(make_task_recipe(model=model, shift=shift)) for _ in range(2))
    assert can_be_graphed(other.model)
    take_whole_rows(other.model)
    lesson = make_lesson(one.task.test(0, 3))
    torch.testing.assert_close(one.logits(lesson), other.logits(lesson), rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": 4},
        {"model_type": "gemma2", "head_dim": 8},
        {"attn_implementation": "eager"},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ],
)
def test_models_that_do_not_attend_to_all_before_are_not_graphed(changes) -> None:
    assert not can_be_graphed(TaskModel(make_task_recipe(model={**LLAMA, **changes})).model)


def test_after_loading_nothing_recorded_is_replayed(tmp_path) -> None:
    """Loading gives the optimizer other tensors."""
    model, device = _trained(make_task_recipe(), graphed=True), Recorder()
    model._step = GraphedStep(model._learn_from, device)
    steps = list(lessons(model.task, 4, 0, 2 * WARM_UP + 2, model.device, workers=0))
    for lesson in steps[: WARM_UP + 1]:
        model.learn(lesson, 0)
    model.save(tmp_path, {})
    model.load(tmp_path)
    for lesson in steps[WARM_UP + 1 :]:
        model.learn(lesson, 0)
    assert (device.warmed, device.recorded) == (2 * WARM_UP, 2)


def test_recording_is_for_a_gpu_and_whole_batches(make_recipe) -> None:
    recipe = make_recipe(batch_size=4)
    model, gpu = build_model(recipe), torch.device("cuda", 0)
    assert is_graphed(recipe, model, gpu)
    assert is_graphed(recipe.model_copy(update={"micro_batch_size": 4}), model, gpu)
    assert not is_graphed(recipe.model_copy(update={"micro_batch_size": 2}), model, gpu)
    assert not is_graphed(recipe, model, torch.device("cpu"))


def test_the_warm_up_meets_both_forms(make_recipe, tmp_path) -> None:
    """What only the run met would be compiled, or recorded, in the middle of it."""
    recipe = make_recipe(sequence_length=32, batch_size=2, tokens=60 * 64)
    trainer = RunTrainer(recipe, TextData.open(recipe.data), tmp_path, TrainerCallback())
    packed = ["position_ids" in trainer.train_dataset.__getitems__([i, i + 1]) for i in range(0, 80, 2)]
    first, other = trainer._forms()
    assert "position_ids" not in first
    assert packed[0] is False
    found = trainer.train_dataset.__getitems__([2 * packed.index(True), 2 * packed.index(True) + 1])
    assert torch.equal(other["position_ids"], found["position_ids"])
    alone = make_recipe(sequence_length=32, batch_size=2, tokens=packed.index(True) * 64)
    assert len(RunTrainer(alone, TextData.open(recipe.data), tmp_path, TrainerCallback())._forms()) == 1


def test_a_pass_does_not_add_to_gradients() -> None:
    model = torch.nn.Linear(2, 1)

    def work(batch, count):
        loss = model(batch["x"]).sum() / count
        loss.backward()
        return loss.detach()

    graphed, batch = GraphedPass(work, model, MakingRecorder()), {"x": torch.ones(3, 2), "position_ids": ONE}
    assert not graphed.knows(batch)
    graphed.record(batch, ONE)
    assert graphed.knows(batch)
    assert graphed(batch, 2 * ONE) == pytest.approx(model(batch["x"]).sum().item() / 2)
    assert model.weight.grad.tolist() == [[1.5, 1.5]]
    with pytest.raises(RuntimeError, match="does not add to gradients"):
        graphed(batch, ONE)


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted."), torch.OutOfMemoryError("full")])
def test_a_failed_recording_says_how_to_do_without(error) -> None:
    class Refusing(Recorder):
        def record(self, work):
            raise error

    step = GraphedStep(lambda lesson: None, Refusing())
    for _ in range(WARM_UP):
        step(_lesson(2))
    with pytest.raises(RuntimeError) as caught:
        step(_lesson(2))
    if isinstance(error, torch.OutOfMemoryError):
        assert caught.value is error  # which means too little memory, and to whoever asked, too large a model
    else:
        assert "not permitted. Set KVSHIFT_CUDA_GRAPHS=0" in str(caught.value)


def test_the_environment_forbids_it(monkeypatch) -> None:
    model = TaskModel(make_task_recipe()).model
    assert can_be_graphed(model)
    monkeypatch.setenv(VARIABLE, "0")
    assert not can_be_graphed(model)


def test_dropout_forbids_it_for_texts(make_recipe) -> None:
    """Whose warm-up works on the very batch that is then learned from."""
    model = TaskModel(make_task_recipe(model=LLAMA)).model
    recipe, device = make_recipe(), torch.device("cuda")
    assert is_graphed(recipe, model, device)
    model.config.attention_dropout = 0.1
    assert not is_graphed(recipe, model, device)


# Texts


@dataclass
class Seen:
    """What text runs gave the stand-in: one of it for each run, by which attention batches with positions and
    without were read, and over how many tokens each form's losses were means."""

    devices: list[MakingRecorder] = field(default_factory=list)
    attended: set[tuple[bool, str]] = field(default_factory=set)
    counts: dict[bool, set[int]] = field(default_factory=lambda: defaultdict(set))


@pytest.fixture
def graphed(monkeypatch):
    """From its call on text runs have the stand-in."""
    original, paused, seen = RunTrainer.__init__, Clock.paused, Seen()

    @contextlib.contextmanager
    def held(clock):
        with paused(clock):
            clock.held = True
            yield
            clock.held = False

    def __init__(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        assert self.graphed is None  # on a CPU
        seen.devices.append(MakingRecorder())

        def work(batch, count):
            packed = "position_ids" in batch
            seen.attended.add((packed, self.model.config._attn_implementation))
            seen.counts[packed].add(int(count))
            assert all(parameter.grad is None for parameter in self.model.parameters())
            assert seen.devices[-1].replaying or self.clock.held  # recording is not training
            return self._forward_and_backward(batch, count)

        self.graphed = GraphedPass(work, self.model, seen.devices[-1])

    def begin() -> Seen:
        monkeypatch.setattr(RunTrainer, "__init__", __init__)
        monkeypatch.setattr(Clock, "held", False, raising=False)
        monkeypatch.setattr(Clock, "paused", held)
        return seen

    return begin


@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_a_text_is_learned_as_without_graphs(model, shift, make_recipe, tmp_path, graphed) -> None:
    recipe = make_recipe(model=model, shift=shift, sequence_length=32, batch_size=2, tokens=40 * 64)
    plain = run(recipe, tmp_path / "plain")
    seen = graphed()
    found = run(recipe, tmp_path / "graphed")
    assert [device.recorded for device in seen.devices] == [2]
    assert [device.replayed for device in seen.devices] == [40]
    # The stand-in replays Python, which finds the model as it was before it was recorded.
    assert seen.attended == {(True, "sdpa"), (False, WHOLE_ROWS), (False, "sdpa")}
    assert seen.counts[False] == {63, 64}
    assert (found.extra["cuda_graphs"], plain.extra["cuda_graphs"]) == (True, False)
    assert [point.loss for point in found.steps] == [point.loss for point in plain.steps]
    assert found.evaluations[-1].nats_per_token == plain.evaluations[-1].nats_per_token
    assert found.steps[-1].loss < found.steps[0].loss


def test_a_graphed_text_run_goes_on_after_an_interruption(make_recipe, tmp_path, graphed) -> None:
    recipe = make_recipe(sequence_length=32, batch_size=2, tokens=40 * 64)
    seen = graphed()
    whole = run(recipe, tmp_path / "whole")
    with stopped_after(25):
        run(recipe.model_copy(update={"checkpoint_seconds": 0}), tmp_path / "run")
    assert read_record(tmp_path / "run").status == "unfinished"
    resumed = run(recipe, tmp_path / "run")
    assert [device.replayed for device in seen.devices] == [40, 25, 15]
    assert {device.recorded for device in seen.devices} == {2}
    assert [point.loss for point in resumed.steps] == [point.loss for point in whole.steps]
    assert resumed.evaluations[-1].nats_per_token == whole.evaluations[-1].nats_per_token
