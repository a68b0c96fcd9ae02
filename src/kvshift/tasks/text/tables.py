"""Records with a text column: JSON lines, CSV, Parquet, and what the `datasets` library reads."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kvshift.errors import DataError
from kvshift.tasks.text.files import COMPRESSED, UnreadableFile, byte_chunks, kind, lines, open_binary

DEFAULT_COLUMN = "text"
_LONGEST_FIELD = 2**31 - 1


class MissingColumn(DataError):
    """The table has no such column; the message lists those it has."""


def is_table(path: Path) -> bool:
    """Whether the file holds records rather than one document."""
    return kind(path) in _READERS


def values(path: Path, column: str | None) -> Iterator[Any]:
    """The text column of a table, record by record; None where a record has no such field.

    Raises:
        MissingColumn: there is no such column.
        DataError: the file is malformed; file and, where there are lines, the line are named.
    """
    return _READERS[kind(path)](path, column)


def choose(columns: Iterable[str], wanted: str | None, where: str) -> str:
    """The name of the text column: `wanted`, or `text`."""
    there = list(columns)
    name = wanted or DEFAULT_COLUMN
    if name in there:
        return name
    listing = ", ".join(repr(column) for column in there[:20]) or "none"
    problem = f"has no column {name!r}" if wanted else f"has no column {name!r}, and no text column was named"
    raise MissingColumn(f"{where} {problem}; choose one of its columns with --text-column: {listing}.")


def _json_lines(path: Path, column: str | None) -> Iterator[Any]:
    name = None
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path}, line {number}: not valid JSON ({detail}); each line must be one JSON object."
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f'{path}, line {number}: expected a JSON object such as {{"text": "…"}}, '
                f"found {type(record).__name__}."
            )
        if name is None:
            name = choose(record, column, str(path))
        yield record.get(name)


def _separated(path: Path, column: str | None) -> Iterator[Any]:
    csv.field_size_limit(_LONGEST_FIELD)  # a document in a field is longer than the 128 KB allowed by default
    reader = csv.reader(lines(path), delimiter="\t" if kind(path) == ".tsv" else ",", strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        index = header.index(choose(header, column, str(path)))
        for row in reader:
            if row:
                yield row[index] if index < len(row) else None
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: malformed table ({error}); repair that line."
        ) from error


def _parquet(path: Path, column: str | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _seekable(path) as file:
        try:
            table = pq.ParquetFile(file)
            schema = table.schema_arrow
            name = choose(schema.names, column, str(path))
            type_ = schema.field(name).type
            if pa.types.is_dictionary(type_):
                type_ = type_.value_type
            if not (
                pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
            ):
                raise DataError(
                    f"Column {name!r} of {path} holds {type_}, not text; choose another --text-column."
                )
            for batch in table.iter_batches(batch_size=256, columns=[name]):
                yield from batch.column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise DataError(
                f"{path} is not a complete Parquet file ({reason}); copy or download it again."
            ) from error


@contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked to a temporary one if it is compressed: Parquet is read from its end."""
    if path.suffix.lower() not in COMPRESSED:
        try:
            file = open_binary(path)
        except OSError as error:
            raise UnreadableFile(f"Cannot read {path}: {error.strerror}; check its permissions.") from error
        with file:
            yield file
        return
    with tempfile.TemporaryFile() as unpacked:
        for chunk in byte_chunks(path):
            unpacked.write(chunk)
        unpacked.seek(0)
        yield unpacked


_READERS: dict[str, Callable[[Path, str | None], Iterator[Any]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}


def is_dataset_folder(folder: Path) -> bool:
    """Whether `datasets` wrote the folder (`save_to_disk`), or it carries a Hugging Face dataset card."""
    return _is_saved(folder) or _has_card(folder)


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def _has_card(folder: Path) -> bool:
    try:
        with open_binary(folder / "README.md") as file:
            card = file.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return False
    header = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    return (
        header is not None
        and re.search(r"^(configs|dataset_info):", header[1], flags=re.MULTILINE) is not None
    )


def dataset_folder_values(folder: Path, column: str | None) -> Iterator[Any]:
    """The text column of a local dataset folder: its training split, or else the first."""
    import datasets

    def load() -> Any:
        if _is_saved(folder):
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder), streaming=True)

    return _dataset_values(load, str(folder), column, "check that the folder is complete")


def hub_values(name: str, column: str | None) -> Iterator[Any]:
    """The text column of a dataset on the Hugging Face hub, streamed: its training split, or else the first.

    Args:
        name: `owner/name`, or `owner/name:config`.
    """
    import datasets

    path, _, config = name.partition(":")
    return _dataset_values(
        lambda: datasets.load_dataset(path, config or None, streaming=True),
        f"The Hugging Face dataset {name!r}",
        column,
        "if you meant a file or folder, check the path; if you meant a dataset, check its name and that this "
        "machine is online, or download it elsewhere and give its folder",
    )


def _dataset_values(load: Callable[[], Any], where: str, column: str | None, remedy: str) -> Iterator[Any]:
    try:
        data = load()
        if isinstance(data, dict):
            data = data["train"] if "train" in data else next(iter(data.values()))
        columns = data.column_names
        if columns is None:
            columns = list(next(iter(data), {}))
        records = data.select_columns([choose(columns, column, where)])
        for record in records:
            yield from record.values()
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # the library raises what its many readers and the network raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{where} cannot be read ({reason}); {remedy}.") from error
