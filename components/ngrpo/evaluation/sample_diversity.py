"""How much the samples of one problem differ: entropy of answers, distinct beginnings, self-BLEU."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")
_ORDERS = 4
"""Longest n-grams of BLEU."""


def answer_entropy(answers: Sequence[str | None], correct: Sequence[bool]) -> float | None:
    """Return the entropy of the answers to one problem in nats; None if no sample has an answer.

    Correct answers count as one answer, however they are written; wrong ones are distinguished by their text; samples without an answer are
    left out. It is the plug-in estimate, which is at most the logarithm of the number of samples.

    Args:
        answers: The extracted answer of each sample, None for a sample without one.
        correct: The verdict on each sample.
    """
    kinds = Counter(
        (right, None if right else answer)
        for answer, right in zip(answers, correct, strict=True)
        if answer is not None or right
    )
    total = sum(kinds.values())
    if not total:
        return None
    return abs(sum(count / total * math.log(total / count) for count in kinds.values()))


def distinct_prefixes(texts: Sequence[str], length: int) -> float:
    """Return the number of different beginnings of the responses to one problem over the number of responses.

    Args:
        texts: The responses, at least one.
        length: Characters of a beginning; a shorter response is one as a whole.
    """
    return len({text[:length] for text in texts}) / len(texts)


def self_bleu(texts: Sequence[str], words: int) -> float | None:
    """Return self-BLEU of the responses to one problem: the mean BLEU-4 of each against all others; 1 where all are the same.

    Zhu et al., Texygen, 2018. BLEU is that of Papineni et al., 2002, with one added to the counts of the orders above the first (Lin and
    Och, ORANGE, 2004, section 4), so that short responses have a value.

    Args:
        texts: The responses.
        words: Number of words and punctuation marks at the beginning of a response that are compared; the cost grows with it.

    Returns:
        Within 0 to 1; None for fewer than two responses.
    """
    if len(texts) < 2:
        return None
    tokens = [_WORD.findall(text)[:words] for text in texts]
    scores = [0.0] * len(texts)
    for order in range(1, _ORDERS + 1):
        counts = [Counter(zip(*(each[start:] for start in range(order)), strict=False)) for each in tokens]
        most = _two_largest(counts)
        for place, own in enumerate(counts):
            matched = sum(min(count, _of_others(most[ngram], place)) for ngram, count in own.items())
            added = int(order > 1)
            matched, total = matched + added, sum(own.values()) + added
            scores[place] += math.log(matched / total) / _ORDERS if matched else -math.inf
    return sum(
        math.exp(score) * _brevity(place, [len(each) for each in tokens]) for place, score in enumerate(scores)
    ) / len(texts)


def _two_largest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Return for each n-gram its largest count in a response, the index of that response, and the largest count in the others."""
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for place, own in enumerate(counts):
        for ngram, count in own.items():
            first, where, second = most.get(ngram, (0, -1, 0))
            most[ngram] = (count, place, first) if count > first else (first, where, max(second, count))
    return most


def _of_others(most: tuple[int, int, int], place: int) -> int:
    first, where, second = most
    return second if where == place else first


def _brevity(place: int, lengths: Sequence[int]) -> float:
    """Return the brevity penalty against the closest length among the other responses, the shorter one of two equally close."""
    own = lengths[place]
    closest = min(
        (other for at, other in enumerate(lengths) if at != place), key=lambda other: (abs(other - own), other)
    )
    if own >= closest:
        return 1.0
    return math.exp(1 - closest / own) if own else 0.0
