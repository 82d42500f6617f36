"""Multiple-choice questions: lettered options, shuffled per question."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence


def with_options(identifier: str, question: str, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Return a question with its options, and the letter of the correct one.

    Args:
        identifier: Id of the question. It seeds the shuffle, so the order is the same in every run and copy of the data set.
        question: Text of the question.
        right: The correct answer.
        wrong: The other options.

    Returns:
        The question with its options, and the letter; two empty texts if a part of the question is missing.
    """
    options = [right, *wrong]
    if not question or not all(options):
        return "", ""
    order = random.Random(identifier).sample(range(len(options)), len(options))
    lines = (f"{letter}) {options[index]}" for letter, index in zip(string.ascii_uppercase, order, strict=False))
    return "\n".join([question, "", *lines]), string.ascii_uppercase[order.index(0)]
