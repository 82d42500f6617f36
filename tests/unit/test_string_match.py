r"""The string match of the authors' release: what its rules accept, and what only mathematical understanding would."""

import pytest

from ngrpo.grading.string_match import string_match


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5", "5"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\dfrac{1}{2}", r"\tfrac12"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", "1/2"),
        ("-3/4", r"\frac{-3}{4}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\$32", "32"),
        (r"10\%", "10"),
        (r"5\text{ cm}", "5"),
        ("x = 5", "5"),
        ("10,\\!000", "10,000"),
        ("1 +\n2", "1+2"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\{.5\}", r"\{0.5\}"),
    ],
)
def test_what_the_rules_make_equal(answer, gold):
    assert string_match(rf"so \boxed{{{answer}}}", gold)
    assert string_match(rf"so \boxed{{{gold}}}", answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\frac{2}{4}", r"\frac{1}{2}"),
        ("0.50", "0.5"),
        ("1/02", "1/2"),
        ("a/2", r"\frac{a}{2}"),
        ("1,000", "1000"),
        (r"5 \text{cm}", "5"),
        ("abc=5", "5"),
        ("a=b=5", "b=5"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"5\text{ m}\text{ s}", "5"),
        ("5", "6"),
    ],
)
def test_what_they_do_not(answer, gold):
    assert not string_match(rf"\boxed{{{answer}}}", gold)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        (r"\boxed{1} then \boxed{5}", True),
        (r"\boxed{5} then \boxed{1}", False),
        (r"<think>\boxed{5}</think> so 5", True),  # the whole response counts
        (r"\boxed{5} then \boxed{1", False),  # the last one is not closed
        (r"so $\boxed 5$ is it", True),
        (r"\boxed", False),
        (r"\fbox{5}", False),
        ("5", False),
        ("", False),
        ("{" * 1_000_000 + r"\boxed{5}", True),
        (r"\boxed{" * 140_000, False),
    ],
    ids=range(11),
)
def test_where_the_answer_is(text, matches):
    assert string_match(text, "5") is matches
