"""How much the responses to one prompt differ from each other."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_ngrams(groups: Sequence[Sequence[Sequence[int]]], n: int) -> float:
    """Return distinct-n within groups: different n-grams over all n-grams of a group, averaged over groups.

    Distinct-n is Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, 2016, section 5.2, taken over
    the token ids of all responses to one prompt. At 1 no n-gram repeats; equal responses give at most 1 over their number.

    Args:
        groups: For each prompt the token ids of each response.
        n: Length of the n-grams.

    Returns:
        Within 0 to 1. Groups whose responses are all shorter than n are left out; 0 if all groups are.
    """
    shares = []
    for responses in groups:
        ngrams = [ngram for tokens in responses for ngram in zip(*(tokens[start:] for start in range(n)), strict=False)]
        if ngrams:
            shares.append(len(set(ngrams)) / len(ngrams))
    return sum(shares) / len(shares) if shares else 0.0


def distinct_answers(groups: Sequence[Sequence[str | None]]) -> float:
    """Return the number of different answers over the number of responses of a group, averaged over groups.

    Args:
        groups: For each prompt the extracted answer of each response; a response without an answer adds none.

    Returns:
        Within 0 to 1: 1 where all responses have different answers; 0 where no response has one.
    """
    shares = [len(set(answers) - {None}) / len(answers) for answers in groups if answers]
    return sum(shares) / len(shares) if shares else 0.0
