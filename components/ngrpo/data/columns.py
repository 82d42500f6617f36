"""Build problems from the columns of a table, from any source."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ngrpo.config import Columns
from ngrpo.data.cells import text_at
from ngrpo.data.conversations import Conversation, is_chat, read_conversation, read_reply
from ngrpo.data.golds import form_in_words, form_of, gold_column
from ngrpo.data.multiple_choice import with_options
from ngrpo.data.problem import Problem
from ngrpo.errors import DataError


@dataclass(frozen=True)
class Table:
    """A table with at least one row.

    Attributes:
        label: Name of the table in messages.
        columns: Names of its columns.
        ids: Ids of the problems, one per row.
        cells: Returns the cells of a column.
        place: Describes the position of a cell, given its row (from 0) and column, for messages.
    """

    label: str
    columns: Sequence[str]
    ids: Sequence[str]
    cells: Callable[[str], Sequence[Any]]
    place: Callable[[int, str], str]

    def texts(self, column: str) -> list[str]:
        """Return the texts of a column; for a chat, the assistant's last turn; for a missing cell, an empty text.

        Raises:
            DataError: A cell is not text.
        """
        return [
            read_reply(cell, self.place(row, column)) if is_chat(cell) else text_at(cell, self.place(row, column))
            for row, cell in enumerate(self.cells(column))
        ]

    def answers(self, column: str) -> list[Any]:
        """Return the cells of a column; for a chat, the assistant's last turn."""
        return [
            read_reply(cell, self.place(row, column)) if cell and is_chat(cell) else cell
            for row, cell in enumerate(self.cells(column))
        ]

    def questions(self, column: str) -> list[Conversation]:
        """Return the question of each row as a conversation.

        Raises:
            DataError: A cell is neither text nor a chat.
        """
        return [_question(cell, self.place(row, column)) for row, cell in enumerate(self.cells(column))]


def problems_of(source: Columns, table: Table) -> list[Problem]:
    """Return the problems of a table.

    A missing problem or answer becomes an empty text; the caller decides how to treat it.

    Raises:
        DataError: A column is missing, has no values, or has a cell that is not text.
    """
    require_columns(source, table.label, table.columns)
    questions = table.questions(source.problem_column)
    # A chat that ends with the assistant's turn holds problem and solution.
    replies = {source.problem_column: [question.reply or "" for question in questions]}
    if source.problem_column not in (source.answer_column, source.solution_column):
        _require_no_reply(source, table, questions)
    chats = any(question.reply is not None for question in questions)

    def texts(column: str) -> list[str]:
        return replies[column] if chats and column in replies else table.texts(column)

    problems = [question.question for question in questions]
    answers = gold_column(
        source,
        replies[source.answer_column]
        if chats and source.answer_column in replies
        else table.answers(source.answer_column),
        lambda row: table.place(row, source.answer_column),
        text_at,
    )
    for setting, values, what in (("problem_column", problems, "text"), ("answer_column", answers, "answer")):
        if not any(values):
            boxed = form_in_words(form_of(source)) if what == "answer" else ""
            raise DataError(
                f"{table.label}: {setting}={getattr(source, setting)!r} holds no {what}{boxed} in any of its {len(table.ids)} rows; its "
                f"columns are {', '.join(table.columns)}"
            )
    solutions = [""] * len(problems) if source.solution_column is None else texts(source.solution_column)
    if source.wrong_answer_columns:
        wrong = zip(*(table.texts(column) for column in source.wrong_answer_columns), strict=True)
        rows = zip(table.ids, problems, texts(source.answer_column), wrong, strict=True)
        shown = [with_options(*row) for row in rows]
        problems, answers = [question for question, _ in shown], [letter for _, letter in shown]
    return [
        Problem(identifier, problem, answer, solution or None, tuple(map(_pair, question.before)))
        for identifier, problem, answer, solution, question in zip(
            table.ids, problems, answers, solutions, questions, strict=True
        )
    ]


def require_columns(source: Columns, label: str, names: Sequence[str]) -> None:
    """Refuse a table that lacks a column named in the settings.

    Args:
        source: Settings that name the columns.
        label: Name of the table in errors.
        names: Names of the table's columns.

    Raises:
        DataError: A column is missing; the message lists the existing columns and suggests the closest one.
    """
    columns = {"problem_column": source.problem_column, "answer_column": source.answer_column}
    if source.solution_column is not None:
        columns["solution_column"] = source.solution_column
    for setting, column in [
        *columns.items(),
        *(("wrong_answer_columns", name) for name in source.wrong_answer_columns),
    ]:
        if column not in names:
            folded = {name.strip().casefold(): name for name in names}
            close = difflib.get_close_matches(column.casefold(), folded, 1, 0.7)
            raise DataError(
                f"{label}: {setting}={column!r} is not one of its columns: {', '.join(names)}"
                + (f"; did you mean {folded[close[0]]!r}?" if close else "")
                + (
                    "; its cells seem to be separated by semicolons: write commas"
                    if len(names) == 1 and ";" in names[0]
                    else ""
                )
            )


def _require_no_reply(source: Columns, table: Table, questions: Sequence[Conversation]) -> None:
    row = next((row for row, question in enumerate(questions) if question.reply is not None), None)
    if row is not None:
        raise DataError(
            f"{table.place(row, source.problem_column)}: the last turn is the assistant's; if it is the solution, set "
            f"solution_column={source.problem_column!r}, if it holds the answer, answer_column={source.problem_column!r}; else remove it"
        )


def _question(cell: Any, place: str) -> Conversation:
    if is_chat(cell):
        return read_conversation(cell, place)
    text = text_at(cell, place)
    if text.startswith("[{") and "role" in text and "content" in text:
        raise DataError(f"{place} holds a chat that is written as text: store it as a list, in JSONL or Parquet")
    return Conversation([], text, None)


def _pair(turn: dict[str, str]) -> tuple[str, str]:
    return turn["role"], turn["content"]
