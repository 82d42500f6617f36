r"""Several gold answers, all of which a response must give: `\boxed{3} and \boxed{9}`, or `\boxed{3, 9}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ngrpo.grading.pool import Response

_SPELLINGS = 2
"""Most answers per gold answer, since one may be given twice in different words. A response with more is guessing."""
_OPENING, _CLOSING = "([{", ")]}"


def given_answers(found: Sequence[str], expected: int) -> list[str]:
    """Return the different answers of a response.

    If several are expected, a single one counts as a list: its parts are separated by semicolons or else by commas, outside brackets, and
    the braces of a set are dropped.

    Args:
        found: The answers found in it, in order.
        expected: How many it must give.
    """
    answers = list(dict.fromkeys(answer for answer in found if answer))
    return list(dict.fromkeys(_parts(answers[0]))) if len(answers) == 1 and expected > 1 else answers


def too_many(answers: Sequence[str], golds: Sequence[str]) -> bool:
    """Whether a response has so many answers that it is wrong, whatever they are."""
    return len(answers) > _SPELLINGS * len(golds)


def gives_all(answers: Sequence[str], golds: Sequence[str], verdicts: Mapping[tuple[str, str], Response]) -> bool:
    """Whether every gold answer is among the answers of a response, and every answer among the gold answers.

    Args:
        answers: The answers of the response.
        golds: The gold answers.
        verdicts: The verdict on each pair of them.
    """
    if too_many(answers, golds):
        return False
    right = {gold: [answer for answer in answers if verdicts[answer, gold][0]] for gold in golds}
    return (
        bool(answers) and all(right.values()) and {*answers} == {answer for each in right.values() for answer in each}
    )


def _parts(text: str) -> list[str]:
    inner = text[2:-2] if text.startswith(r"\{") and text.endswith(r"\}") else text
    for whole in (text, inner):
        for separator in (";", ","):
            parts = _split(whole, separator)
            if len(parts) > 1:
                return parts
    return [text]


def _split(text: str, separator: str) -> list[str]:
    """Split a text at a separator outside all brackets."""
    parts, start, depth = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == separator and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [part for part in (*parts, text[start:].strip()) if part]
