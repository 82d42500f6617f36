"""Guesses at a table of problems: which column holds what, and in which form its answers are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ngrpo.errors import ConfigError

Form = Literal["hashes", "boxed", "plain"]

_PROBLEMS = ("problem", "question", "prompt", "query", "instruction", "input", "messages", "text", "task")
_ANSWERS = (
    "answer",
    "final_answer",
    "gold",
    "expected_answer",
    "ground_truth",
    "reward_model.ground_truth",  # as verl's data has it
    "target",
    "label",
    "solution",
    "output",
)
_SOLUTIONS = ("solution", "rationale", "reasoning", "generated_solution", "worked_solution", "cot")
_NUMBER = re.compile(r"[-+]?[\d.,]+")
_ENOUGH = 0.9
"""Share of the answers that have a form for it to be the form of the table."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table hold."""

    problem: str
    answer: str
    solution: str | None
    """Worked solutions, where a column is called so and is not that of the answers."""
    others: Sequence[str]
    """Further columns."""
    why: str
    """What the guess rests on."""


def guess_columns(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], problem: str | None = None, answer: str | None = None
) -> Columns:
    """Return which columns hold problems and answers.

    Names that are usual decide; else, of a table with two columns, the length of what they hold.

    Args:
        names: Columns of the table.
        rows: Some of its rows.
        problem: The column of the problems where the user named it.
        answer: The column of the answers where the user named it.

    Raises:
        ConfigError: The user named a column that is not there, or there is nothing to go by.
    """
    for option, column in (("--problem-column", problem), ("--answer-column", answer)):
        if column is not None and column not in names:
            close = difflib.get_close_matches(column, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{option} {column!r}: not one of the data's columns, {', '.join(names)}{hint}")
    why = "named" if problem and answer else "by their names"
    found_problem = problem or _called(names, _PROBLEMS, without=answer)
    found_answer = answer or _called(names, _ANSWERS, without=found_problem)
    if (found_problem is None or found_answer is None) and len(names) == 2:
        known = found_problem or (_other(names, found_answer) if found_answer else _longest(names, rows))
        found_problem, found_answer, why = known, _other(names, known), "the longer of two"
        if _NUMBER.fullmatch(found_answer):
            raise ConfigError(
                f"--data: its first line, {', '.join(map(repr, names))}, looks like a row; write the names of the columns above it"
            )
    if found_problem is None or found_answer is None:
        what, option = ("problems", "--problem-column") if found_problem is None else ("answers", "--answer-column")
        raise ConfigError(f"--data: none of the columns {', '.join(names)} is called like {what}; name it by {option}")
    taken = (found_problem, found_answer)
    solution = _called([name for name in names if name not in taken], _SOLUTIONS)
    others = [name for name in names if name not in taken and name != solution]
    return Columns(found_problem, found_answer, solution, others, why)


def answer_form(answers: Sequence[str]) -> Form:
    r"""Return the form of a table's gold answers: `#### 5` at the end of a solution, `\boxed{5}` somewhere in it, or plain."""
    told = [answer for answer in answers if answer.strip()]
    signs: Mapping[Form, str] = {"hashes": "####", "boxed": r"\boxed{"}
    for form, sign in signs.items():
        if told and sum(sign in answer for answer in told) >= _ENOUGH * len(told):
            return form
    return "plain"


def _called(names: Sequence[str], usual: Sequence[str], without: str | None = None) -> str | None:
    folded = {name.strip().casefold().replace(" ", "_"): name for name in reversed(names) if name != without}
    return next((folded[name] for name in usual if name in folded), None)


def _other(names: Sequence[str], column: str) -> str:
    return next(name for name in names if name != column)


def _longest(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    return max(names, key=lambda name: sum(len(str(row.get(name, ""))) for row in rows))
