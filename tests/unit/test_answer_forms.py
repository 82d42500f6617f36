r"""Spellings: the same answer in another spelling is right, and a different answer that looks similar is wrong.

Each case is a gold answer, an answer, and what a careful reader says who knows no more than the two.
"""

import time

import pytest

from ngrpo.grading.answer_forms import canonical, several_numbers
from ngrpo.grading.grader import Grader

COLUMN = r"\begin{pmatrix}1\\2\end{pmatrix}"
CASES = {
    "digits and letters": [
        ("1.5", "１．５", True),
        ("3.5", "٣٫٥", True),
        ("1234", "١٬٢٣٤", True),
        ("12", "1\u200b2", True),
        ("5", "\u200e5", True),
        ("5", r"５\text{ cm}", True),
        ("x=5", "ｘ＝５", True),
        ("x", "𝑥", True),
        (r"\pi", "𝜋", True),
        (r"\mathbb{R}", "ℝ", True),
        ("R", "ℝ", False),
        ("P", "𝒫", False),
        ("B", "Ａ", False),
        ("5", "⑤", False),
        ("1", "Ⅰ", False),
        ("5", "５．", True),
        ("51", "\u202e15", False),
        ("15", "\u202e15", False),
        ("23", "2\u20623", False),
        ("5", "5\u00ad", False),
    ],
    "signs": [
        ("-3", "−3", True),
        ("-5", "－5", True),
        ("-5", "x = –5", True),
        ("(-5,3)", "(–5, 3)", True),
        ("-2", "3–5", False),
        ("2", "3–5", False),
        ("6", "２×３", True),
        ("(-5,3)", "（－５，３）", True),
        (r"\{1,2\}", "｛１，２｝", True),
        ("-5", "‐5", True),
        ("-5", "‑5", True),
        ("1,2", "1، 2", True),
        (r"(0,\infty)", "(0,∞)", True),
        (r"(-\infty,1)\cup(3,\infty)", "(−∞,1)∪(3,∞)", True),
        ("[0,1]", "x∈[0,1]", True),
        ("90", "90°", True),
        (r"50\%", "٥٠٪", True),
        (r"50\%", "５０％", True),
    ],
    "powers and fractions": [
        ("x^2", "x²", True),
        ("x2", "x²", False),
        ("25", "5²", True),
        ("52", "5²", False),
        ("2^{23}", "2²³", True),
        ("10^{-3}", "10⁻³", True),
        ("52", "5₂", False),
        ("5", "⁵", False),
        ("2", "²", False),
        (r"\frac{3}{4}", "¾", True),
        ("34", "¾", False),
        (r"\frac{3}{2}", "1½", True),
        (r"\frac{1}{2}", "1½", False),
        (r"\frac{11}{2}", "1½", False),
        (r"\frac{11}{2}", "11⁄2", True),
        (r"\frac{4}{9}", "(⅔)²", True),
        (r"\sqrt{2}", "2^½", True),
        (r"\sqrt{2}", r"2^\frac{1}{2}", True),
        (r"\frac{1}{2}", r"2^\frac12", False),
        ("1", "⅟", False),
    ],
    "roots": [
        (r"\sqrt{12}", "√12", True),
        (r"\sqrt{1}2", "√12", False),
        (r"\frac{\sqrt{2}}{2}", "√2/2", True),
        (r"\sqrt{x+1}", "√(x+1)", True),
        (r"\sqrt{1.5}", "√1.5", True),
        (r"\sqrt{2},\sqrt{3}", "√2, √3", True),
        (r"\sqrt{2x}", "√2x", False),
        (r"\sqrt{2}x", "√2x", False),
        (r"\sqrt{4}", "√2²", False),
        ("2", "³√8", False),
        (r"8\sqrt{8}", "2³√8", False),
    ],
    "numbers": [
        ("10000", r"10\,000", True),
        ("10000", "10 000", True),
        ("10", "10 000", False),
        ("0", "10 000", False),
        ("1234567", "1\u202f234\u202f567", True),
        ("1234.5", "1 234.5", True),
        ("12345", "1 2345", False),
        ("12345678", "12345 678", False),
        (r"\frac{1000}{3}", r"\frac{1\,000}{3}", True),
        (r"\begin{pmatrix}1\\200\end{pmatrix}", r"\begin{pmatrix}1\\ 200\end{pmatrix}", True),
        ("3", "1 2", False),
        ("12", "1 2", False),
        (r"\frac{3}{2}", "1 1/2", True),
        ("-1.5", "-1 1/2", True),
        ("1", "1 1/2", False),
        (r"\frac{1}{2}", r"\frac 1 2", True),
        ("3:00", "3{:}00", True),
        ("3:00", "3{:}30", False),
        ("5", "0" * 5000 + "5", True),
        ("5", "0" * 5000 + "6", False),
        ("5", "5." + "0" * 5000, True),
        ("5", "5." + "0" * 5000 + "1", False),
        ("50", "5" + "0" * 5000, False),
        ("0", "0" * 5000, True),
    ],
    "currency": [
        ("5", "5 €", True),
        ("-5", "-€5", True),
        ("€5", "5", True),
        ("€5", "€5.00", True),
        (r"\$5", "5", True),
        (r"\frac{1}{2}", "€0.50", True),
        ("x=5", "€5", True),
        ("5", "£6", False),
        (r"5\text{ m}", "€5", False),
        ("€5", "5 cm", False),
        (r"90^\circ", "€90", False),
        (r"50\%", "€50", False),
        (r"\$5", "€5", False),
        ("€5", r"\$5", False),
        ("€5", "£5", False),
        ("150", "1€50", False),
        ("5", "5¢", True),
    ],
    "nothing": [
        ("no solution", "No real solutions", True),
        (r"\text{No real solutions}", r"\emptyset", True),
        ("no solution", r"\textbf{No solutions exist.}", True),
        ("no solution", r"\text{The equation has no solution}", True),
        ("no solution", r"no~solution", True),
        ("no solution", "ｎｏ　ｓｏｌｕｔｉｏｎ", True),
        (r"\text{DNE}", r"\text{does not exist}", True),
        (r"\text{None}", "∅", True),
        ("none", "∄", True),
        (r"\emptyset", r"\left\{ \right\}", True),
        (r"\emptyset", r"x\in\varnothing", True),
        (r"\emptyset", r"\{\emptyset\}", False),
        ("no solution", r"\{\emptyset\}", False),
        (r"\emptyset", r"\{0\}", False),
        ("0", "none", False),
        ("5", r"\varnothing", False),
        ("none", "enno", False),
        ("no", "no solution", False),
        ("no solution", "(2,2)", False),
        ("no solution", r"\text{no integer solutions}", False),
        ("no integer solutions", "no solution", False),
        ("no solution", r"\text{no unique solution}", False),
        ("no solution", r"\text{one solution}", False),
        ("no solution", r"\text{infinitely many solutions}", False),
        ("no solution", r"\text{no solution other than }5", False),
        ("no solution", r"\text{not no solution}", False),
        ("no solution", r"\text{undefined}", False),
        ("no solution", r"\text{none of the above}", False),
        (r"\text{exists}", r"\text{does not exist}", False),
    ],
    "intervals": [
        ("(1,2]", "]1,2]", True),
        ("[1,2]", "]1,2]", False),
        ("[1,2)", r"\left[1,2\right[", True),
        ("[1,2)", "]1,2[", False),
        ("(1,2)", "]1,2[", False),  # it may be a point
        (r"(-\infty,3)", r"]-\infty,3[", True),
        (r"(-\infty,1)\cup[3,\infty)", r"]-\infty,1[\cup[3,+\infty[", True),
        ("(1,2]\\cup(3,4]", "]1,2]∪]3,4]", True),
        (r"\sqrt[3]{2},\sqrt[3]{5}", r"\sqrt[3]{5},\sqrt[3]{2}", True),
        ("[-2,2]", r"-2\le x\le 2", True),
        ("[-2,2]", r"-2\le x<2", False),
        ("[-2,2]", r"x^2\le 4", False),  # not solved
        ("[-2,2]", r"|x|\le 2", True),
        (r"(-\infty,3)", "3>x", True),
        (r"(-\infty,3)", "x>3", False),
        (r"(-\infty,3]", "x<3", False),
        (r"(-\infty,3)\cup(3,\infty)", r"x\ne 3", True),
        (r"[0,\infty)", r"x\ge 0, y\ge 0", False),
        (r"[0,\infty)", r"x\ge y", False),
        ("(1,5)", "1<x<5", True),  # bounds say that it is no point
    ],
    "sets, tuples and columns": [
        ("(1,2,3)", r"\{1,2,3\}", False),
        (r"\{1,2,3\}", r"\left(1,2,3\right)", False),
        ("1,2", "(1,2)", True),
        ("(1,2)", "1,2", True),
        (r"\{(1,2),(3,4)\}", "(3,4),(1,2)", True),
        (r"\{1\}", "(1)", True),
        (COLUMN, "(2,1)", False),
        (COLUMN, "[1,2]", False),
        (COLUMN, r"\{1,2\}", False),
        (COLUMN, "1,2", False),
        (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "(1,2,3)", True),
        (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "(1,2)", False),
        (r"\begin{pmatrix}1/2\\0\end{pmatrix}", "(0.5,0)", True),
        (r"\begin{pmatrix}1&2\end{pmatrix}", "(1,2)", False),
    ],
    "percentages": [
        (r"12.5\%", "0.125", True),
        (r"12.5\%", "1.25", False),
        (r"0.5\%", "0.5", True),
        ("0.5", r"0.5\%", False),
        (r"0.5\%", r"50\%", False),
        (r"50\%", r"0.5\%", False),
        (r"-5\%", "5", False),
        (r"33\frac{1}{3}\%", r"\frac{1}{3}", True),
        (r"33\frac{1}{3}\%", "33", False),
        (r"5.5\%", "5½%", True),
        (r"\frac{1}{2}\%", r"5\frac{1}{2}\%", False),
    ],
}


@pytest.fixture(scope="module")
def grader():
    with Grader() as shared:
        yield shared


@pytest.mark.parametrize("kind", CASES)
def test_spellings(kind, grader):
    grades = grader.grade([(rf"\boxed{{{answer}}}", gold) for gold, answer, _ in CASES[kind]])
    wrong = [
        f"{gold} ~ {answer[:40]}: {grade.correct} {grade.error}"
        for (gold, answer, right), grade in zip(CASES[kind], grades, strict=True)
        if grade.correct != right
    ]
    assert not wrong, "\n".join(wrong)
    assert [grade.extracted for grade in grades] == [answer.strip() for _, answer, _ in CASES[kind]], (
        "as it was written"
    )


def test_numbers_without_a_sign_between_them_are_an_error(grader):
    (grade,) = grader.grade([(r"\boxed{1 2}", "3")])
    assert grade.error == "the answer is several numbers with nothing between them"


def test_spelling_is_final():
    for gold, answer, _ in (case for cases in CASES.values() for case in cases):
        for text in (gold, answer):
            assert canonical(canonical(text)) == canonical(text)


@pytest.mark.parametrize(
    "part",
    [
        "{",
        r"\{",
        r"\{ ",
        "(",
        ",",
        r"\left ",
        r"\cup",
        r"\text{",
        "no ",
        "1 000",
        "1,",
        "1",
        "1 ",
        "1é",
        "²",
        "√(",
        "1€",
        "1,000",
        "1,000 (",
        r"0.\overline{5}",
        "1.5e5",
        "1e",
        "x'",
        r"\mathrm{e}",
        r"\mathrm{ ",
        "$",
        " .",
        r"\(",
    ],
)
def test_the_longest_answers_are_read_in_no_time(part):
    for text in ((part * 4096)[:4096], "é" + (part * 4096)[:4094] + "}", r"\{" + (part * 4096)[:4092] + r"\}"):
        started = time.process_time()
        spelled = canonical(text)
        several_numbers(spelled)
        assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "text",
    ["{" * 2000 + "1" + "}" * 2000, "1." + "1" * 4000 + "...", r"\{x:" + "x<" * 2000 + r"\}", r"\text{" * 500 + "1" + "}" * 500],
)  # fmt: skip
def test_long_answers_are_rewritten_in_no_time(text):
    began = time.process_time()
    canonical(text)
    assert time.process_time() - began < 0.5
