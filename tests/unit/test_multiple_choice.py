"""Multiple-choice benchmarks such as GPQA: options, letters, what is gated, and text that must stay where it is."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from ngrpo.config import BenchmarkEvaluationConfig, HubSource, PrepareDataConfig, load_config, select
from ngrpo.config.grading import BY_LETTER
from ngrpo.data.chat import ChatLengths, user_turn
from ngrpo.data.mirror import mirror
from ngrpo.data.multiple_choice import with_options
from ngrpo.data.problems import load_problems
from ngrpo.errors import ConfigError, DataError
from ngrpo.evaluation.benchmark import read_benchmark
from ngrpo.evaluation.results import benchmark_result, flat_metrics
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.grader import Grade, Grader, grade_letter
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo_kfp.pipelines.cli.options import PRESETS, read_cluster_config, read_config

WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
SECRET = "unpublishable"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def gpqa(directory: Path, rows: int = 12, **changes: str) -> HubSource:
    """A repository with the layout of GPQA's: one CSV file for each subset, which its README names."""
    directory.mkdir(parents=True)
    subsets = ("gpqa_main", "gpqa_diamond")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in subsets)
    (directory / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in subsets:
        with (directory / f"{name}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["Record ID", "Question", "Correct Answer", *WRONG])
            table.writeheader()
            for row in range(rows):
                options = {"Correct Answer": f"right {SECRET} {row}"} | {
                    column: f"wrong {SECRET} {row}, {column[-1]}" for column in WRONG
                }
                table.writerow(
                    {"Record ID": f"rec{row}", "Question": f"Which {SECRET}, {name} {row}?"} | options | changes
                )
    preset = load_config(PRESETS / "paper-1.5b.toml").data.benchmarks["gpqa_diamond"]
    return preset.model_copy(update={"id": str(directory), "revision": COMMIT})


# --- questions and answers ----------------------------------------------------------------------------------------------


def test_every_question_has_an_order_of_its_own_and_always_the_same():
    asked = [with_options(f"q-{number}", "Which?", "yes", ["no", "never", "none"]) for number in range(2000)]
    letters = Counter(letter for _, letter in asked)
    print(f"letters of the right option: {dict(sorted(letters.items()))}")
    assert set(letters) == set("ABCD")
    assert all(abs(count - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5 for count in letters.values())
    for text, letter in asked:
        assert f"\n{letter}) yes" in text
        assert text.startswith("Which?\n\nA) ")
    assert len({text for text, _ in asked}) == 24
    assert with_options("q-1", "Which?", "yes", ["no", "never", "none"]) == asked[1]
    # The order is part of what was measured: it may not change with a version of Python or of ours.
    assert "".join(letter for _, letter in asked[:12]) == "ADCCADBCBDAC"


@pytest.mark.parametrize("missing", [("", "yes", ["no"]), ("Which?", "", ["no"]), ("Which?", "yes", ["no", ""])])
def test_a_question_with_a_part_missing_is_none(missing):
    assert with_options("q", *missing) == ("", "")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: C", "C"),
        ("so it is B.\n\nAnswer: C\n", "C"),
        ("  Answer: C  \r\n", "C"),
        ("Answer: A\nno,\nAnswer: C", "C"),
        ("Answer: C\nThat was easy.", "C"),
        ("<think>Answer: A</think>\nAnswer: C", "C"),
        ("<think>Answer: C\n</think>\nA", None),
        ("<think>\nAnswer: C\n", "C"),
        ("<think>\nAnswer: C\n</think>\nI cannot tell.", None),
        ("<think>\nAnswer: C\n</think>\nAnswer: A", "A"),
        ("Answer: A</think>\nAnswer: C\n</think>", None),
        ("answer: C", None),
        ("Answer: c", None),
        ("Answer:C", None),
        ("Answer: C.", None),
        ("Answer: (C)", None),
        ("**Answer: C**", None),
        ("Answer: C or D", None),
        ("The answer is C", None),
        ("My Answer: C", None),
        (r"\boxed{C}", None),
        ("Answer: <A/B/C/D>", None),
        ("", None),
        ("Answer: A\n" * 100_000 + "Answer: C", "C"),
        (" " * 1_000_000 + "Answer: C", "C"),
    ],
    ids=range(25),
)
def test_a_letter_stands_on_a_line_of_its_own(text, letter):
    assert grade_letter(text, "C") == Grade(letter == "C", letter, None)
    assert not grade_letter(text, "D").correct


def test_the_instruction_may_begin_on_a_line_of_its_own():
    assert user_turn("Which?", "Choose.")[0]["content"] == "Which? Choose."
    assert user_turn("Which?", "\n\nChoose.")[0]["content"] == "Which?\n\nChoose."
    assert user_turn("Which?", "")[0]["content"] == "Which?"


# --- the data set -------------------------------------------------------------------------------------------------------


def test_a_mirror_of_the_layout_is_read_and_asks_the_same(tmp_path):
    source = gpqa(tmp_path / "gpqa")
    problems = load_problems(source)
    assert [problem.id for problem in problems] == [f"gpqa-{row}" for row in range(12)]
    for row, problem in enumerate(problems):
        lines = problem.problem.splitlines()
        assert lines[:2] == [f"Which {SECRET}, gpqa_diamond {row}?", ""]
        assert f"{problem.answer}) right {SECRET} {row}" in lines
        assert [line[:3] for line in lines[2:]] == ["A) ", "B) ", "C) ", "D) "]
    copy = mirror(source, str(tmp_path / "mirror"))
    assert load_problems(source.model_copy(update={"id": copy})) == problems


def test_a_renamed_column_is_named(tmp_path):
    source = gpqa(tmp_path / "gpqa").model_copy(update={"wrong_answer_columns": (*WRONG[:2], "Incorrect Answer 4")})
    with pytest.raises(
        DataError, match=r"wrong_answer_columns='Incorrect Answer 4' is not one of its columns: Record ID"
    ):
        load_problems(source)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The data stage on GPQA beside arithmetic; a function, because it may fail."""
    benchmark = json.dumps(gpqa(tmp_path / "gpqa").model_dump(mode="json"))
    config = select(
        load_config(PRESETS / "tiny.toml", [f"data.benchmarks.gpqa_diamond={benchmark}"]), PrepareDataConfig
    )

    def prepare() -> Path:
        output = tmp_path / "output"
        output.mkdir()
        prepare_data.run(config, {}, output, Context(tmp_path / "work"))
        return output

    return prepare


def test_its_text_is_in_the_table_of_problems_and_nowhere_else(prepared, monkeypatch, capfd):
    monkeypatch.setattr(ChatLengths, "require_known", lambda *_: None)
    output = prepared()
    printed = capfd.readouterr()
    assert "benchmarks/gpqa_diamond: 12 kept, 0 dropped" in printed.out
    assert SECRET not in printed.out + printed.err
    holding = [path.name for path in output.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding == ["gpqa_diamond.parquet"]

    gpqa_diamond = read_benchmark(output / "benchmarks" / "gpqa_diamond.parquet", BY_LETTER)
    assert gpqa_diamond.name == "gpqa_diamond"
    assert gpqa_diamond.prompts[0][0]["content"].endswith(
        "\n\nLet's think step by step and output the final answer in the last line as:\nAnswer: <A/B/C/D>"
    )
    rows = [(problem, sample) for problem in gpqa_diamond.ids for sample in range(4)]
    answers = dict(zip(gpqa_diamond.ids, gpqa_diamond.answers, strict=True))
    samples = pa.table(
        {
            "problem_id": [problem for problem, _ in rows],
            "sample_id": [sample for _, sample in rows],
            "text": [f"{SECRET}\nAnswer: {answers[problem] if sample else 'E'}" for problem, sample in rows],
            "tokens": [3] * len(rows),
            "finish_reason": ["stop"] * len(rows),
        }
    )
    settings = select(
        load_config(PRESETS / "tiny.toml", ["evaluation.samples=4", "evaluation.pass_at=[1,4]"]),
        BenchmarkEvaluationConfig,
    )
    with Grader() as grader:
        table = graded(samples, gpqa_diamond, grader)
        assert grader._pool._workers == [], "letters need no algebra"
    result = benchmark_result(table, settings.evaluation, 0)
    assert (result["mean"], result["pass_at_k"]["4"]) == (0.75, 1.0)
    assert SECRET not in json.dumps(result) + json.dumps(flat_metrics(result, "trained/gpqa_diamond"))


def test_a_text_that_cannot_be_spelled_is_named_by_its_id_alone(prepared, capfd):
    with pytest.raises(
        DataError, match=r"data\.benchmarks\.gpqa_diamond: .* cannot encode problem 'gpqa-0'"
    ) as failure:
        prepared()
    assert SECRET not in str(failure.value) + "".join(capfd.readouterr())


def test_a_question_without_an_option_is_refused(tmp_path):
    problems = load_problems(gpqa(tmp_path / "gpqa", rows=2, **{"Incorrect Answer 2": ""}))
    assert {(problem.problem, problem.answer) for problem in problems} == {("", "")}


# --- gated --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def token(monkeypatch):
    """Set what the hub's client takes for the user's token; at first there is none."""

    def use(value: str | None) -> None:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: value)

    use(None)
    return use


def test_without_a_token_a_gated_benchmark_is_left_out_with_a_line(token, capsys):
    assert "gpqa_diamond" not in read_config("paper-1.5b").data.benchmarks
    line = capsys.readouterr().err
    assert line.startswith("left out: data.benchmarks.gpqa_diamond, which is gated: ")
    assert "HF_TOKEN into the environment" in line
    assert line.count("\n") == 1
    token("hf_x")
    assert "gpqa_diamond" in read_config("paper-1.5b").data.benchmarks
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("copy", ["/mirror/gpqa", "s3://bucket/gpqa"])
def test_a_copy_needs_no_token(token, copy, capsys):
    config = read_config("paper-1.5b", [f"data.benchmarks.gpqa_diamond.id={copy}"])
    assert config.data.benchmarks["gpqa_diamond"].id == copy
    assert capsys.readouterr().err == ""


def test_on_a_cluster_the_pods_need_the_token(token, tmp_path, capsys):
    token("hf_x")  # that of this machine is no help there
    assert "gpqa_diamond" not in read_cluster_config("paper-7b", None, None, None).data.benchmarks
    assert "HF_TOKEN into a secret of cluster.secrets" in capsys.readouterr().err
    example = PRESETS.parent / "cluster.example.toml"
    assert "gpqa_diamond" in read_cluster_config("paper-7b", None, None, example).data.benchmarks


def test_a_gate_does_not_stand_on_what_is_left_out(token):
    with pytest.raises(ConfigError, match=r"promotion\.benchmark='gpqa_diamond' is not one of data\.benchmarks"):
        read_config("paper-1.5b", ["promotion.benchmark=gpqa_diamond"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.gated=true", r"data\.train\.gated=True: only benchmarks may have it"),
        ('data.train.wrong_answer_columns=["a"]', r"train\.wrong_answer_columns=\('a',\): only benchmarks"),
        (
            "data.benchmarks.gpqa_diamond.answer_is_boxed=true",
            r"data\.benchmarks\.gpqa_diamond\.answer_is_boxed=true goes with no",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PRESETS / "paper-1.5b.toml", [override])
