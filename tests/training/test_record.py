from __future__ import annotations

import json

import pytest

from kvshift.errors import OutputError
from kvshift.training import EvaluationPoint, RecordWriter, StepPoint, TapsPoint, read_record
from kvshift.training.record import write_status

POINTS = [
    StepPoint(1, 128, 5.123456789012345, 0.1),
    EvaluationPoint(1, 128, 5.0, 3.3, 0.1),
    TapsPoint(1, 128, [[[0.25, 0.75]]], None),
    StepPoint(2, 256, 4.5, 0.2),
]


@pytest.fixture
def folder(tmp_path, make_recipe):
    (tmp_path / "recipe.json").write_text(make_recipe().model_dump_json())
    writer = RecordWriter(tmp_path, 0)
    writer.write("start", {"device": "CPU, 1 thread", "versions": {"torch": "2"}, "parameters": 7})
    for point in POINTS:
        writer.point(point)
    writer.close()
    return tmp_path


def test_round_trip(folder, make_recipe):
    record = read_record(folder)
    assert record.status == "unfinished"
    assert record.recipe == make_recipe()
    assert record.steps == [POINTS[0], POINTS[3]]
    assert record.evaluations == [POINTS[1]]
    assert record.taps == [POINTS[2]]
    assert (record.device, record.parameters) == ("CPU, 1 thread", 7)
    assert record.train_seconds == 0.2
    assert record.final_loss is None


def test_end_and_status(folder):
    writer = RecordWriter(folder, (folder / "record.jsonl").stat().st_size)
    writer.write("end", {"status": "finished", "error": None, "train_seconds": 9.0, "peak_memory_bytes": 5})
    writer.close()
    assert read_record(folder).status == "unfinished"  # the status file is written last and decides
    write_status(folder, "finished", None)
    record = read_record(folder)
    assert (record.status, record.train_seconds, record.peak_memory_bytes) == ("finished", 9.0, 5)
    assert record.final_loss == 5.0


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_truncated_last_line(folder, cut):
    path = folder / "record.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_record(folder).steps == [POINTS[0]]


def test_reading_ends_at_a_broken_line(folder):
    path = folder / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\0\0\0\n", *lines[3:]]))
    record = read_record(folder)
    assert (len(record.steps), len(record.evaluations), record.taps) == (1, 1, [])


def test_writer_cuts_back(folder):
    path = folder / "record.jsonl"
    size = len(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    writer = RecordWriter(folder, size)
    writer.point(POINTS[3])
    assert writer.sync() == path.stat().st_size
    writer.close()
    assert read_record(folder).steps == [POINTS[0], POINTS[3]]
    assert read_record(folder).evaluations == []


def test_not_a_number_never_reaches_the_file(folder):
    writer = RecordWriter(folder, 0)
    with pytest.raises(ValueError):
        writer.point(StepPoint(1, 1, float("nan"), 0.0))
    assert writer.size() == 0
    writer.close()


def test_empty_folder(tmp_path, make_recipe):
    record = read_record(tmp_path, make_recipe())
    assert (record.status, record.steps, record.recipe) == ("unfinished", [], make_recipe())
    assert read_record(tmp_path / "missing", make_recipe()).status == "unfinished"
    with pytest.raises(OutputError, match="holds no run"):
        read_record(tmp_path)


def test_damaged_recipe(folder):
    values = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**values, "tokens": -1}))
    with pytest.raises(OutputError, match="tokens"):
        read_record(folder)
