"""Diversity within groups of responses, on examples that can be counted by hand."""

import pytest

from ngrpo.evaluation.diversity import distinct_answers, distinct_ngrams


@pytest.mark.parametrize(
    ("groups", "n", "expected"),
    [
        ([[[1, 2, 3], [1, 2, 3]]], 2, 2 / 4),
        ([[[1, 2, 3], [4, 5, 6]]], 2, 1.0),
        ([[[1, 1, 1, 1]]], 2, 1 / 3),
        ([[[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]], 4, 3 / 4),
        ([[[1, 2], [1, 2]], [[1, 2], [3, 4]]], 2, (1 / 2 + 1) / 2),
        ([[[1], [2]], [[1, 2], [1, 2]]], 2, 1 / 2),
        ([[[1, 2], []]], 1, 1.0),
        ([[[1], []]], 2, 0.0),
        ([], 2, 0.0),
    ],
)
def test_distinct_ngrams(groups, n, expected):
    assert distinct_ngrams(groups, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([["1", "1", "2", "3"]], 3 / 4),
        ([["1", "2"], ["1", "1"]], (1 + 1 / 2) / 2),
        ([["1", None, None, None]], 1 / 4),
        ([[None, None]], 0.0),
        ([], 0.0),
    ],
)
def test_distinct_answers(groups, expected):
    assert distinct_answers(groups) == pytest.approx(expected)
