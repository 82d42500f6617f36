"""Own files of problems: their columns and answers, and some of them held out where there is no benchmark."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ngrpo.config import FilesSource, validate
from ngrpo.data.cells import cell_at, cell_text, column_names, text_at
from ngrpo.data.conversations import is_chat, read_conversation
from ngrpo.data.own_files import own_files, place_of
from ngrpo.data.tables import Row, read_table
from ngrpo.drafting.guesses import Columns, Form, answer_form, guess_columns
from ngrpo.errors import ConfigError, DataError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_EVERY = 10
_MOST_HELD_OUT = 200


@dataclass(frozen=True)
class OwnData:
    """A table of problems."""

    path: Path
    rows: list[Row]
    columns: Columns
    form: Form

    def questions(self) -> list[str]:
        """Return what is asked in each row, as far as it can be read: the check says what cannot."""
        found = []
        for number, row in enumerate(self.rows, 1):
            cell, place = cell_at(row, self.columns.problem), f"{self.path.name}, row {number}"
            found.append(read_conversation(cell, place).question if is_chat(cell) else text_at(cell, place))
        return found


def look_at_data(option: str, path: Path, problem: str | None = None, answer: str | None = None) -> OwnData:
    """Return what is known of a file, directory or glob of problems.

    Args:
        option: The option that names it, for messages.
        path: What it names.
        problem: The column of the problems where the user named it.
        answer: The column of the answers where the user named it.

    Raises:
        ConfigError: There is no such file or no such column, or nothing tells which column holds what.
        DataError: A file cannot be read.
    """
    if _ADDRESS.match(str(path)):  # a path has one slash where an address has two
        raise ConfigError(f"{option} {str(path)!r}: an address; copy the files to this machine and name their path")
    try:
        source = validate(FilesSource, {"kind": "files", "path": str(path.absolute())})
        names = list(own_files(source, lambda file: ""))
        base = Path(place_of(source.path).base)
        rows = [row for name in names for row in read_table(base / name, name)]
    except OSError as error:
        raise ConfigError(f"{option} {str(path)!r}: {error.strerror}; check its rights") from error
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{option} {str(path)!r} (seen from {Path.cwd()}): {error}") from error
    if not rows:
        raise ConfigError(f"{option} {str(path)!r}: no rows; name a table with rows")
    columns = guess_columns(
        list(dict.fromkeys(name for row in rows for name in column_names(row))), rows, problem, answer
    )
    try:
        named = {"problem_column": columns.problem, "answer_column": columns.answer}
        validate(FilesSource, {"kind": "files", "path": source.path, **named})
    except ConfigError as error:
        raise ConfigError(f"{option} {str(path)!r}: {error}: rename the column") from error
    answers = [value for row in rows if isinstance(value := cell_at(row, columns.answer), str)]
    return OwnData(path, rows, columns, answer_form(answers))


def held_out(data: OwnData) -> list[str]:
    """Return every tenth row as a line of JSON: they become the benchmark.

    The rows stay in the table, too: `prepare_data` drops training problems that a benchmark holds, and counts them.

    Raises:
        ConfigError: There are too few rows, or they hold values that JSON has no form for.
    """
    rows = data.rows[::_EVERY][:_MOST_HELD_OUT]
    if len(data.rows) < 2 * _EVERY:
        count = "1 row is" if len(data.rows) == 1 else f"{len(data.rows)} rows are"
        raise ConfigError(
            f"--data {str(data.path)!r}: {count} too few to hold some out; name a benchmark by --benchmark"
        )
    kept = (data.columns.problem, data.columns.answer)
    try:
        return [
            json.dumps({name: cell_at(row, name) for name in kept}, ensure_ascii=False, default=cell_text)
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--data {str(data.path)!r}: no rows can be held out ({error})") from error
