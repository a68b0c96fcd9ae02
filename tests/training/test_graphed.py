"""A step that is recorded once and replayed. The recording is a stand-in; test_cuda.py has CUDA's."""

from __future__ import annotations

import operator

import pytest
import torch
from task_recipes import GPT2, LLAMA, make_recipe

from kvshift.tasks.task import IGNORED
from kvshift.training.graphed import WARM_UP, Cuda, GraphedStep, can_be_graphed, take_whole_rows
from kvshift.training.task_data import Lesson, lessons, make_lesson
from kvshift.training.task_recipe import TaskRecipe
from kvshift.training.task_run import TaskModel


class Recorder(Cuda):
    """Counts. Like CUDA's it records without doing, and what it recorded reads the same tensors each time."""

    def __init__(self) -> None:
        self.warmed = self.recorded = self.replayed = 0

    def warm_up(self, work) -> None:
        self.warmed += 1
        work()

    def record(self, work):
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


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
    recipe = make_recipe(shift=shift, steps=9, warmup_steps=5)
    counts = {len(make_lesson(make_recipe().made_task.batch(i, 4)).asked) for i in range(9)}
    assert len(counts) > 3
    plain, graphed = (_trained(recipe, each) for each in (False, True))
    assert graphed.take_loss() == pytest.approx(plain.take_loss(), rel=1e-6)
    for mine, theirs in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shift", [None, {"init": "paper"}])
@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_whole_rows_are_attended_to_as_before(model, shift) -> None:
    one, other = (TaskModel(make_recipe(model=model, shift=shift)) for _ in range(2))
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
    ],
)
def test_models_that_do_not_attend_to_all_before_are_not_graphed(changes) -> None:
    assert not can_be_graphed(TaskModel(make_recipe(model={**LLAMA, **changes})).model)


def test_after_loading_nothing_recorded_is_replayed(tmp_path) -> None:
    """Loading gives the optimizer other tensors."""
    model, device = _trained(make_recipe(), graphed=True), Recorder()
    model._step = GraphedStep(model._learn_from, device)
    steps = list(lessons(model.task, 4, 0, 2 * WARM_UP + 2, model.device, workers=0))
    for lesson in steps[: WARM_UP + 1]:
        model.learn(lesson, 0)
    model.save(tmp_path, {})
    model.load(tmp_path)
    for lesson in steps[WARM_UP + 1 :]:
        model.learn(lesson, 0)
    assert (device.warmed, device.recorded) == (2 * WARM_UP, 2)
