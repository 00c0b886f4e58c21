"""Rows of a published set: parquet as the hub has it, csv, tsv and json; pictures are read when they are asked about.

Columns are named alike whatever the file calls them: "Question Type" and "Question_Type" are question_type, and
"lndex", as MMVP has it, is index.
"""

import base64
import csv
import functools
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.errors import UserError, reason
from un2clip.evaluation.mllm.questions import Picture, Question


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a file: its values and its pictures by the common names of their columns.

    `number` counts the file's rows from 0.
    """

    file: Path
    number: int
    values: Mapping[str, Any]
    pictures: Mapping[str, Picture]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.file}, row {self.number}"

    def text(self, name: str) -> str:
        """A text that is not empty, without the blanks around it; else a ValueError."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} must be a text, got {value!r}")
        return value.strip()

    def whole(self, name: str) -> int:
        """A whole number, also one that is written as text; else a ValueError."""
        value = self.values.get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value:
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        return int(value)

    def picture(self, name: str = "image") -> Picture:
        """The picture of a column; a ValueError where the row has none."""
        if name not in self.pictures:
            raise ValueError(f"it has no picture in {name}")
        return self.pictures[name]


def find(folder: Path, *patterns: str) -> list[Path]:
    """The files of the first pattern that any file matches, in order of name; a UserError lists the patterns."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    raise UserError(f"{folder} has none of {', '.join(patterns)}")


def read_rows(files: Iterable[Path], columns: Iterable[str], pictures: Iterable[str] = ()) -> list[Row]:
    """All rows of the files, in their order.

    Args:
        files: parquet, csv, tsv, json (a list, or a mapping whose keys become `key`) or json a line.
        columns: that each file must have, by their common names; others are read too.
        pictures: columns that hold pictures: bytes in parquet, base64 in tsv.

    Raises:
        UserError: a file cannot be read, or lacks columns (which, and what it has).
    """
    rows: list[Row] = []
    for file in files:
        try:
            read = _parquet if file.suffix == ".parquet" else _written
            rows += read(file, {*columns, *pictures}, tuple(pictures))
        except UserError:
            raise
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's own are of the first two
            raise UserError(f"{file} cannot be read: {reason(error)}") from None
    return rows


def column_names(file: Path) -> set[str]:
    """The columns of a parquet file by their common names; a UserError where it is none."""
    import pyarrow.parquet as pq

    try:
        return {common_name(name) for name in pq.read_schema(file).names}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from None


def make_questions(rows: Iterable[Row], make: Callable[[Row], Iterable[Question]]) -> list[Question]:
    """The questions of all rows, in their order; a row may make several, or none.

    Raises:
        UserError: a row is not as it must be (where, and what is wrong), an id occurs twice, or there is no question.
    """
    questions: dict[str, Question] = {}
    for row in rows:
        try:
            made = list(make(row))
        except ValueError as error:
            raise UserError(f"{row.where}: {error}") from None
        for question in made:
            if question.id in questions:
                raise UserError(f"{row.where}: question {question.id} occurs twice")
            questions[question.id] = question
    if not questions:
        raise UserError("the files hold no question")
    return list(questions.values())


def common_name(column: str) -> str:
    """A column's name as it is called here."""
    name = column.strip().lower().replace(" ", "_")
    return "index" if name == "lndex" else name


def _check_columns(file: Path, wanted: Iterable[str], found: Iterable[str]) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(found)}")


def _parquet(file: Path, wanted: set[str], pictures: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as content:
        names = {common_name(field.name): field.name for field in content.schema_arrow}
        _check_columns(file, wanted, names)
        kinds = {name: content.schema_arrow.field(column).type for name, column in names.items()}
        if wrong := [name for name in pictures if not _holds_pictures(kinds[name])]:
            raise UserError(f"{file}: column {names[wrong[0]]} holds {kinds[wrong[0]]}, not pictures")
        others = [name for name in names if "binary" not in str(kinds[name])]  # pictures are never read with the texts
        number = 0
        for group in range(content.num_row_groups):
            table = content.read_row_group(group, columns=[names[name] for name in others]).to_pylist()
            held = {name: _cells(file, group, names[name]).is_valid().to_pylist() for name in pictures}
            for i in range(content.metadata.row_group(group).num_rows):
                values = {common_name(key): value for key, value in table[i].items()} if others else {}
                where = f"{file}, row {number}"
                found = {
                    name: Picture(name=f"{where}, {name}", read=functools.partial(_cell, file, group, names[name], i))
                    for name in pictures
                    if held[name][i]
                }
                yield Row(file=file, number=number, values=values, pictures=found)
                number += 1


def _holds_pictures(kind: Any) -> bool:
    """Whether a column's type is bytes, or a struct that has bytes, as the hub's libraries write it."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_pictures(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _cells(file: Path, group: int, column: str) -> Any:
    """The bytes of one column of one row group, as an array; the last few stay in memory."""
    stat = file.stat()
    return _read_cells(file, group, column, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_cells(file: Path, group: int, column: str, size: int, mtime_ns: int) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as content:
        cells = content.read_row_group(group, columns=[column]).column(0).combine_chunks()
    return pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells


def _cell(file: Path, group: int, column: str, i: int) -> bytes:
    found: bytes = _cells(file, group, column)[i].as_py()
    return found


def _written(file: Path, wanted: set[str], pictures: tuple[str, ...]) -> Iterator[Row]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix in (".csv", ".tsv"):
        records = _csv_records(text, "\t" if file.suffix == ".tsv" else ",")
    else:
        records = _json_records(text)
    for number, record in enumerate(records):
        where = f"{file}, row {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where} must be a mapping, got {type(record).__name__}")
        values = {common_name(str(key)): value for key, value in record.items()}
        _check_columns(file, wanted, values)
        found = {
            name: Picture(name=f"{where}, {name}", read=functools.partial(base64.b64decode, values.pop(name)))
            for name in pictures
            if values[name]
        }
        yield Row(file=file, number=number, values=values, pictures=found)


def _csv_records(text: str, delimiter: str) -> list[Any]:
    limit = csv.field_size_limit(sys.maxsize)  # a cell may be a picture; the limit is the whole process's
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    finally:
        csv.field_size_limit(limit)


def _json_records(text: str) -> list[Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(content, dict) and all(isinstance(value, dict) for value in content.values()):
        return [{"key": key} | value for key, value in content.items()]
    return content if isinstance(content, list) else [content]
