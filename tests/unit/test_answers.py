"""How answers are graded: where the gold answer and that of a response are, how they are compared, several that are accepted."""

import json
import tomllib
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ngrpo.config import (
    BenchmarkEvaluationConfig,
    HubSource,
    NGRPOTrainingConfig,
    PrepareDataConfig,
    load_config,
    select,
    validate,
)
from ngrpo.config.grading import BOXED, GradingConfig
from ngrpo.data.problems import load_problems
from ngrpo.errors import ConfigError, DataError, UserCodeError
from ngrpo.evaluation.benchmark import Benchmark, read_benchmark
from ngrpo.evaluation.grading_again import grade_again
from ngrpo.evaluation.protocol import benchmark_protocol, differ_in_graders_alone, difference, grader_version
from ngrpo.evaluation.results import benchmark_result
from ngrpo.evaluation.stored_evaluation import answers_of, statistics_of
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.grader import Grade, Grader
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo.training.rewards import CorrectnessReward
from ngrpo_kfp.pipelines.cli.options import PRESETS

ROOT = Path(__file__).parents[2]


def grading(**settings) -> GradingConfig:
    return validate(GradingConfig, settings)


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1, timeout_seconds=1.0) as grader:
        yield grader


def grade(grader: Grader, text: str, gold: str | list[str], **settings) -> Grade:
    (only,) = grader.grade([(text, gold)], grading(**settings))
    return only


# --- the answer of a response -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "response", "answer"),
    [
        ({}, r"<think>\boxed{4}</think>so \boxed{5}", "5"),
        ({"response": "####"}, "5 + 7 = 12\n#### 12", "12"),
        ({"response": "####"}, "#### 1\n#### 12,000 ", "12000"),
        ({"response": "####"}, "#### 1\n</think>\n12", None),
        ({"response": "####"}, "#### \n", None),
        ({"response": "<answer>"}, "<answer>4</answer> no, <answer>\n12 </answer>.", "12"),
        ({"response": "<answer>"}, "<answer>4<answer>12</answer>", "12"),
        ({"response": "<answer>"}, "<answer>4</answer><answer>12", "4"),
        ({"response": "<answer>"}, "12</answer>", None),
        ({"response": "text"}, "<think>because</think>\n 12 \n", "12"),
        ({"response": "text"}, " ", None),
        ({"response": "letter"}, "Answer: B\nAnswer: C\n", "C"),
        ({"response": "regex", "pattern": r"answer is (\d+)"}, "the answer is 4, no, the answer is 12.", "12"),
        ({"response": "regex", "pattern": r"(?i)(?:answer|result) is (?P<n>\d+)"}, "The RESULT IS 12", "12"),
        ({"response": "regex", "pattern": r"a(\d)?"}, "a4 a", "4"),
        ({"response": "regex", "pattern": r"is (\d+)"}, "<think>is 4</think>so", None),
        ({"response": "regex", "pattern": r"is (\d+)"}, "\ud83d is 4 \U0001f600 is 12", "12"),
    ],
)
def test_where_the_answer_of_a_response_is(grader, settings, response, answer):
    found = grade(
        grader, response, "never", **settings, **({} if "letter" in settings.values() else {"compare": "exact"})
    )
    assert found == Grade(False, answer, None)
    if answer is not None:
        assert grade(grader, response, answer, **settings).correct


@pytest.mark.parametrize("form", ["####", "<answer>", "letter", "text"])
@pytest.mark.parametrize("part", ["####", "<answer>", "</answer>", "#### 1\n", "Answer: A\n", "\\boxed{"])
def test_answers_are_found_in_linear_time(grader, form, part):
    from time import perf_counter

    began = perf_counter()
    grade(grader, part * 100_000, "B", response=form, compare="exact")
    assert perf_counter() - began < 5


def test_an_expression_without_an_end_ends_in_the_worker(grader):
    slow = grade(grader, "a" * 60 + "!", "a", response="regex", pattern="(a|aa)+$")
    assert slow == Grade(False, None, "no verdict within 1 s")
    assert grade(grader, "aa", "a", response="regex", pattern="(a|aa)+$").correct, (
        "the next one has a worker of its own"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"response": "regex"}, r'response="regex" needs pattern'),
        ({"gold": "regex"}, r'gold="regex" needs gold_pattern'),
        ({"pattern": "(a)"}, r"pattern='\(a\)' goes with response=\"regex\", not with 'boxed'"),
        ({"response": "regex", "pattern": "a"}, r"pattern: it has no group; one holds the answer"),
        ({"response": "regex", "pattern": "(a)(b)"}, r"pattern: it has 2 groups; exactly one .* \(\?:"),
        ({"response": "regex", "pattern": "(a"}, r"pattern: no regular expression: missing \), unterminated"),
        ({"response": "box"}, r"response: one of text, boxed, ####, .*; did you mean 'boxed'\?"),
        ({"gold": "answer"}, r"gold: one of .*; did you mean '<answer>'\?"),
        ({"accepted": "some"}, r"accepted: one of one, any, all"),
        (
            {"compare": "maths"},
            r"^compare\.function='maths': no ready one \(math, exact, countdown\); did you mean 'math'\?",
        ),
        ({"compare": "nowhere.py:grade"}, r"^compare\.function=.*no such file: 'nowhere.py' is relative to"),
        ({"response": "letter", "compare": "math"}, r"a letter is no mathematical value"),
        ({"response": 5}, r"response: .*\(value 5\)"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ConfigError, match=said):
        validate(GradingConfig, settings)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (['data.train.grading.gold="####"'], "data.train.grading.gold='####' .* are for answers of a column"),
        (['data.train.grading.accepted="any"'], "data.train.*grading.accepted='any' are for answers of a column"),
        (['data.train.grading.response="hash"'], "data.train.grading.response: one of"),
        (
            ['data.benchmarks.arithmetic.grading.response="####"', 'evaluation.string_match=["arithmetic"]'],
            "evaluation.string_match: 'arithmetic' has response='####'",
        ),
    ],
)
def test_settings_that_do_not_fit_their_source(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(PRESETS / "tiny.toml", overrides)


def test_columns_that_do_not_fit_the_grading():
    source = {"kind": "hub", "id": "./here", "split": "test"}
    with pytest.raises(ConfigError, match=r"answer_is_boxed=true is another word for grading\.gold"):
        validate(HubSource, source | {"answer_is_boxed": True, "grading": {"gold": "####"}})
    with pytest.raises(ConfigError, match=r"go with no wrong_answer_columns"):
        validate(HubSource, source | {"wrong_answer_columns": ["b"], "grading": {"accepted": "any"}})
    chosen = validate(HubSource, source | {"wrong_answer_columns": ["b"]})
    assert (chosen.grading.response, chosen.grading.compare.function) == ("letter", "exact")
    boxed = validate(
        HubSource, source | {"wrong_answer_columns": ["b"], "grading": {"response": "boxed", "compare": "exact"}}
    )
    assert boxed.grading.response == "boxed"


# --- several accepted answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "response", "gold", "correct"),
    [
        ("any", r"\boxed{0.5}", ["2", r"\frac{1}{2}"], True),
        ("any", r"\boxed{3}", ["2", r"\frac{1}{2}"], False),
        ("any", r"\boxed{2} or \boxed{3}", ["2"], False),
        ("any", "2", ["2"], False),
        ("all", r"\boxed{9} and \boxed{3}", ["3", "9"], True),
        ("all", r"\boxed{9, 3}", ["3", "9"], True),
        ("all", r"\boxed{9;3}", ["3", "9"], True),
        ("all", r"\boxed{\{3, 9\}}", ["3", "9"], True),
        ("all", r"\boxed{(1, 2), (3, 4)}", ["(3,4)", "(1,2)"], True),
        ("all", r"\boxed{1,000}", ["1000"], True),
        ("all", r"\boxed{0.5} = \boxed{\frac12}", ["1/2"], True),
        ("all", r"\boxed{3}", ["3", "9"], False),
        ("all", r"\boxed{3, 9, 27}", ["3", "9"], False),
        ("all", r"\boxed{3, 3}", ["3", "9"], False),
        ("all", "".join(rf"\boxed{{{number}}}" for number in range(20)), ["3", "9"], False),
        ("all", r"\boxed{}", ["3", "9"], False),
    ],
)
def test_any_and_all(grader, accepted, response, gold, correct):
    verdict = grade(grader, response, gold, accepted=accepted)
    assert (verdict.correct, verdict.error) == (correct, None)


def test_hostile_lists_are_wrong_before_they_are_compared(grader):
    many = "".join(rf"\boxed{{x^{{{number}}}+1}}" for number in range(20_000))
    assert not grade(grader, many, ["x", "y"], accepted="all").correct
    assert not grade(grader, r"\boxed{" + r"\{" * 50_000 + "}", ["3", "9"], accepted="all").correct


def test_compared_exactly(grader):
    assert not grade(grader, r"\boxed{5.0}", "5", compare="exact").correct
    assert grade(grader, r"\boxed{ Paris }", "Paris", compare="exact").correct
    assert not grade(grader, "", "", compare="exact", response="text").correct


# --- a function of the user's -------------------------------------------------------------------------------------------


def user_grading(folder: Path, body: str, **settings) -> GradingConfig:
    (folder / "graders.py").write_text(f"def grade(response, answer):\n    {body}\n")
    return validate(GradingConfig, {"compare": str(folder / "graders.py") + ":grade"} | settings)


def test_a_grader_of_the_users(grader, tmp_path):
    close = user_grading(tmp_path, "return 0.75 if answer in response else answer == 'all'", response="text")
    grades = grader.grade([("it is 5", "5"), ("it is 5", "6"), ("<think>x</think>y", "all")], close)
    assert grades == [
        Grade(True, "it is 5", None, 0.75),
        Grade(False, "it is 5", None, 0.0),
        Grade(True, "y", None, 1.0),
    ]
    with Grader(workers=1, grading=close) as trainer:
        turns = [[{"role": "assistant", "content": "it is 5"}]] * 2
        assert CorrectnessReward(trainer)(turns, turns, answer=["5", "6"]) == [0.75, 0.0]


def test_a_grader_of_the_users_gets_the_list_and_cannot_change_it(grader, tmp_path):
    gold = ["3", "9"]
    taken = user_grading(tmp_path, "return [answer.pop() for _ in range(2)] == ['9', '3']", accepted="any")
    assert [each.correct for each in grader.grade([("", gold), ("", gold)], taken)] == [True, True]
    assert gold == ["3", "9"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise BaseException('out of time')", r"graders\.py, line \d+: BaseException: out of time"),
        ("return None", r"it returned None; return true, false or a number from 0 to 1"),
        ("return float('nan')", r"it returned nan"),
        ("return 2", r"it returned 2"),
        ("return 'yes'", r"it returned 'yes'"),
        ("raise KeyError('x')", r"graders\.py, line 2: KeyError: 'x'"),
    ],
)
def test_a_grader_of_the_users_that_fails_is_named_with_its_answer(grader, tmp_path, body, said):
    with pytest.raises(
        UserCodeError, match=r"graders\.py:grade', called with a response of 1 characters and the answer '5'.*" + said
    ):
        grader.grade([("x", "5")], user_grading(tmp_path, body))


def test_an_edit_of_a_users_grader_is_another_grader(tmp_path):
    first, second = (grader_version(user_grading(tmp_path, body)) for body in ("return True", "return False"))
    assert len({first, second, grader_version()}) == 3


# --- gold answers of a column -------------------------------------------------------------------------------------------


def table(folder: Path, answers: list, **grading) -> HubSource:
    folder.mkdir(exist_ok=True)
    rows = {"problem": [f"what is {row + 1}+1?" for row in range(len(answers))], "answer": answers}
    pq.write_table(pa.table(rows), folder / "test.parquet")
    return HubSource(kind="hub", id=str(folder), split="test", grading=grading)


def golds(folder: Path, answers: list, **grading) -> list:
    return [problem.answer for problem in load_problems(table(folder, answers, **grading))]


def test_where_gold_answers_are(tmp_path):
    assert golds(tmp_path / "a", ["2+2=<<2+2=4>>4\n#### 4", "x\n#### 1,234,567"], gold="####") == ["4", "1234567"]
    assert golds(tmp_path / "b", ["<answer>4</answer>", None], gold="<answer>") == ["4", ""]
    assert golds(tmp_path / "c", [r"so \boxed{4}", "none"], gold="boxed") == ["4", ""]
    assert golds(tmp_path / "d", ["result: 4", "none"], gold="regex", gold_pattern=r"result: (\d+)") == ["4", ""]


def test_lists_of_gold_answers(tmp_path):
    assert golds(tmp_path / "a", [["3", "9"], ["5"], None, []], accepted="any") == [["3", "9"], ["5"], [], []]
    assert golds(tmp_path / "b", [[3, 9]], accepted="all") == [["3", "9"]]
    assert golds(tmp_path / "c", ['["3", 9.50]', "5", "[0, 1)"], accepted="any") == [["3", "9.50"], ["5"], ["[0, 1)"]]
    assert golds(tmp_path / "d", [["#### 3", "#### 1,000"]], accepted="all", gold="####") == [["3", "1000"]]
    assert golds(tmp_path / "e", [r"\boxed{3} or \boxed{9}"], accepted="any", gold="boxed") == [["3", "9"]]


@pytest.mark.parametrize(
    ("answers", "settings", "said"),
    [
        (
            [["3", "9"]],
            {},
            r"row 0, column 'answer' holds a list of 2 answers where one is expected: set grading.accepted",
        ),
        (
            ["1", "['3', '9']"],
            {},
            r"row 1, column 'answer' holds a list that was turned into text \(\['3', '9'\]\): store one answer",
        ),
        (
            ["['3', '9']"],
            {"accepted": "any"},
            r"row 0, column 'answer' holds a list that was turned into text .*: write it as JSON",
        ),
        ([["3", None]], {"accepted": "all"}, r"row 0, column 'answer', answer 1 of its list, is empty"),
        (
            [[["3"]]],
            {"accepted": "all"},
            r"row 0, column 'answer', answer 0 of its list, is a list, not text or a number",
        ),
        (["5"], {"gold": "####"}, r"answer_column='answer' holds no answer after #### in any of its 1 rows"),
        ([[]], {"accepted": "any"}, r"holds no answer in any of its 1 rows"),
        (
            ["a" * 60],
            {"gold": "regex", "gold_pattern": "(a|aa)+$b"},
            r"row 0, column 'answer': no verdict within 5 s; simplify grading.gold_pattern",
        ),
    ],
)
def test_cells_that_hold_no_gold_answer(tmp_path, answers, settings, said):
    with pytest.raises(DataError, match=said):
        golds(tmp_path / "data", answers, **settings)


@pytest.mark.parametrize("answers", [[5, 12], [5.0, 12.0], [Decimal("5"), Decimal("12.0")]])
def test_numbers_are_gold_answers(tmp_path, grader, answers):
    for answer, gold in zip(("5", "12"), golds(tmp_path / "data", answers), strict=True):
        assert grade(grader, rf"\boxed{{{answer}}}", gold).correct
        assert not grade(grader, rf"\boxed{{{answer}1}}", gold).correct


# --- from the data stage to the protocol --------------------------------------------------------------------------------


def test_the_data_stage_writes_lists_and_drops_what_cannot_be_compared(tmp_path):
    source = table(tmp_path / "data", [["3", "9"], [r"\frac{", "1"], ["5"]], accepted="any")
    config = select(
        load_config(
            PRESETS / "tiny.toml",
            [
                f"data.benchmarks.mine={json.dumps(source.model_dump(mode='json'))}",
                "data.train.size=20",
                "data.warm_start.size=20",
            ],
        ),
        PrepareDataConfig,
    )
    (tmp_path / "output").mkdir()
    prepare_data.run(config, {}, tmp_path / "output", Context(work=tmp_path / "work"))
    read = read_benchmark(tmp_path / "output" / "benchmarks" / "mine.parquet", source.grading)
    assert read.answers == [["3", "9"], ["5"]]
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert metrics["benchmarks/mine/dropped/unparseable_answer"] == 1


def test_only_the_stages_that_grade_read_how_responses_are_graded():
    settings = [
        'data.benchmarks.arithmetic.grading.response="####"',
        'data.benchmarks.validation.grading.response="<answer>"',
    ]
    plain, other = (load_config(PRESETS / "tiny.toml", each) for each in ([], settings))
    assert select(plain, PrepareDataConfig) == select(other, PrepareDataConfig)
    assert select(plain, NGRPOTrainingConfig) == select(
        load_config(PRESETS / "tiny.toml", settings[:1]), NGRPOTrainingConfig
    )
    assert select(other, NGRPOTrainingConfig).selection_grading.response == "<answer>"
    assert select(other, BenchmarkEvaluationConfig).benchmark_gradings["arithmetic"].response == "####"
    trained = load_config(PRESETS / "tiny.toml", ['data.train.grading.response="####"'])
    assert select(trained, NGRPOTrainingConfig).train_grading.response == "####"


def test_measurements_with_other_grading_are_not_comparable_but_their_samples_are():
    config = load_config(PRESETS / "tiny.toml").evaluation
    same = [
        benchmark_protocol(Benchmark("b", ["p"], [], ["5"], each), ["5?"], config, None)
        for each in (BOXED, grading(), grading(response="####"), grading(compare="exact"))
    ]
    assert same[0] == same[1]
    assert same[0]["grader"] == grader_version(), "as it was before there were settings for it"
    assert difference(same[0], same[2]) == "graders"
    assert differ_in_graders_alone(same[0], same[2])
    assert differ_in_graders_alone(same[2], same[3])


def test_the_example_of_the_docs(tmp_path, grader):
    text = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    sections = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])["data"]
    train, mine = (
        validate(GradingConfig, each["grading"]) for each in (sections["train"], sections["benchmarks"]["mine"])
    )
    source = table(tmp_path / "train", ["2 + 3 = 5\n#### 1,005"], **train.model_dump(mode="json"))
    (problem,) = load_problems(source)
    assert [each.correct for each in grader.grade([("<answer>1005.0</answer>", problem.answer)], train)] == [True]
    grades = grader.grade([("the answer is 9", ["3", "9"]), ("the answer is 4", ["3", "9"])], mine)
    assert [each.correct for each in grades] == [True, False]


def test_stored_samples_are_graded_again_by_another_grading(tmp_path):
    config = load_config(PRESETS / "tiny.toml", ["evaluation.samples=2", "evaluation.pass_at=[1]"]).evaluation
    before = Benchmark("b", ["p"], [], ["5"])
    after = Benchmark("b", ["p"], [], ["5"], grading(response="####"))
    generated = {"problem_id": ["p"] * 2, "sample_id": [0, 1], "text": ["#### 5", r"\boxed{5}"], "tokens": [3] * 2}
    samples = pa.table(generated | {"finish_reason": ["stop"] * 2})
    with Grader(workers=1) as grader:
        verdicts = graded(samples, before, grader)
    pq.write_table(verdicts, tmp_path / "b.parquet")
    evaluation = {
        "models": {"trained": {"b": benchmark_result(verdicts, config, 0)}},
        "protocols": {"trained": {"b": benchmark_protocol(before, ["5?"], config, None)}},
    }
    new = grade_again(evaluation, ["b"], tmp_path, answers=answers_of([after]), statistics=statistics_of(config, 0))
    assert (new.samples, new.changed) == (2, 2)
    assert new.evaluation["protocols"]["trained"]["b"] == benchmark_protocol(after, ["5?"], config, None)
