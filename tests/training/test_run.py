from __future__ import annotations

import json
import math
import zipfile

import pytest
import torch
from interrupting import stopped_after
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import kvshift
from kvshift.errors import OutputError, UsageError
from kvshift.training import read_record, run
from kvshift.training.trainer import RunTrainer


@pytest.fixture(scope="module")
def finished(make_recipe, tmp_path_factory):
    """A shifted run that nothing disturbed; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    seen = []
    record = run(make_recipe(), folder, on_progress=seen.append)
    return folder, record, seen


def test_record_holds_the_peak_that_the_meter_saw(make_recipe, tmp_path, monkeypatch):
    """What it sees is tested in test_speed.py; a long test process may have memory to spare."""
    monkeypatch.setattr("kvshift.training.meters.PeakMemory.sample", lambda self, idle: 123_456)
    assert run(make_recipe(), tmp_path / "run").peak_memory_bytes == 123_456


def test_record(finished, make_recipe):
    folder, record, seen = finished
    assert record == read_record(folder)
    assert record.status == "finished"
    assert [point.step for point in record.steps] == list(range(1, 13))
    assert [(point.step, point.tokens) for point in record.evaluations] == [(4, 512), (8, 1024), (12, 1536)]
    assert [point.step for point in record.taps] == [0, 4, 8, 12]
    assert len(record.taps[0].keys) == 2
    assert all(sum(head) == pytest.approx(1) for head in record.taps[0].keys[0])  # the paper's start
    assert record.taps[0].keys != record.taps[-1].keys
    assert record.final_loss == record.evaluations[-1].nats_per_token < record.evaluations[0].nats_per_token
    seconds = [point.seconds for point in record.steps]
    assert 0 < seconds[0] < seconds[-1] <= record.train_seconds < record.wall_seconds
    assert record.tokens_per_second > 0
    assert record.tap_parameters == 2 * 2 * 2 * 2
    assert record.device == "CPU, 1 thread"
    assert record.versions["torch"] == torch.__version__
    assert (seen[0].step, seen[0].steps, seen[0].tokens) == (1, 12, 128)
    assert seen[0].loss == pytest.approx(record.steps[0].loss)


def test_final_model_is_the_one_that_was_evaluated(finished, make_recipe, text):
    folder, record, _ = finished
    model = kvshift.from_pretrained(folder / "final").eval()
    nats, tokens, byte_nats, size = 0.0, 0, 0.0, 0
    count = text.validation.window_count(32)
    for i in range(10):  # one window at a time, one token at a time
        inputs, targets, starts = text.validation.window(i * count // 10, 32)
        ends = [t for t in range(1, 32) if starts[t]] + [32]
        begin = 0
        for end in ends:
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(inputs[None, begin:end])).logits[0]
            for t in range(begin, end):
                if targets[t] == -100:
                    continue
                loss = -F.log_softmax(logits[t - begin].double(), -1)[targets[t]].item()
                nats, tokens = nats + loss, tokens + 1
                if text.token_bytes[targets[t]]:
                    byte_nats, size = byte_nats + loss, size + int(text.token_bytes[targets[t]])
            begin = end
    assert record.final_loss == pytest.approx(nats / tokens, rel=1e-5)
    assert record.evaluations[-1].bits_per_byte == pytest.approx(byte_nats / math.log(2) / size, rel=1e-5)


def test_folder_holds_no_pickle_and_nothing_superfluous(finished):
    folder, _, _ = finished
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "recipe.json",
        "record.jsonl",
        "status.json",
        "final/config.json",
        "final/generation_config.json",
        "final/model.safetensors",
    }
    assert json.loads((folder / "final/config.json").read_text())["use_cache"] is True


def test_checkpoints_hold_no_pickle(make_recipe, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("torch.save and torch.load are pickle")

    monkeypatch.setattr(torch, "save", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    recipe = make_recipe(checkpoint_seconds=0)
    with stopped_after(5):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000004", "step-00000005"]
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".jsonl", ".safetensors")
            assert not zipfile.is_zipfile(path)
            assert path.read_bytes()[:1] != b"\x80"


def test_nothing_is_written_elsewhere(make_recipe, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run(make_recipe(tokens=128), tmp_path / "run")
    assert list(elsewhere.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "run"}


def test_equal_recipes_give_equal_runs(finished, make_recipe, tmp_path, lines_without_times, final_bytes):
    run(make_recipe(checkpoint_seconds=0), tmp_path / "again")  # checkpoints change nothing
    assert lines_without_times(tmp_path / "again") == lines_without_times(finished[0])
    assert final_bytes(tmp_path / "again") == final_bytes(finished[0])


def test_evaluations_change_nothing(finished, make_recipe, tmp_path, final_bytes):
    run(make_recipe(evaluations=12, evaluation_tokens=10**6), tmp_path / "run")
    assert final_bytes(tmp_path / "run") == final_bytes(finished[0])


def test_dropout_draws_are_resumed_and_not_disturbed_by_evaluation(make_recipe, tmp_path, final_bytes):
    model = {**make_recipe().model, "attention_dropout": 0.2}
    run(make_recipe(model=model), tmp_path / "one")
    run(make_recipe(model=model, evaluations=6), tmp_path / "two")
    assert final_bytes(tmp_path / "one") == final_bytes(tmp_path / "two")


def test_a_finished_run_is_returned_at_once(finished, make_recipe, monkeypatch):
    folder, record, _ = finished
    monkeypatch.setattr(RunTrainer, "train", None)
    before = (folder / "record.jsonl").read_bytes()
    assert run(make_recipe(checkpoint_seconds=5), folder) == record
    assert (folder / "record.jsonl").read_bytes() == before


def test_vanilla_final_loads_with_transformers(make_recipe, tmp_path):
    record = run(make_recipe(shift=None), tmp_path / "run")
    assert record.taps == []
    assert record.tap_parameters == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_equal_the_whole_batch(finished, make_recipe, tmp_path, micro):
    run(make_recipe(micro_batch_size=micro), tmp_path / "run")
    whole = kvshift.from_pretrained(finished[0] / "final").state_dict()
    parts = kvshift.from_pretrained(tmp_path / "run" / "final").state_dict()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=2e-5, rtol=1e-5)
    losses = [[p.loss for p in read_record(folder).steps] for folder in (finished[0], tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_first_step_is_the_formula(make_recipe, text, tmp_path):
    """One step of AdamW, written out: decay, clipping, the taps' own learning rate."""
    from kvshift.training.data import TrainingWindows
    from kvshift.training.model import build_model

    recipe = make_recipe(tokens=128, warmup=0, final_learning_rate=1.0, clip=0.5, learning_rate=1e-3)
    run(recipe, tmp_path / "run")
    after = kvshift.from_pretrained(tmp_path / "run" / "final").state_dict()
    model = build_model(recipe)
    batch = TrainingWindows(text.train, recipe).__getitems__([0, 1, 2, 3])
    logits = model(input_ids=batch["input_ids"], position_ids=batch.get("position_ids")).logits
    F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    assert norm > 0.5
    for name, p in model.named_parameters():
        gradient = p.grad * 0.5 / norm
        tap = name.endswith(("k_weight", "v_weight"))
        rate = 1e-2 if tap else 1e-3
        decay = 0.1 if p.dim() >= 2 and not tap else 0.0
        expected = p * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after[name], expected.detach(), atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_loss_that_is_not_finite_ends_the_run(make_recipe, tmp_path, monkeypatch, where):
    if where == "training":
        recipe = make_recipe(learning_rate=10.0, clip=1e30, weight_decay=1.0, tokens=128 * 60)
        original = RunTrainer.compute_loss
        monkeypatch.setattr(
            RunTrainer,
            "compute_loss",
            lambda self, *a, **k: original(self, *a, **k) * (math.nan if self.state.global_step == 5 else 1),
        )
    else:
        recipe = make_recipe()
        original = kvshift.training.trainer.evaluate
        monkeypatch.setattr(
            "kvshift.training.trainer.evaluate", lambda *a: original(*a)._replace(nats_per_token=math.inf)
        )
    record = run(recipe, tmp_path / "run")
    assert record.status == "diverged"
    assert where in record.error
    assert record.final_loss is None
    assert all(math.isfinite(point.loss) for point in record.steps)
    assert not (tmp_path / "run" / "final").exists()
    monkeypatch.undo()
    assert run(recipe, tmp_path / "run") == record  # not tried again: it would diverge again


def test_a_failure_is_recorded_and_the_next_start_goes_on(make_recipe, tmp_path, finished, final_bytes):
    recipe = make_recipe(checkpoint_seconds=0)
    with stopped_after(6, MemoryError("no memory")):
        run(recipe, tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert (record.status, record.error) == ("failed", "MemoryError: no memory")
    assert len(record.steps) == 6
    assert run(recipe, tmp_path / "run").status == "finished"
    assert final_bytes(tmp_path / "run") == final_bytes(finished[0])


def test_another_recipe_is_refused(finished, make_recipe):
    folder, _, _ = finished
    with pytest.raises(OutputError, match=r"its learning_rate is 0.003, this recipe's 0.001"):
        run(make_recipe(learning_rate=1e-3), folder)
    with pytest.raises(OutputError, match="its shift is"):
        run(make_recipe(shift=None), folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": 127}, "tokens is 127"),
        ({"micro_batch_size": 3}, "divisor of the batch size 4"),
        ({"device": "cuda"}, "CUDA"),
        ({"sequence_length": 1 << 19, "tokens": 1 << 30}, "window"),
    ],
)
def test_impossible_recipes_leave_nothing_behind(make_recipe, tmp_path, change, words):
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(kvshift.errors.KVShiftError, match=words):
        run(make_recipe(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_distributed_launch_is_refused(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one device"):
        run(make_recipe(), tmp_path / "run")


def test_unwritable_folder(make_recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        run(make_recipe(), tmp_path / "file" / "run")
