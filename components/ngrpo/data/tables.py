"""Read the rows of JSONL, JSON, CSV, TSV and Parquet files; all but Parquet can be compressed with gzip.

Values keep the type of the file: CSV cells stay text (`007` must not become 7), and JSON values keep their JSON type. Libraries that infer
a type for each column would change both.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ngrpo.data.conversations import is_chat
from ngrpo.data.locations import explained
from ngrpo.data.placeholders import placeholder
from ngrpo.errors import DataError

_FORMS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "tsv", "parquet": "parquet"}
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive, such as an Excel workbook; save the table as CSV, or unpack it",
    b"PAR1": "Parquet; rename it to end with .parquet",
    b"\x1f\x8b": "compressed with gzip; rename it to end with .gz",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
"""Magic numbers of files that are not UTF-8 text, with the cure."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_NAME = re.compile(r"(?i).+\.(?:(parquet)|(jsonl|ndjson|json|csv|tsv)(?:\.gz)?)")

Row = dict[str, Any]


def form_of(name: str) -> str | None:
    """Return the format of a table from its file name, or None if the name is not a table's."""
    match = _NAME.fullmatch(name)
    return _FORMS[(match[1] or match[2]).lower()] if match else None


def read_table(path: Path, name: str) -> list[Row]:
    """Return the rows of a table.

    Args:
        path: The file.
        name: Name of the file, used for its format (see `form_of`) and in messages.

    Raises:
        DataError: The file cannot be read or is damaged. The message gives the position, if known.
    """
    form = form_of(name)
    with explained(f"{name} cannot be read", "check its rights, or copy it again"):
        instead = placeholder(path)
        if instead is not None:
            raise DataError(f"{name}: {instead}")
        if form == "parquet":
            return _parquet(path, name)
        text = _text(path, name)
    if form in ("csv", "tsv"):
        return _csv(text, name, "\t" if form == "tsv" else ",")
    start = text.lstrip()[:1]
    if form == "json" and start == "[":
        return _json(_parsed(text, name, ""), name)
    if form == "json" and start == "{" and not _is_one_a_line(text):
        return _json(_rows_of(_parsed(text, name, ""), name), name)
    return [row for _, row in _lines(text, name)]


def count_rows(path: Path) -> int | None:
    """Return the number of rows of a table, or None if the file is not a table or is damaged.

    A JSON file counts as a table only if it is a list, or has one object per line on several lines.
    """
    form = form_of(path.name)
    try:
        if form == "parquet":
            import pyarrow.parquet as pq

            return int(pq.read_metadata(path).num_rows)
        if form in ("json", "jsonl"):
            with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as lines:
                starts = [line.lstrip()[:1] for line in islice(lines, 2)]
                if form == "jsonl" or starts == [b"{", b"{"]:
                    return len([start for start in starts if start]) + sum(1 for line in lines if line.strip())
            if starts[:1] != [b"["]:
                return None
        return None if form is None else len(read_table(path, path.name))
    # Errors of format; pyarrow's are ValueErrors.
    except (DataError, ValueError, EOFError, gzip.BadGzipFile, zlib.error):
        return None


def _text(path: Path, name: str) -> str:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        data = gzip.decompress(data)
    foreign = next((what for start, what in _FOREIGN.items() if data.startswith(start)), None)
    if foreign is not None:
        raise DataError(f"{name}: {foreign}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _parquet(path: Path, name: str) -> list[Row]:
    import pyarrow.parquet as pq

    # Pass a file object: pyarrow would treat a path as part of a partitioned data set, with directories as columns.
    with path.open("rb") as file:
        table = pq.ParquetFile(file).read()
    _require_distinct(table.column_names, name)
    cells = []
    for column in table.column_names:
        # Parquet supports dates and time zones that Python does not.
        with explained(f"{name}: column {column!r} cannot be read", "remove it, or store text"):
            cells.append(table[column].to_pylist())
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*cells, strict=True)]


def _csv(text: str, name: str, delimiter: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[Row] = []
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not cells:  # an empty line
                continue
            if columns is None:
                columns = _header(cells, name, delimiter)
            elif len(cells) != len(columns):
                raise DataError(
                    f"{name}, row {len(rows) + 1} (line {reader.line_num}): {len(cells)} cells but the header has {len(columns)}; a cell "
                    'with a comma or a quote must be in "double quotes", with each quote written twice'
                )
            else:
                # Drop columns without a name, such as row numbers: no setting can refer to them.
                rows.append({column: cell for column, cell in zip(columns, cells, strict=True) if column})
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not valid CSV ({error}); correct the quotes") from error
    return rows


def _header(cells: Sequence[str], name: str, delimiter: str) -> list[str]:
    """Return the names of the columns without invisible characters around them; an empty text for a column without a name."""
    columns = [cell.strip("\u200b\ufeff").strip() for cell in cells]
    named = [column for column in columns if column]
    if not named:
        raise DataError(f"{name}: its first line names no column; write names there, for example problem and answer")
    if len(columns) == 1:
        separator = next((sign for sign in _SEPARATORS if sign in columns[0]), None)
        if separator is not None:
            wanted = "commas" if delimiter == "," else "tabs"
            raise DataError(
                f"{name}: its cells are separated by {_SEPARATORS[separator]}, {columns[0]!r}; write {wanted}"
            )
    _require_distinct(named, name)
    return columns


def _is_one_a_line(text: str) -> bool:
    """Return whether more text follows the JSON object at the beginning of a text."""
    try:
        _, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return bool(text.lstrip()[end:].strip())


def _rows_of(tree: Row, name: str) -> list[Any]:
    """Return the rows of a file that is one object: the rows under its only key with rows, otherwise the object itself as one row."""
    keys = [key for key, value in tree.items() if _are_rows(value)]
    if len(keys) == 1:
        return list(tree[keys[0]])
    if keys:
        raise DataError(
            f"{name}: it has rows under several keys, {', '.join(map(repr, keys))}; store the rows of one key alone, as a list of objects"
        )
    sizes = {len(value) if isinstance(value, dict | list) and not is_chat(value) else 0 for value in tree.values()}
    if len(tree) > 1 and len(sizes) == 1 and sizes != {0}:
        raise DataError(
            f"{name}: it is stored by column ({', '.join(map(repr, tree))}); store rows, a list of objects "
            '(pandas: to_json(orient="records"))'
        )
    return [tree]


def _are_rows(value: Any) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(row, dict) for row in value)
        and "role" not in value[0]
    )


def _json(rows: list[Any], name: str) -> list[Row]:
    for number, row in enumerate(rows, 1):
        _require_object(row, f"{name}, row {number}")
    return rows


def _lines(text: str, name: str) -> Iterator[tuple[int, Row]]:
    # Not splitlines, which also splits at other line separators, inside texts.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = _parsed(line, name, f", line {number}")
            _require_object(row, f"{name}, line {number}")
            yield number, row


def _parsed(text: str, name: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        if "int_max_str_digits" in str(error):
            raise DataError(f"{name}{where}: a number with thousands of digits; write it as text") from error
        raise DataError(
            f"{name}{where}: not valid JSON ({what}); a file has one object per line, or is one list of objects (.json)"
        ) from error


def _require_object(row: Any, place: str) -> None:
    if not isinstance(row, dict):
        several = ", or the file is one list of them and its name ends with .json" if isinstance(row, list) else ""
        raise DataError(
            f'{place}: a {type(row).__name__}, not an object; every row is an object, {{"problem": …, "answer": …}}{several}'
        )


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the name {next(name for name in names if names.count(name) > 1)!r} twice")
    return row


def _require_distinct(columns: Sequence[str], name: str) -> None:
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: the column {twice!r} occurs twice; rename one")
