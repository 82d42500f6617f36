"""Multiple-choice questions: the options under letters, in an order of its own for each question."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence


def with_options(identifier: str, question: str, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Return a question with its options, and the letter of the right one.

    Args:
        identifier: Id of the question: the seed of the order, which so is the same in every run and copy of the data set.
        question: What is asked.
        right: The right answer.
        wrong: The others.

    Returns:
        Two empty texts where a part of the question is missing.
    """
    options = [right, *wrong]
    if not question or not all(options):
        return "", ""
    order = random.Random(identifier).sample(range(len(options)), len(options))
    lines = (f"{letter}) {options[index]}" for letter, index in zip(string.ascii_uppercase, order, strict=False))
    return "\n".join([question, "", *lines]), string.ascii_uppercase[order.index(0)]
