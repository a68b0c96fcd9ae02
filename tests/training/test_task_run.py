from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from task_recipes import DROPOUT, GPT2, LLAMA, SHIFT, make_recipe
from torch import Tensor
from torch.nn import functional as F

from kvshift.errors import OutputError, UsageError
from kvshift.tasks.gsm import GradeSchoolMaths, prompt, solution
from kvshift.tasks.gsm.words import END
from kvshift.tasks.induction import Induction
from kvshift.tasks.task import IGNORED, Count
from kvshift.training import task_run
from kvshift.training.derivations import write_derivations
from kvshift.training.model import tap_parameters
from kvshift.training.task_data import Lesson, Lessons, lessons, make_lesson
from kvshift.training.task_recipe import TaskRecipe
from kvshift.training.task_run import TaskModel, train_task

GSM = {"train_operations": 2, "test_operations": 2, "unneeded": 1, "length": 160}


def gsm(**changes) -> TaskRecipe:
    return make_recipe(task="gsm", task_settings=GSM, **changes)


def enlarged(recipe: TaskRecipe) -> TaskModel:
    """In float64, with weights so large that attention matters."""
    trained = TaskModel(recipe)
    trained.model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.dim() == 2 and parameter.shape[-1] > 2:
                parameter.normal_(0, 0.4, generator=generator)
    return trained


# What is learned and what is scored


@pytest.mark.parametrize("shift", [None, SHIFT])
def test_a_packed_row_gives_the_logits_of_its_sequences_alone(shift) -> None:
    trained = enlarged(gsm(shift=shift))
    batch = trained.task.test(0, 2)
    lesson = make_lesson(batch)
    assert int(batch.starts[:, 1:].sum()) > 0
    found = trained.logits(lesson)
    expected = []
    for row in range(2):
        begins = [*batch.starts[row].nonzero().flatten().tolist(), batch.inputs.shape[1]]
        alone = [
            trained.model(input_ids=batch.inputs[row : row + 1, begin:end]).logits[0]
            for begin, end in itertools.pairwise(begins)
        ]
        expected.append(torch.cat(alone)[batch.targets[row] != IGNORED])
    # The logits come out in float32.
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=1e-6, atol=1e-6)
    assert lesson.answers.tolist() == batch.targets[batch.targets != IGNORED].tolist()


def test_hops_take_the_last_norm_for_logits_and_learn_at_every_position() -> None:
    trained = enlarged(make_recipe(task="hops", task_settings={}, model=GPT2, logits="final_norm"))
    batch = trained.task.test(0, 3)
    lesson = make_lesson(batch)
    assert lesson.positions is None
    hidden = trained.model(input_ids=batch.inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(trained.logits(lesson).double(), hidden.flatten(0, 1), rtol=1e-6, atol=1e-6)
    assert len(lesson.asked) == batch.targets.numel()


def test_scores_are_those_of_a_plain_forward() -> None:
    trained = enlarged(make_recipe(evaluation_batches=2))
    expected = {"first": 0, "determined": 0}
    totals = dict(expected)
    for number in range(2):
        batch = trained.task.test(number, 8)
        predictions = trained.model(input_ids=batch.inputs).logits.argmax(-1)
        for name, groups in (("first", (1,)), ("determined", (1, 2, 3))):
            scored = torch.isin(batch.groups, torch.tensor(groups))
            expected[name] += int((predictions == batch.targets)[scored].sum())
            totals[name] += int(scored.sum())
    found = trained.evaluate()
    for name in expected:
        assert (found[name].correct, found[name].total) == (expected[name], totals[name])
    assert totals["first"] == 16


def test_a_step_is_adamw_on_the_mean_over_asked_positions() -> None:
    recipe = make_recipe(warmup_steps=4, clip=1e9)
    trained, plain = TaskModel(recipe), TaskModel(recipe)
    batch = trained.task.batch(0, 4)
    trained.learn(make_lesson(batch), 0)

    taps = {id(tap) for tap in tap_parameters(plain.model)}
    parameters = list(plain.model.parameters())
    groups = [
        {
            "params": [parameter],
            "lr": 1e-2 / 4 * (10 if id(parameter) in taps else 1),
            "weight_decay": 0.0 if id(parameter) in taps or parameter.dim() < 2 else 0.1,
        }
        for parameter in parameters
    ]
    logits = plain.model(input_ids=batch.inputs).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    torch.optim.AdamW(groups, betas=(0.9, 0.95)).step()
    for mine, expected in zip(trained.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
    assert trained.take_loss() == pytest.approx(loss.item(), rel=1e-5)
    assert len(taps) == 4


def test_both_arms_start_from_the_same_weights() -> None:
    vanilla, shifted = (TaskModel(make_recipe(shift=shift)).model for shift in (None, SHIFT))
    others = {name: value for name, value in shifted.named_parameters() if "kv_shift" not in name}
    assert others.keys() == dict(vanilla.named_parameters()).keys()
    for name, parameter in vanilla.named_parameters():
        assert torch.equal(parameter, others[name])


def test_processes_make_the_same_lessons_in_the_same_order() -> None:
    task = Induction(vocab_size=32, candidates=16, length=24)
    for end in (9, 2 + 32, 2 + 33):  # one, whole and begun of those that travel together
        alone, ahead = (list(lessons(task, 4, 2, end, torch.device("cpu"), workers)) for workers in (0, 2))
        assert len(alone) == len(ahead) == end - 2
        for step, (one, other) in enumerate(zip(alone, ahead, strict=True), start=2):
            assert torch.equal(one.inputs, task.batch(step, 4).inputs)
            assert all(
                torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True) if mine is not None
            )
            assert one.positions is other.positions is None


def test_lessons_that_travel_together_keep_their_positions_where_they_are_packed() -> None:
    def lesson(asked: int, packed: bool) -> Lesson:
        places = torch.randint(9, (2, 5)) if packed else None
        return Lesson(
            torch.randint(9, (2, 5)), places, torch.randint(10, (asked,)), torch.randint(9, (asked,))
        )

    one_by_one = [lesson(3, False), lesson(0, True), lesson(10, True), lesson(1, False)]
    together = list(Lessons.joined(one_by_one).to(torch.device("cpu")).parted())
    for mine, theirs in zip(together, one_by_one, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_learning_rates() -> None:
    constant = make_recipe(warmup_steps=2, steps=6)
    linear = make_recipe(warmup_steps=2, steps=6, schedule="linear")
    assert [constant.learning_rate_factor(step) for step in range(6)] == [0.5, 1, 1, 1, 1, 1]
    assert [linear.learning_rate_factor(step) for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]


# Derivations


@pytest.mark.parametrize("shift", [None, SHIFT])
def test_derivations_written_together_are_those_written_alone(shift) -> None:
    trained = enlarged(gsm(shift=shift))
    task = trained.task
    assert isinstance(task, GradeSchoolMaths)
    longer = dataclasses.replace(task, test_operations=task.train_operations + 1)
    problems = [*task.problems(0, 3), *longer.problems(0, 2)]
    assert len({len(prompt(problem)) for problem in problems}) > 1  # else nothing is padded
    together = write_derivations(trained.model, problems, 5)
    alone = write_derivations(trained.model, problems, 1)
    for one, other in zip(together, alone, strict=True):
        assert _until_end(one) == _until_end(other)
    assert len({tuple(written) for written in together}) > 1
    # They run on until they are cut off, all at one length although the true ones have several.
    assert END not in alone[0]
    assert len({len(solution(problem)[0]) for problem in problems}) > 1
    assert len(set(map(len, alone))) == 1


def _until_end(written: list[int]) -> list[int]:
    return written[: written.index(END) + 1] if END in written else written


def test_problems_of_both_lengths_are_graded(monkeypatch) -> None:
    """By a model that solves what is no longer than it learned from, and begins the others."""
    longer = {**GSM, "test_operations": 3}
    trained = TaskModel(make_recipe(task="gsm", task_settings=longer, graded_problems=4))
    lengths = []

    def write(model, problems, size) -> list[list[int]]:
        lengths.append({problem.operations for problem in problems})
        return [solution(problem)[0][: None if problem.operations < 3 else 2] for problem in problems]

    monkeypatch.setattr(task_run, "write_derivations", write)
    assert trained.grade() == {
        "answers": Count(0, 4),
        "right": Count(0, 4),
        "trained_answers": Count(4, 4),
        "trained_right": Count(4, 4),
    }
    assert sorted(map(tuple, lengths)) == [(2,), (3,)]


# Going on


def _interrupted(recipe, folder, monkeypatch, at: int) -> None:
    learn = TaskModel.learn

    def stop(self, lesson, done):
        if done == at:
            raise KeyboardInterrupt
        learn(self, lesson, done)

    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "learn", stop)
        with pytest.raises(KeyboardInterrupt):
            train_task(recipe, folder, checkpoint_seconds=0)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch) -> None:
    recipe = gsm(graded_problems=2)
    whole = train_task(recipe, tmp_path / "whole")
    assert [point.step for point in whole.points] == [3, 6, 7]
    assert whole.status == "finished"
    assert whole.grades.keys() == {"answers", "right", "trained_answers", "trained_right"}
    assert whole.tap_parameters == 2 * 2 * 2 * 2
    for at in (2, 3, 5):
        _interrupted(recipe, tmp_path / "parts", monkeypatch, at)
    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "grade", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_task(recipe, tmp_path / "parts", checkpoint_seconds=0)
    assert train_task(recipe, tmp_path / "parts") == whole
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_draws_of_dropout_go_on_where_they_were(tmp_path, monkeypatch) -> None:
    recipe = make_recipe(model={**GPT2, **DROPOUT}, shift=SHIFT)
    whole = train_task(recipe, tmp_path / "whole")
    torch.manual_seed(5)  # the caller's own draws do not matter
    for at in (2, 5):
        _interrupted(recipe, tmp_path / "parts", monkeypatch, at)
        torch.manual_seed(6)
    assert train_task(recipe, tmp_path / "parts") == whole
    losses = [point.loss for point in whole.points]
    plain = train_task(make_recipe(model=GPT2, shift=SHIFT), tmp_path / "plain")
    assert losses != [point.loss for point in plain.points]


def test_nothing_is_dropped_where_scores_are_taken(monkeypatch) -> None:
    seen: list[Tensor] = []
    logits = TaskModel.logits

    def noted(self, lesson):
        seen.append(logits(self, lesson))
        return seen[-1]

    monkeypatch.setattr(TaskModel, "logits", noted)
    dropping, plain = (
        TaskModel(make_recipe(model=each, evaluation_rows=50)) for each in ({**GPT2, **DROPOUT}, GPT2)
    )
    assert dropping.evaluate() == plain.evaluate()
    assert torch.equal(*seen)
    lesson = make_lesson(dropping.task.batch(0, 4))
    assert not torch.equal(dropping.logits(lesson), dropping.logits(lesson))


def test_nothing_is_dropped_where_derivations_are_written() -> None:
    dropping, plain = (
        enlarged(gsm(model={**LLAMA, "attention_dropout": share})).model for share in (0.5, 0.0)
    )
    problems = GradeSchoolMaths(**GSM).problems(0, 3)
    assert write_derivations(dropping, problems, 2) == write_derivations(plain, problems, 2)
    assert dropping.training


def test_without_a_checkpoint_it_begins_again(tmp_path, monkeypatch) -> None:
    recipe = make_recipe()
    whole = train_task(recipe, tmp_path / "whole")
    folder = tmp_path / "parts"
    _interrupted(recipe, folder, monkeypatch, 4)
    for path in (folder / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"damaged")
    assert train_task(recipe, folder) == whole


def test_a_run_that_has_ended_is_not_done_again(tmp_path, monkeypatch) -> None:
    found = train_task(make_recipe(), tmp_path / "run")
    monkeypatch.setattr(task_run, "TaskModel", None)
    assert train_task(make_recipe(), tmp_path / "run") == found


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch) -> None:
    learn = TaskModel.learn

    def broken(self, lesson, done):
        if done == 4:
            for tap in tap_parameters(self.model):
                tap.data.fill_(float("nan"))
        learn(self, lesson, done)

    monkeypatch.setattr(TaskModel, "learn", broken)
    found = train_task(make_recipe(), tmp_path / "run")
    assert found.status == "diverged"
    assert [point.step for point in found.points] == [3]
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    monkeypatch.setattr(task_run, "TaskModel", None)
    assert train_task(make_recipe(), tmp_path / "run") == found


# Refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"graded_problems": 1}, "graded_problems is 1, but the task is 'induction'"),
        ({"task_settings": {"lenght": 3}}, "task_settings of induction.*lenght"),
        ({"task_settings": {"length": 1}}, "Induction.length is 1"),
        ({"model": {**LLAMA, "max_position_embeddings": 5}}, "max_position_embeddings is 5"),
        ({"task": "hops", "task_settings": {}, "logits": "final_norm"}, "hidden size 16; expected at least"),
        ({"device": "cuda"}, "PyTorch sees no CUDA GPU"),
    ],
)
def test_impossible_recipes_end_in_a_sentence(tmp_path, monkeypatch, changes, said) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=said):
        train_task(make_recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused(tmp_path) -> None:
    train_task(make_recipe(), tmp_path)
    with pytest.raises(OutputError, match="holds another run: its seed is 0, this recipe's 1"):
        train_task(make_recipe(seed=1), tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read as a recipe"):
        train_task(make_recipe(), tmp_path)
