"""Diversity of samples: against values by hand, and self-BLEU against BLEU written down from its definition."""

import math
import random
from collections import Counter

import pytest

from ngrpo.evaluation.sample_diversity import answer_entropy, distinct_prefixes, self_bleu


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["1", "1", "1"], [False] * 3, 0.0),
        (["1", "2"], [False] * 2, math.log(2)),
        (
            ["1/2", "0.5", "7", "7"],
            [True, True, False, False],
            math.log(2),
        ),  # right answers are one, however they are written
        (["1", None, "2", None], [False] * 4, math.log(2)),
        ([None, None], [False] * 2, None),
        (["a", "b", "c", "c"], [False] * 4, 0.5 * math.log(4) + 0.5 * math.log(2)),
    ],
)
def test_answer_entropy(answers, correct, expected):
    assert answer_entropy(answers, correct) == (expected if expected is None else pytest.approx(expected))


def test_beginnings_are_told_apart_by_their_first_characters():
    texts = ["first 3+4", "first 3+5", "so", "so"]
    assert distinct_prefixes(texts, 5) == 0.5
    assert distinct_prefixes(texts, 64) == 0.75


def bleu(candidate: list[str], references: list[list[str]]) -> float:
    """BLEU-4 of Papineni et al., with one added to the counts above single words."""
    score = 0.0
    for order in range(1, 5):

        def ngrams(words, order=order):
            return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))

        own, added = ngrams(candidate), int(order > 1)
        matched = sum(min(count, max(ngrams(each)[ngram] for each in references)) for ngram, count in own.items())
        if matched + added == 0:
            return 0.0
        score += math.log((matched + added) / (sum(own.values()) + added)) / 4
    closest = min((abs(len(each) - len(candidate)), len(each)) for each in references)[1]
    brevity = 1.0 if len(candidate) >= closest else math.exp(1 - closest / len(candidate))
    return math.exp(score) * brevity


@pytest.mark.parametrize("letters", ["ab", "abcde"])
def test_self_bleu_is_to_the_last_digit_the_mean_bleu_against_the_others(letters):
    noise = random.Random(letters)
    groups = [
        [[noise.choice(letters) for _ in range(noise.randrange(1, 20))] for _ in range(noise.randrange(2, 7))]
        for _ in range(12)
    ]
    expected = [
        sum(bleu(own, words[:at] + words[at + 1 :]) for at, own in enumerate(words)) / len(words) for words in groups
    ]
    assert self_bleu([[" ".join(each) for each in words] for words in groups], 200) == expected


def test_self_bleu_of_equal_different_empty_and_single_responses():
    groups = [["3 + 4 = 7, so 7"] * 4, ["a b c d", "e f g h"], ["", ""], ["alone"], ["a b c d", "a b c d e f"]]
    same, different, empty, single, shorter = self_bleu(groups, 200)
    assert same == pytest.approx(1.0)
    assert (different, empty, single) == (0.0, 0.0, None)
    assert shorter < 1.0, "a response that is shorter than all others pays for it"
    assert self_bleu([["a b c d x", "a b c d y"]], 4) == [pytest.approx(1.0)], "only the first words count"
    assert self_bleu([["", ""]], 200) == [0.0]
    assert self_bleu([["", ""], ["alone"], []], 200) == [0.0, None, None]
