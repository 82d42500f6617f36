r"""Comparison: words and units count, values are exact, different answers are never equal, and no code in an answer is run."""

import builtins
import itertools
import json
import random
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import sympy

from different_golds import GOLDS, spellings
from ngrpo.grading import comparison, expressions
from ngrpo.grading.answer_forms import canonical
from ngrpo.grading.comparison import respond
from ngrpo.grading.expressions import nodes, read
from ngrpo.grading.quantities import Quantity, quantities
from ngrpo.grading.values import TooLargeError, UndefinedError, UnreadError, Valuation

NEAR, STRANGE = (
    [json.loads(line) for line in (Path(__file__).parents[1] / "data" / name).read_text(encoding="utf-8").splitlines()]
    for name in ("near_answers.jsonl", "strange_answers.jsonl")
)
"""Answers next to the border between right and wrong, on both sides of it; and answers in the many ways that people and models write."""


def verdict(gold: str, answer: str) -> bool:
    return respond(canonical(gold), canonical(answer))[0]


def test_near_answers():
    wrong = [case for case in NEAR if verdict(case["gold"], case["answer"]) != case["right"]]
    print(f"{len(NEAR)} near answers, {sum(case['right'] for case in NEAR)} right, {len(wrong)} otherwise")
    assert not wrong


def test_strange_answers():
    assert [case for case in STRANGE if verdict(case["gold"], case["answer"]) != case["right"]] == []


def test_the_gold_answers_of_near_answers_can_be_read():
    assert [case["gold"] for case in NEAR if not respond(canonical(case["gold"]), None)[0]] == []


def test_500_answers_are_accepted_for_themselves_however_they_are_written():
    golds = [gold for kind in GOLDS.values() for gold in kind]
    assert len(set(golds)) == 500
    assert [gold for gold in golds if not respond(canonical(gold), None)[0]] == []
    missed = [(gold, answer) for gold in golds for answer in (gold, *spellings(gold)) if not verdict(gold, answer)]
    assert not missed


def test_no_two_of_500_answers_are_accepted_for_each_other():
    # All pairs of a kind, and a sample of the others: `tests/faults/test_every_pair_of_answers.py` has every pair.
    near = [pair for kind in GOLDS.values() for pair in itertools.permutations(kind, 2)]
    golds = {gold: canonical(gold) for kind in GOLDS.values() for gold in kind}
    far = random.Random(0).sample(list(itertools.permutations(golds, 2)), 5000)
    accepted = [pair for pair in (*near, *far) if respond(golds[pair[0]], golds[pair[1]])[0]]
    print(f"{len(near) + len(far)} pairs, {len(accepted)} accepted")
    assert not accepted


# --- words and units --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("5", Quantity("5", Fraction(1), (), "", "")),
        (r"5\text{ million dollars}", Quantity("5", Fraction(10**6), (("dollar", 1),), "", "")),
        (r"\$5 million", Quantity("5", Fraction(10**6), (("dollar", 1),), "", "")),
        (r"\text{at least }3\text{ dozen eggs}", Quantity("3", Fraction(12), (("egg", 1),), ">=", "")),
        (r"15~\mathrm{km/h}", Quantity("15", Fraction(1), (("hour", -1), ("km", 1)), "", "")),
        (r"5\text{ m}/\text{s}^2", Quantity("5", Fraction(1), (("m", 1), ("second", -2)), "", "")),
        ("5 sq. ft", Quantity("5", Fraction(1), (("foot", 2),), "", "")),
        (r"20^\circ\text{C}", Quantity("20", Fraction(1), (("celsius", 1),), "", "")),
        (r"3\text{ does not work}", Quantity("3", Fraction(1), (), "", "does not work")),
        (r"x=1\text{ or }x=2", Quantity(r"x=1\text{ or }x=2", Fraction(1), (), "", "")),
        ("5ab", Quantity("5ab", Fraction(1), (), "", "")),
    ],
)
def test_words_beside_a_number(answer, expected):
    assert quantities(answer) == (expected,)


def test_a_quantity_of_two_numbers_is_two():
    assert [(part.number, part.unit) for part in quantities("5 hours and 30 minutes")] == [
        ("5", (("hour", 1),)),
        ("30", (("minute", 1),)),
    ]


# --- values -----------------------------------------------------------------------------------------------------------


def test_values_are_exact_where_they_can_be():
    for text, value in (
        (r"\frac{10^{20}+1}{10^{20}}", Fraction(10**20 + 1, 10**20)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        (r"\log_2 1024", Fraction(10)),
        (r"\sqrt[3]{-8}", Fraction(-2)),
        ("0.1+0.2", Fraction(3, 10)),
        (r"\binom{10}{3}", Fraction(120)),
        (r"\sum_{k=1}^{100} \frac{1}{k(k+1)}", Fraction(100, 101)),
    ):
        assert Valuation(50).of(read(text)) == value
    assert str(Valuation(50).of(read(r"\sqrt{2}"))).startswith("1.41421356237309504880168872420969807856967187537")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (r"9^{9^{9}}", TooLargeError),
        (r"(9^9)!", TooLargeError),
        (r"e^{e^{e^{e^{e^{e}}}}}", TooLargeError),
        (r"\binom{10^9}{10^8}", TooLargeError),
        (r"\sin(9^{9999})", TooLargeError),
        (r"\sum_{k=1}^{10^9} k", TooLargeError),
        (r"\frac{1}{0}", UndefinedError),
        (r"\ln 0", UndefinedError),
        (r"0^{-1}", UndefinedError),
        (r"(-3)!", UndefinedError),
    ],
)
def test_what_has_no_value_is_said(text, error):
    with pytest.raises(error):
        Valuation(50).of(read(text))


def test_equal_to_more_digits_than_are_computed_at_first():
    assert not verdict(r"\pi", r"\pi+10^{-150}")
    assert verdict(r"\sqrt{2}+10^{-150}", r"10^{-150}+\frac{2}{\sqrt{2}}")
    assert verdict("0", r"\sqrt{2}\cdot\sqrt{3}-\sqrt{6}")
    assert not verdict("0", r"e^{-400}")


# --- nothing is run ---------------------------------------------------------------------------------------------------

BREAKS = "\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
CODE = ")%sexec(chr(1)+chr(2)"
EXPLOITS = [
    template.replace("CODE", CODE % line_break)
    for line_break in BREAKS
    for template in (
        r"\{\sum_{n=0}^{\infty} \bar{CODE}^n\}",
        r"\sum_{n=0}^{\infty} \text{CODE}^n",
        r"(0,\sum_{n=0}^{\infty} \bar{CODE}^n)",
        r"\prod_{n=1}^{\infty} \bar{CODE}^n",
        r"\gcd(\sum_{n=0}^{\infty} \bar{CODE}^n, 2)",
        r"\int_0^1 \bar{CODE} dx",
        r"\operatorname{CODE}(x)",
        r"x_{CODE}",
        r"\variable{CODE}",
        r"\lim_{x\to 0} \bar{CODE}",
    )
]


def test_nothing_that_an_answer_says_is_run(monkeypatch):
    texts = [*((case["gold"], case["answer"]) for case in NEAR)]
    texts += [pair for answer in EXPLOITS for pair in (("5", answer), (answer, r"3\sqrt{13}"), (answer, answer + "+1"))]
    texts += [
        (r"\frac{\pi^2}{6}", r"\sum_{n=1}^{\infty}\frac{1}{n^2}"),
        ("2", r"\prod_{n=2}^{\infty}\frac{n^2}{n^2-1}"),
    ]
    respond(r"\frac{x}{2}", r"\begin{pmatrix}1\end{pmatrix}")  # all is loaded: an import is an `exec`
    reached = []

    def trap(name):
        def run(*_args, **_options):
            reached.append(name)
            raise RuntimeError(f"{name} was reached")

        return run

    for module in list(sys.modules.values()):
        for name in ("lambdify", "parse_expr", "sympify_parse"):
            if callable(getattr(module, "__dict__", {}).get(name)):
                monkeypatch.setattr(module, name, trap(name))
    with monkeypatch.context() as patch:
        for name in ("exec", "eval", "compile"):
            patch.setattr(builtins, name, trap(name))
        verdicts = [respond(canonical(gold), canonical(answer)) for gold, answer in texts]
    assert reached == []
    assert [verdict[0] for verdict in verdicts[: len(NEAR)]] == [case["right"] for case in NEAR]
    assert not any(verdict[0] for verdict in verdicts[len(NEAR) : -2])
    assert [verdict[0] for verdict in verdicts[-2:]] == [True, True]


def test_the_trap_is_reached_by_the_algebra_system_itself(monkeypatch):
    # What the walls are for: the numerical evaluation of a sum compiles source code.
    reached = []

    def trap(*_args, **_options):
        reached.append("lambdify")
        raise RuntimeError("lambdify was reached")

    monkeypatch.setattr(sys.modules["sympy.core.evalf"], "lambdify", trap)
    n = sympy.Symbol("n")
    with pytest.raises(RuntimeError, match="lambdify was reached"):
        sympy.Sum(1 / n**2, (n, 1, sympy.oo)).evalf()
    assert reached


@pytest.mark.parametrize("character", [*BREAKS.replace("\n", ""), "\x00", "\x1b", "\x7f", "\u202e", "\ud800"])
def test_characters_that_no_answer_needs_are_not_read(character):
    with pytest.raises(UnreadError, match="character"):
        read(f"5{character}")


@pytest.mark.parametrize(
    "name", ["a(", "x\ny", "__import__('os')", "a.b", "a;b", "a=b", 'a"b', "x" * 101, "1+1", "a:b"]
)
def test_names_that_no_answer_needs_are_refused(name):
    with pytest.raises(UnreadError, match="name"):
        expressions._check(sympy.Symbol(name) + 1)
    with pytest.raises(UnreadError, match="name"):
        expressions._check(sympy.Function(name)(1))


@pytest.mark.parametrize("name", ["x", "x_1", "x_{12}", "alpha", "bar{x}", "f_{prime}", "vec{v}", "evelyn", "α"])
def test_names_of_answers_are_accepted(name):
    expressions._check(sympy.Symbol(name) + 1)


def test_nodes_that_are_not_on_the_list_are_refused():
    x = sympy.Symbol("x")
    for node in (
        sympy.Sum(x, (x, 1, sympy.oo)),
        sympy.Product(x, (x, 1, sympy.oo)),
        sympy.Integral(x, (x, 0, 1)),
        sympy.Derivative(x**2, x),
        sympy.Limit(x, x, 0),
        sympy.Lambda(x, x),
        sympy.CRootOf(x**5 - x - 1, 0),
        sympy.Interval(0, 1),
        sympy.FiniteSet(1, 2),
        sympy.Piecewise((1, x > 0), (2, True)),
    ):
        with pytest.raises(UnreadError):
            expressions._check(sympy.Basic(node) if isinstance(node, sympy.Set) else node)
        with pytest.raises((UnreadError, UndefinedError)):
            Valuation(30).of(node)


def test_what_was_read_has_none_of_the_nodes_that_the_algebra_system_evaluates_by_code():
    evaluated = (
        sympy.Sum,
        sympy.Product,
        sympy.Integral,
        sympy.Limit,
        sympy.Derivative,
        sympy.Interval,
        sympy.FiniteSet,
    )
    for text in (
        r"\{\sum_{n=0}^{\infty} x^n\}",
        r"\prod_{n=1}^5 n",
        r"\int_0^1 x dx",
        "(1,2)",
        r"\{1,2\}",
        r"[1,2]\cup[3,4]",
    ):
        assert not any(isinstance(node, evaluated) for node in nodes(read(text)))


def test_an_error_is_a_verdict_of_wrong_and_says_why():
    assert respond("5", "2^")[0] is False
    assert "the answer cannot be parsed" in respond("5", "2^")[1]
    assert "the gold answer cannot be parsed" in respond("2^", "5")[1]
    assert respond("2^", None)[0] is False
    assert comparison.respond("5", r"\frac{5}{0}") == (False, None)
