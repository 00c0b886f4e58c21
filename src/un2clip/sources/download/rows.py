"""The rows of caption-url lists, and what became of each by the records that img2dataset keeps of its shards."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from un2clip.errors import UserError

#: Outcome -> how img2dataset, urllib, OpenCV or the guard says it. The first that fits; a status of HTTP goes before.
_MESSAGES = {
    "refused address": r"^refused address",
    "too large": r"^too many bytes|CV_IO_MAX_IMAGE|image area too large",
    "too small": r"^image too small",
    "too long": r"^aspect ratio too large",
    "opt-out": r"disallowed by X-Robots-Tag",
    "not an image": r"^Image decoding error|^OpenCV",
    "not a web address": r"unknown url type|no host given|can't contain control|nonnumeric port|'ascii' codec|IPv6 URL",
    "bad certificate": r"CERTIFICATE_VERIFY_FAILED",
    "timeout": r"timed out",
    "connection error": r"^<urlopen error|^IncompleteRead|^Remote end closed|[Rr]eset by peer|got more than",
}
_SCHEMA = pa.schema([("caption", pa.string()), ("url", pa.string())])
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_MAY_PASS = re.compile(r"timeout|connection error|http (408|425|429|5\d\d)")


def read_lists(lists: Iterable[Path], caption_column: str, url_column: str) -> tuple[pa.Table, int]:
    """Caption-url lists as one table.

    Args:
        lists: files. tsv: caption, tab, url, without a header and without quotes, as Conceptual Captions is
            distributed; csv, with a header; parquet.
        caption_column: of csv and parquet; so is `url_column`.

    Returns:
        The table (caption and url: string; row: int64, from 0) and the number of lines that are left out: they have
        not two fields, or control characters in one.

    Raises:
        UserError: a file is absent, broken or of another kind, or has no such column.
    """
    malformed = 0

    def skip(row: object) -> str:
        nonlocal malformed
        malformed += 1
        return "skip"

    tables = []
    for path in lists:
        try:
            table = _read(path, [caption_column, url_column], skip)
        except (OSError, KeyError, pa.ArrowException) as error:
            what = str(error.args[-1] if error.args else error).splitlines()[0]
            raise UserError(
                f"cannot read {path}: {what}; a list is a tsv (caption, tab, url; no header), or a csv or parquet "
                "whose columns --caption-column and --url-column name"
            ) from None
        table = table.rename_columns(["caption", "url"]).cast(_SCHEMA)
        damaged = pc.or_(*(pc.fill_null(pc.match_substring_regex(each, _CONTROL), False) for each in table.columns))
        malformed += pc.sum(damaged).as_py() or 0
        tables.append(table.filter(pc.invert(damaged)))
    table = pa.concat_tables(tables)
    return table.append_column("row", pa.array(range(len(table)), pa.int64())), malformed


def _read(path: Path, columns: list[str], skip: object) -> pa.Table:
    text = {column: pa.string() for column in columns}
    parse = {"invalid_row_handler": skip}
    if path.suffix == ".tsv":
        return pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(column_names=columns),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False, **parse),
            pa.csv.ConvertOptions(column_types=text),
        )
    if path.suffix == ".csv":
        options = pa.csv.ParseOptions(newlines_in_values=True, **parse)
        convert = pa.csv.ConvertOptions(column_types=text, include_columns=columns)
        return pa.csv.read_csv(path, parse_options=options, convert_options=convert)
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path, columns=columns).select(columns)
    raise OSError(f"its name ends in {path.suffix!r}")


def finished(folder: Path) -> Iterator[Path]:
    """The records of img2dataset's finished shards, in their order. It writes a shard's `_stats.json` last."""
    for stats in sorted(folder.glob("*_stats.json")):
        yield stats.with_name(stats.name.replace("_stats.json", ".parquet"))


def outcomes(folder: Path, rows: int) -> list[str]:
    """What became of each row at its last attempt; "" for a row that no finished shard has."""
    found = [""] * rows
    for record in finished(folder):
        table = pa.parquet.read_table(record, columns=["row", "status", "error_message"])
        for row, status, message in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found[row] = outcome(status, message or "")
    return found


def outcome(status: str, message: str) -> str:
    """One word or two for what img2dataset says of a row."""
    if status == "success":
        return status
    if http := re.match(r"HTTP Error (\d{3})\b", message):
        return f"http {http[1]}"
    return next((name for name, pattern in _MESSAGES.items() if re.search(pattern, message)), "other error")


def may_pass(outcome: str) -> bool:
    """Whether another attempt could end otherwise."""
    return _MAY_PASS.fullmatch(outcome) is not None
