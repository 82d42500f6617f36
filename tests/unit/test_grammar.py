r"""Parsing in two stages: the tree of every text is that of the parser's own, slower way."""

import json
import random
from pathlib import Path

import pytest
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

from ngrpo.grading import grammar

TEXTS = sorted(
    {
        case[side]
        for line in (Path(__file__).parents[1] / "data" / "near_answers.jsonl").read_text(encoding="utf-8").splitlines()
        for case in [json.loads(line)]
        for side in ("gold", "answer")
        if "\\text" not in case[side]
    }
)


def tree(parser) -> str:
    try:
        return parser.math().toStringTree(recog=parser)
    except Exception:
        return "no tree"  # which of several errors is said first may differ


def both(text: str) -> tuple[str, str]:
    reader = _Latex2Sympy()
    try:
        ours = tree(grammar.parser(text, reader.MathErrorListener(text)))
    except Exception:
        ours = "no tree"
    return ours, tree(reader.create_parser(text))


@pytest.mark.parametrize(
    "text",
    [
        r"-|0|^{2}",  # an error of the first stage alone
        r"\int_0^1 x dx",
        r"\sum_{n=1}^{\infty}\frac{1}{n^2}",
        "1A_{16}",
        "x^2+",  # an error of both
        "5\u2028",  # no token
        # what is chosen without reading to the end, and the signs that forbid it
        "x = 5",
        r"x \in \{1, 2\}",
        r"x, y \notin A",
        r"A = \{1\} \cup \{2\}",
        r"A \subset \mathbb{R}",
        r"2 \pm \sqrt{3}",
        r"\frac{1}{2}, 3 \pm 1",
        r"\pm 1",
        r"\mathbb{R} \setminus \{0\}",
        "x, y; z",
        "x =",
    ],
)
def test_what_the_first_stage_mistakes(text):
    ours, plain = both(text)
    assert ours == plain


def test_the_trees_of_answers():
    texts = random.Random(0).sample(TEXTS, 60)
    assert [text for text in texts if len(set(both(text))) > 1] == []
