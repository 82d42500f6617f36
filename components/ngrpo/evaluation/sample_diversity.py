"""How much the samples of one problem differ: entropy of answers, distinct beginnings, self-BLEU."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

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


def self_bleu(groups: Sequence[Sequence[str]], words: int) -> list[float | None]:
    """Return self-BLEU of the responses to each problem: the mean BLEU-4 of each against all others; 1 where all are the same.

    Zhu et al., Texygen, 2018. BLEU is that of Papineni et al., 2002, with one added to the counts of the orders above the first (Lin and
    Och, ORANGE, 2004, section 4), so that short responses have a value.

    Args:
        groups: The responses to each problem.
        words: Number of words and punctuation marks at the beginning of a response that are compared; the cost grows with it.

    Returns:
        Within 0 to 1 for each problem; None for one with fewer than two responses.
    """
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    tokens = [[numbers[word] for word in _WORD.findall(text)[:words]] for texts in groups for text in texts]
    matched = zip(*_clipped_matches(tokens, [len(texts) for texts in groups]).tolist(), strict=True)
    lengths = [len(each) for each in tokens]
    precisions = [_precision(counts, length) for counts, length in zip(matched, lengths, strict=True)]
    scores: list[float | None] = []
    end = 0
    for texts in groups:
        start, end = end, end + len(texts)
        if len(texts) < 2:
            scores.append(None)
            continue
        of_group = (
            precision * _brevity(place, lengths[start:end]) for place, precision in enumerate(precisions[start:end])
        )
        scores.append(sum(of_group) / len(texts))
    return scores


def _clipped_matches(tokens: Sequence[Sequence[int]], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Count the n-grams that each response shares with the others to its problem, each at most as often as one of those has it.

    All are counted at once: the report on ninety evaluations takes minutes with a `Counter` for each response.

    Args:
        tokens: The responses as numbers of words, problem by problem.
        sizes: Number of responses to each problem.

    Returns:
        `[orders, responses]`.
    """
    word = np.fromiter(chain.from_iterable(tokens), np.int64)
    response = np.repeat(np.arange(len(tokens)), [len(each) for each in tokens])
    starts, ngram = np.arange(len(word)), np.repeat(np.arange(len(sizes)), sizes)[response]
    shared = np.zeros((_ORDERS, len(tokens)), np.int64)
    for order in range(_ORDERS):
        starts, ngram = (each[: np.searchsorted(starts, len(word) - order)] for each in (starts, ngram))
        within = response[starts + order] == response[starts]
        starts, ngram = starts[within], ngram[within]
        if not len(starts):
            break
        # An n-gram is that without its last word, by its number, and that word. Those of different problems never have one number.
        pairs = (ngram * (word.max() + 1) + word[starts + order]) * len(tokens) + response[starts]
        distinct, place, count = np.unique(pairs, return_inverse=True, return_counts=True)
        whole, owner = np.divmod(distinct, len(tokens))
        begins = np.diff(whole, prepend=-1) != 0
        kind, firsts = np.cumsum(begins) - 1, np.flatnonzero(begins)
        most = np.maximum.reduceat(count, firsts)[kind]
        has_most = count == most
        alone = np.add.reduceat(has_most, firsts, dtype=np.int64)[kind] == 1
        next_most = np.maximum.reduceat(np.where(has_most, 0, count), firsts)[kind]
        of_others = np.where(has_most & alone, next_most, most)
        shared[order] = np.bincount(owner, np.minimum(count, of_others), len(tokens))
        ngram = kind[place]
    return shared


def _precision(matched: Sequence[int], length: int) -> float:
    """Return the geometric mean of the precisions of a response.

    Args:
        matched: Its clipped matches of each order.
        length: Its number of words.
    """
    score = 0.0
    for order, count in enumerate(matched):
        added = int(order > 0)
        if not count + added:
            return 0.0
        score += math.log((count + added) / (max(length - order, 0) + added)) / _ORDERS
    return math.exp(score)


def _brevity(place: int, lengths: Sequence[int]) -> float:
    """Return the brevity penalty against the closest length among the other responses, the shorter one of two equally close."""
    own = lengths[place]
    others = [*lengths[:place], *lengths[place + 1 :]]
    if own in others:
        return 1.0
    closest = min(others, key=lambda other: (abs(other - own), other))
    if own >= closest:
        return 1.0
    return math.exp(1 - closest / own) if own else 0.0
