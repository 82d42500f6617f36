r"""Countdown: the problems, and the verifier that judges any route to the target."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest

from ngrpo.config import CountdownSource, InitializedModel
from ngrpo.config.grading import GradingConfig
from ngrpo.data.model_directory import read_config
from ngrpo.data.models import materialize
from ngrpo.data.problems import load_problems
from ngrpo.data.word_tokenizer import word_tokenizer
from ngrpo.errors import DataError
from ngrpo.grading.countdown import LONGEST, read, solves
from ngrpo.grading.grader import Grader, extract_answer, gold_usable

FOLDS = ("warm_start", "train", "selection", "held_out")
GOLD = "(3+5)*7-2"  # 54 from 2, 3, 5 and 7
BY_VERIFIER = GradingConfig.model_validate({"compare": "countdown"})

RIGHT = [
    "(3+5)*7-2",
    "7*(5+3)-2",
    "(7*(3+5))-2",
    r"(3 + 5) \times 7 - 2",
    r"(3+5)\cdot 7-2",
    "(3+5)×7−2",
    "((3)+(5))*(7)-(2)",
]
WRONG = [
    "3+5*7-2",  # 36
    "54",  # the target, and none of the numbers
    "(3+5)*7-2=54",
    "(3+5)*7-1-1",  # other numbers
    "(3+5)*7-2+2-2",  # a number too often
    "(3+5)*7-2*3/3",
    "(3+5)*7",  # a number too few
    "35+2*7+5",  # digits put together
    "",
    "()",
    "(3+5)*7-",
    "(3+5))*7-2(",
    "3+5*7-2)",
    "(3+5)7-2",
    "-2+7*(3+5)",  # a sign is no operation
    "(3+5)*7-2.0",
    "3+5*7-2/0",
    "2/(3-3)*5*7",
]
HOSTILE = [
    "__import__('os').system('true')",
    "(3+5)*7-2 if True else 0",
    "9**9**9**9",
    "(3+5)*7-2\nimport os",
    "(" * 90 + "54" + ")" * 90,
    "(" * 100_000,
    "9" * 100_000,
    "*".join(["999999"] * 5000),
    "(3+5)*7-2" + " " * 500,
    "٣+5*7-2",
    "\0",
    "\ud800",
    "lambda: 54",
    r"\frac{1}{0}",
]


def source(**settings: object) -> CountdownSource:
    return CountdownSource.model_validate({"kind": "countdown", "size": 300, "fold": "train", **settings})


# --- problems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_a_problem_can_be_solved_by_its_own_solution(numbers: int) -> None:
    for problem in load_problems(source(size=100, numbers=numbers)):
        words = problem.problem.split()
        target, given = int(words[1]), sorted(map(int, words[3:]))
        assert len(given) == numbers
        assert eval(problem.answer) == target
        assert sorted(int(each) for each in problem.answer if each.isdigit()) == given
        assert extract_answer(problem.solution) == problem.answer
        reasoning = problem.solution.removeprefix("<think>").partition("</think>")[0]
        steps = [word.split("=") for word in reasoning.split()[1::2]]
        assert [eval(left) for left, _ in steps] == [int(right) for _, right in steps]
        assert int(steps[-1][1]) == target


def test_folds_hold_different_problems_and_no_problem_twice() -> None:
    folds = [[problem.id for problem in load_problems(source(fold=fold))] for fold in FOLDS]
    assert len(set(itertools.chain(*folds))) == 4 * 300
    small = load_problems(source(size=50))
    assert small == load_problems(source())[:50], "a larger size only adds problems"


def test_the_fold_does_not_depend_on_the_order_in_which_numbers_are_shown() -> None:
    shown = {}
    for fold in FOLDS:
        for problem in load_problems(source(fold=fold, numbers=3, size=240)):
            target, numbers = problem.problem.split()[1], sorted(problem.problem.split()[3:])
            assert shown.setdefault((target, *numbers), fold) == fold


def test_more_problems_than_a_fold_holds_are_refused() -> None:
    with pytest.raises(DataError, match=r"size=5000 .*fold 'held_out'.*numbers=3 .*lower size or raise numbers"):
        load_problems(source(fold="held_out", size=5000, numbers=3))


def test_problems_have_several_routes() -> None:
    for problem in load_problems(source(size=10)):
        numbers = [int(word) for word in problem.problem.split()[3:]]
        routes = {
            text
            for a, b, c, d in itertools.permutations(numbers)
            for p, q, r in itertools.product("+-*", repeat=3)
            for text in (f"(({a}{p}{b}){q}{c}){r}{d}",)
            if solves(problem.answer, text)[0]
        }
        assert len(routes) > 1


def test_its_tokenizer_keeps_every_text() -> None:
    tokenizer = word_tokenizer("countdown")
    unknown = tokenizer.unk_token_id
    for problem in load_problems(source()):
        for text in (problem.problem, problem.solution):
            ids = tokenizer(text)["input_ids"]
            assert unknown not in ids
            assert tokenizer.decode(ids) == text


def test_a_model_for_countdown_has_its_vocabulary(tmp_path) -> None:
    made = InitializedModel(kind="initialized", vocabulary="countdown", hidden_size=16, layers=1)
    rows = read_config(materialize(made, tmp_path / "model"), "the model").vocab_size
    assert rows == len(word_tokenizer("countdown")) != len(word_tokenizer())


# --- the verifier -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", RIGHT)
def test_any_expression_of_the_numbers_with_the_value_is_right(answer: str) -> None:
    assert solves(GOLD, answer) == (True, None)


@pytest.mark.parametrize("answer", WRONG)
def test_anything_else_is_wrong(answer: str) -> None:
    assert solves(GOLD, answer) == (False, None)


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: repr(text[:20]))
def test_hostile_answers_are_wrong_at_once(answer: str) -> None:
    assert solves(GOLD, answer) == (False, None)


def test_a_value_is_exact() -> None:
    assert read("1/3*3") == (Fraction(1), [1, 3, 3])
    assert solves("8/(3-8/3)", "24") == (False, None)
    assert read("8/(3-8/3)") == (Fraction(24), [3, 3, 8, 8])
    assert read("1/(2-2)") is None
    assert read("1" + "+1" * (LONGEST // 2)) is None, "too long"


def test_a_gold_answer_that_is_no_expression_is_said_so() -> None:
    assert solves("twenty-four", "24") == (False, "the gold answer is no expression of whole numbers")
    assert gold_usable(GOLD, BY_VERIFIER)
    assert not gold_usable("twenty-four", BY_VERIFIER)
    assert not gold_usable("24=3*8", BY_VERIFIER)


def test_the_grader_judges_by_it_behind_its_walls() -> None:
    texts = [rf"<think>\boxed{{1}}</think>\boxed{{{answer}}}" for answer in (*RIGHT, *WRONG)]
    texts += [answer[:5000] for answer in HOSTILE]
    with Grader(workers=1, grading=BY_VERIFIER) as grader:
        grades = grader.grade([(text, GOLD) for text in texts])
        assert [worker.process.poll() for worker in grader._pool._workers] == [None], "no answer ended the process"
    assert [grade.correct for grade in grades] == [True] * len(RIGHT) + [False] * (len(WRONG) + len(HOSTILE))
    assert Counter(grade.error for grade in grades) == {None: len(grades)}


def test_a_source_is_judged_by_it_however_its_answers_are_marked() -> None:
    assert source().grading == BY_VERIFIER
    marked = source(grading={"response": "<answer>"}).grading
    assert (marked.response, marked.compare.function) == ("<answer>", "countdown")
    assert marked.of_gold.compare.function == "countdown"


@pytest.mark.parametrize("compare", ["math", "exact"])
def test_a_comparison_that_does_not_see_the_numbers_is_refused(compare: str) -> None:
    with pytest.raises(ValueError, match=rf"grading.compare='{compare}' does not see which numbers .*leave it out"):
        source(grading={"compare": compare})
