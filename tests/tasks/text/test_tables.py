"""Records with a text column, whole and malformed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvshift.errors import DataError
from kvshift.tasks.text import tables

TEXTS = ["first", "second, with a comma\nand a line", "第三", 'a "quote"']


def write_table(path: Path, columns: dict[str, list]) -> Path:
    """Writes columns in the format the suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", [None, "text", "body"])
@pytest.mark.parametrize("packed", [False, True])
def test_tables_give_their_column(tmp_path: Path, suffix: str, column: str | None, packed: bool) -> None:
    path = write_table(tmp_path / f"t{suffix}", {"id": [1, 2, 3, 4], column or "text": TEXTS})
    if packed:
        data = path.read_bytes()
        path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(data))
    assert tables.is_table(path)
    assert list(tables.values(path, column)) == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", [None, "story"])
def test_a_missing_column_lists_those_there_are(tmp_path: Path, suffix: str, column: str | None) -> None:
    path = write_table(tmp_path / f"t{suffix}", {"id": ["1"], "body": ["x"]})
    with pytest.raises(tables.MissingColumn, match=r"no column .*'id', 'body'"):
        list(tables.values(path, column))


@pytest.mark.parametrize("line", ['{"text": "cut', "not json", '["text"]', '"text"', "[" * 100_000])
def test_a_malformed_json_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n", "utf-8")
    with pytest.raises(DataError, match=r"t\.jsonl, line 3: "):
        list(tables.values(path, None))


def test_a_malformed_csv_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,text\n1,good\n2,"bad"trailing\n', "utf-8")
    with pytest.raises(DataError, match=r"t\.csv, line 3: malformed"):
        list(tables.values(path, None))


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": ["word " * 100_000]})
    assert list(tables.values(path, None)) == ["word " * 100_000]


def test_an_empty_table_has_no_records(tmp_path: Path) -> None:
    for name in ("t.csv", "t.jsonl"):
        (tmp_path / name).touch()
        assert list(tables.values(tmp_path / name, None)) == []


def test_a_short_row_and_a_missing_field_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text\n1\n2,b\n")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    assert list(tables.values(tmp_path / "t.csv", None)) == [None, "b"]
    assert list(tables.values(tmp_path / "t.jsonl", None)) == ["a", None]


def test_a_parquet_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", {"text": [1, 2]})
    with pytest.raises(DataError, match=r"'text' of .* holds int64, not text"):
        list(tables.values(path, None))


@pytest.mark.parametrize("keep", [0, 3, 200, -10])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_table(tmp_path / "t.parquet", {"text": [str(n) * 50 for n in range(1000)]})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t\.parquet is not a complete Parquet file"):
        list(tables.values(path, None))


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    train = datasets.Dataset.from_dict({"id": [1, 2, 3, 4], "text": TEXTS})
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": train.select([0]), "train": train}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        assert tables.is_dataset_folder(tmp_path / name)
        assert list(tables.dataset_folder_values(tmp_path / name, None)) == TEXTS
    with pytest.raises(DataError, match=r"no column 'story'.*'id', 'text'"):
        list(tables.dataset_folder_values(tmp_path / "one", "story"))


def test_a_folder_with_a_dataset_card(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "train.parquet", {"text": TEXTS})
    write_table(tmp_path / "data" / "test.parquet", {"text": ["held out"]})
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/train.parquet\n  - split: test\n    path: data/test.parquet\n---\n# A card\n"
    )
    assert tables.is_dataset_folder(tmp_path)
    assert list(tables.dataset_folder_values(tmp_path, None)) == TEXTS


def test_an_ordinary_folder_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntitle: notes\n---\nconfigs: none\n")
    assert not tables.is_dataset_folder(tmp_path)


def test_a_damaged_saved_folder_is_one_sentence(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path)
    next(tmp_path.glob("*.arrow")).write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read .*check that the folder is complete"):
        list(tables.dataset_folder_values(tmp_path, None))


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)\nmore\nlines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"'owner/name' cannot be read \(Couldn't reach") as caught:
        list(tables.hub_values("owner/name", None))
    assert "\n" not in str(caught.value)
    assert "online" in str(caught.value)


def test_the_hub_is_streamed_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(path: str, config: str | None, *, streaming: bool) -> dict:
        asked.update(path=path, config=config, streaming=streaming)
        records = datasets.Dataset.from_dict({"body": TEXTS}).to_iterable_dataset()
        return datasets.IterableDatasetDict({"test": records.take(1), "train": records})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(tables.hub_values("owner/name:config", "body")) == TEXTS
    assert asked == {"path": "owner/name", "config": "config", "streaming": True}
