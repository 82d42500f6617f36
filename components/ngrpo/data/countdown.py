r"""Countdown: combine numbers, each used once, to reach a target. A problem can have several correct answers.

A problem is `make 54 from 2 3 5 7`, its worked solution `<think>first 3+5=8 then 8*7=56 now 56-2=54</think>\boxed{(3+5)*7-2}`. The gold
answer is that expression; any other expression of the same numbers and value is also correct (`ngrpo.grading.countdown`).

The fold of a problem, its wording and the order of its numbers depend only on a hash of its target and numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from random import Random

from ngrpo.config import CountdownSource
from ngrpo.data.arithmetic import END_THINK, FOLDS, LINKS, OPENINGS, THINK
from ngrpo.data.problem import Problem, box
from ngrpo.errors import DataError

MAX_VALUE = 99
"""Largest target and largest intermediate value; the smallest is 1."""
QUESTIONS = (("make ", " from "), ("reach ", " with "), ("get ", " using "))
VOCABULARY = (
    *(str(value) for value in range(MAX_VALUE + 1)),
    *("+", "-", "*", "/", "=", "(", ")", r"\boxed{", "}", " "),
    *(piece for question in QUESTIONS for piece in question),
    *(*OPENINGS, *LINKS),
)
"""All tokens of problems and solutions, except `THINK` and `END_THINK`."""

_MISSES = 20_000
"""Number of consecutive draws without a new problem after which the fold counts as exhausted."""


def load(source: CountdownSource) -> list[Problem]:
    """Return `source.size` distinct problems of `source.fold`; no two have the same target and numbers.

    Raises:
        DataError: The fold does not hold that many problems.
    """
    random = Random(f"countdown/{source.fold}/{source.numbers}")
    problems: dict[str, Problem] = {}
    misses = 0
    while len(problems) < source.size:
        chain = _draw(random, source.numbers)
        name = None if chain is None else _name(chain)
        if chain is None or name is None or name in problems or _fold(name) != source.fold:
            misses += 1
            if misses == _MISSES:
                raise DataError(
                    f"countdown source: size={source.size} is more than fold {source.fold!r} holds with numbers={source.numbers} "
                    f"(about {len(problems)}): lower size or raise numbers"
                )
            continue
        misses = 0
        problems[name] = _problem(name, chain)
    return list(problems.values())


Chain = Sequence[tuple[str, int, int]]
"""Operator, number and value after it, from left to right; the first operator is empty."""


def _draw(random: Random, numbers: int) -> Chain | None:
    """Draw a chain of operations; None if an intermediate value leaves the allowed range."""
    value = random.randint(1, 9)
    chain = [("", value, value)]
    for _ in range(numbers - 1):
        operator, number = random.choice("+-*"), random.randint(1, 9)
        value = value + number if operator == "+" else value - number if operator == "-" else value * number
        if not 1 <= value <= MAX_VALUE:
            return None
        chain.append((operator, number, value))
    return chain


def _name(chain: Chain) -> str:
    """Return the identity of a problem: its target and its sorted numbers."""
    return f"{chain[-1][2]}={','.join(map(str, sorted(number for _, number, _ in chain)))}"


def _fold(name: str) -> str:
    share = int(_digest(name, "fold")[:13], 16) / 16**13
    return next(fold for fold, upper in FOLDS.items() if share < upper)


def _problem(name: str, chain: Chain) -> Problem:
    wording = Random(_digest(name, "wording"))
    before, between = wording.choice(QUESTIONS)
    target, numbers = chain[-1][2], [number for _, number, _ in chain]
    wording.shuffle(shown := sorted(numbers))
    steps = [f"{start}{operator}{number}={value}" for (_, _, start), (operator, number, value) in pairwise(chain)]
    reasoning = wording.choice(OPENINGS) + steps[0] + "".join(wording.choice(LINKS) + step for step in steps[1:])
    answer = _expression(chain)
    return Problem(
        id=name,
        problem=f"{before}{target}{between}{' '.join(map(str, shown))}",
        answer=answer,
        solution=f"{THINK}{reasoning}{END_THINK}{box(answer)}",
    )


def _expression(chain: Chain) -> str:
    """Write a chain as one expression, with parentheses where a sum is multiplied."""
    text, is_sum = str(chain[0][1]), False
    for operator, number, _ in chain[1:]:
        if operator == "*":
            text, is_sum = (f"({text})" if is_sum else text), False
        else:
            is_sum = True
        text += f"{operator}{number}"
    return text


def _digest(name: str, purpose: str) -> str:
    return hashlib.sha256(f"countdown/{purpose}/{name}".encode()).hexdigest()
