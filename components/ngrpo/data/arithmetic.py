r"""Chains of additions and subtractions: a task that a very small model learns in a minute on a CPU.

A problem is `what is 7+4-2?`, its worked solution `<think>first 7+4=11 then 11-2=9 so 9</think>\boxed{9}`, its direct solution
`\boxed{9}`. Words with the same role (` then `, ` now `, ` next `) are drawn with equal probability. A model that learns from the
solutions treats them as interchangeable, so its neighbor index has meaningful neighbors.

The fold and the wording of a problem, and whether its solution is direct, depend only on a hash of its expression, never on a
random state.
"""

from __future__ import annotations

import hashlib
from random import Random

from ngrpo.config import ArithmeticSource
from ngrpo.data.problem import Problem, box
from ngrpo.errors import DataError

MAX_VALUE = 36
"""Largest running value (the sum of four nines); the smallest is 0."""
QUESTIONS = (("what is ", "?"), ("compute ", "."), ("find ", "."))
OPENINGS = ("first ", "start ", "begin ")
LINKS = (" then ", " now ", " next ")
CONCLUSIONS = (" so ", " thus ", " hence ")
VOCABULARY = (
    *(str(value) for value in range(MAX_VALUE + 1)),
    *("+", "-", "=", r"\boxed{", "}"),
    *dict.fromkeys(piece for question in QUESTIONS for piece in question),
    *(*OPENINGS, *LINKS, *CONCLUSIONS),
)
"""All tokens of problems and solutions, except `THINK` and `END_THINK`."""
THINK = "<think>"
END_THINK = "</think>"

FOLDS = {"warm_start": 0.5, "train": 0.75, "selection": 0.875, "held_out": 1.0}
"""Upper end of each fold's part of the unit interval."""
_MISSES = 20_000
"""Number of consecutive draws without a new problem after which the fold counts as exhausted."""


def load(source: ArithmeticSource) -> list[Problem]:
    """Return `source.size` distinct problems of `source.fold`.

    Raises:
        DataError: The fold does not hold that many problems.
    """
    random = Random(f"{source.fold}/{source.min_operands}/{source.max_operands}")
    lengths = range(source.min_operands, source.max_operands + 1)
    # Make every expression equally likely, so that all folds and sizes are samples of one distribution. There are
    # 9**n * 2**(n - 1) expressions of n operands, proportional to 18**n.
    weights = [18**length for length in lengths]
    problems: dict[str, Problem] = {}
    misses = 0
    while len(problems) < source.size:
        expression = _draw(random, random.choices(lengths, weights)[0])
        if expression is None or expression in problems or _fold(expression) != source.fold:
            misses += 1
            if misses == _MISSES:
                raise DataError(
                    f"arithmetic source: size={source.size} is more than fold {source.fold!r} holds with "
                    f"{source.min_operands} to {source.max_operands} operands (about {len(problems)}): "
                    "lower size or raise max_operands"
                )
            continue
        misses = 0
        problems[expression] = _problem(expression, source.direct_share)
    return list(problems.values())


def _draw(random: Random, operands: int) -> str | None:
    """Draw an expression; None if its running value leaves the allowed range."""
    value = random.randint(1, 9)
    expression = str(value)
    for _ in range(operands - 1):
        operator, operand = random.choice("+-"), random.randint(1, 9)
        value += operand if operator == "+" else -operand
        if not 0 <= value <= MAX_VALUE:
            return None
        expression += f"{operator}{operand}"
    return expression


def _fold(expression: str) -> str:
    share = _share(expression, "fold")
    return next(fold for fold, upper in FOLDS.items() if share < upper)


def _problem(expression: str, direct_share: float) -> Problem:
    wording = Random(_digest(expression, "wording"))
    before, after = wording.choice(QUESTIONS)
    value, steps = int(expression[0]), []
    for operator, operand in zip(expression[1::2], expression[2::2], strict=True):
        result = value + int(operand) if operator == "+" else value - int(operand)
        steps.append(f"{value}{operator}{operand}={result}")
        value = result
    reasoning = wording.choice(OPENINGS) + steps[0]
    reasoning += "".join(wording.choice(LINKS) + step for step in steps[1:])
    reasoning += f"{wording.choice(CONCLUSIONS)}{value}"
    direct = _share(expression, "direct") < direct_share
    return Problem(
        id=expression,
        problem=f"{before}{expression}{after}",
        answer=str(value),
        solution=box(str(value)) if direct else f"{THINK}{reasoning}{END_THINK}{box(str(value))}",
    )


def _share(expression: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends only on the expression and the purpose."""
    return int(_digest(expression, purpose)[:13], 16) / 16**13


def _digest(expression: str, purpose: str) -> str:
    return hashlib.sha256(f"{purpose}/{expression}".encode()).hexdigest()
