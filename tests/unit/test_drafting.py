"""`ngrpo init`: what it guesses, what it writes, and what it refuses."""

import json
import shutil
import time
import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ngrpo.drafting.guesses import answer_form, guess_columns
from ngrpo.drafting.own_model import look_at_model
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.app import main
from own_job import problems, write_csv, write_job, write_jsonl
from tiny import save_tiny_model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def job(written, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(written, tmp_path / "job"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "300")
    return folder


INIT = ["init", "--model", "model", "--data", "mine.csv"]
WHOLE = [*INIT, "--reward", "rewards.py:short", "--reward", "rewards.py:digits", "--benchmark", "test.jsonl"]


def fails(capsys, *arguments: str) -> str:
    began = time.process_time()
    assert main(arguments) == 2
    assert time.process_time() - began < 2.0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line.removeprefix("ngrpo: ")


def test_the_written_preset_passes_the_check(job, capsys):
    assert main([*WHOLE, "--chat-template", "chat.jinja"]) == 0
    said = capsys.readouterr().out
    assert (
        "data: 48 rows, problems in 'question', answers in 'answer' (guessed by their names), in the form #### 5"
        in said
    )
    assert "benchmark: 12 rows, problems in 'problem'" in said
    text = (job / "mine.toml").read_text()
    tree = tomllib.loads(text)
    assert tree["model"]["source"] == {"kind": "directory", "path": "model"}
    assert tree["data"]["train"]["path"] == "mine.csv"
    assert tree["data"]["train"]["grading"] == {"gold": "####"}
    assert list(tree["training"]["rewards"]) == ["correctness", "short", "digits"]
    assert text.count("#") > 15, "it has comments"
    assert main(["check", "mine.toml"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("preset", ["smollm2", "paper-7b"])
def test_a_preset_that_extends_another_passes_the_check(job, capsys, preset):
    assert main([*WHOLE, "--extends", preset]) == 0
    tree = tomllib.loads((job / "mine.toml").read_text())
    assert tree["extends"] == preset
    assert "steps" not in tree["training"]
    assert main(["check", "mine.toml"]) == 0, capsys.readouterr().out


def test_without_a_benchmark_a_tenth_of_the_problems_is_held_out(job, capsys):
    assert main(INIT) == 0
    assert (
        "benchmark: none is named, so 5 of 48 problems are held out in mine-held-out.jsonl" in capsys.readouterr().out
    )
    assert len((job / "mine-held-out.jsonl").read_text().splitlines()) == 5
    assert main(["check", "mine.toml"]) == 0, capsys.readouterr().out
    (job / "mine.toml").unlink()
    assert fails(capsys, *INIT).startswith("'mine-held-out.jsonl' is there already")


def test_paths_are_relative_to_the_preset_wherever_it_is_written(job, capsys, monkeypatch):
    (job / "presets").mkdir()
    assert main([*WHOLE, "-o", "presets/mine.toml"]) == 0
    tree = tomllib.loads((job / "presets" / "mine.toml").read_text())
    assert tree["model"]["source"]["path"] == "../model"
    assert tree["training"]["rewards"]["short"]["function"] == "../rewards.py:short"
    monkeypatch.chdir("/")
    assert main(["check", str(job / "presets" / "mine.toml")]) == 0, capsys.readouterr().out


def test_nothing_is_overwritten_without_force(job, capsys):
    (job / "mine.toml").write_text("mine")
    assert fails(capsys, *WHOLE) == "'mine.toml' is there already: name another by -o, or replace it with --force"
    assert (job / "mine.toml").read_text() == "mine"
    assert main([*WHOLE, "--force"]) == 0
    assert "[model.source]" in (job / "mine.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere"], "--model 'nowhere': no such directory (seen from "),
        (["--model", "chat.jinja"], "--model 'chat.jinja': no directory (seen from "),
        (["--model", "."], "--model '.': it has no config.json; it contains models: name one, model"),
        (["--data", "nowhere.csv"], "--data 'nowhere.csv' (seen from "),
        (
            ["--data", "s3://bucket/mine.csv"],
            "--data 's3:/bucket/mine.csv': an address; copy the files to this machine",
        ),
        (["--data", "rewards.py"], "--data 'rewards.py' (seen from "),
        (["--benchmark", "nowhere.csv"], "--benchmark 'nowhere.csv' (seen from "),
        (["--reward", "rewards.py:shrot"], "--reward 'rewards.py:shrot': "),
        (["--reward", "nowhere.py:short"], "--reward 'nowhere.py:short': "),
        (["--reward", "rewards.py"], "--reward 'rewards.py': write FILE.py:NAME, a function in a Python file"),
        (["--reward", "rewards.py:short"], "--reward: 'short' is named twice; leave one out"),
        (["--chat-template", "nowhere.jinja"], "--chat-template 'nowhere.jinja': no such file (seen from "),
        (
            ["--problem-column", "qestion"],
            "--problem-column 'qestion': not one of the data's columns, question, answer; did you mean",
        ),
        (["--answer-column", "x"], "--answer-column 'x': not one of the data's columns, question, answer"),
        (["-o", "mine.txt"], "-o 'mine.txt': a preset is a .toml file; name one"),
        (
            ["-o", "nowhere/mine.toml"],
            "-o 'nowhere/mine.toml': its directory does not exist, or it is not a file; name a file in an existing directory",
        ),
        (["--extends", "nothing"], "preset nothing: unknown; choose one of "),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_and_at_once(job, capsys, arguments, said):
    assert fails(capsys, *WHOLE, *arguments).startswith(said)
    assert not (job / "mine.toml").exists()


@pytest.mark.parametrize(("named", "chosen"), [((), "plain"), (("--chat-template", "chat.jinja"), "chat.jinja")])
def test_a_model_without_a_chat_template_gets_one_that_writes_problems_as_they_are(job, capsys, named, chosen):
    (job / "model" / "chat_template.jinja").unlink()
    assert main([*WHOLE, *named]) == 0
    assert ("chat_template = 'plain'" in capsys.readouterr().out) is not named
    assert tomllib.loads((job / "mine.toml").read_text())["model"]["chat_template"] == chosen
    assert main(["check", "mine.toml"]) == 0, capsys.readouterr().out


def test_an_instruction_that_the_tokenizer_cannot_spell_is_left_out(job, capsys):
    save_tiny_model(job / "words")
    write_jsonl(job / "sums.jsonl", [{"problem": f"{number} + 1", "answer": str(number + 1)} for number in range(30)])
    assert main(["init", "--model", "words", "--data", "sums.jsonl", "-o", "sums.toml"]) == 0
    assert tomllib.loads((job / "sums.toml").read_text())["data"]["prompt_suffix"] == ""
    main(["check", "sums.toml"])
    assert "cannot encode" not in capsys.readouterr().out


def test_data_of_verl_is_understood(job, capsys):
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "reward_model": {"style": "rule", "ground_truth": worked.rpartition("#### ")[2]},
        }
        for question, worked in problems(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "verl.parquet")
    assert main(["init", "--model", "model", "--data", "verl.parquet", "-o", "verl.toml"]) == 0
    assert "problems in 'prompt', answers in 'reward_model.ground_truth'" in capsys.readouterr().out
    assert main(["check", "verl.toml"]) == 0, capsys.readouterr()


def test_columns_are_guessed_by_their_names_or_by_what_they_hold():
    rows = [{"a": "a long question indeed", "b": "5"}]
    named = guess_columns(["id", "solution", "Question", "answer"], [])
    assert (named.problem, named.answer, named.solution, named.others) == ("Question", "answer", "solution", ["id"])
    assert guess_columns(["prompt", "solution"], []).answer == "solution"
    two = guess_columns(["b", "a"], rows)
    assert (two.problem, two.answer, two.why) == ("a", "b", "the longer of two")
    mine = guess_columns(["a", "b", "answer"], rows, problem="b")
    assert (mine.problem, mine.answer) == ("b", "answer")
    with pytest.raises(
        ConfigError, match="none of the columns a, b, c is called like problems; name it by --problem-column"
    ):
        guess_columns(["a", "b", "c"], [])


@pytest.mark.parametrize(
    ("answers", "form"),
    [
        (["so\n#### 5", "#### 6"], "hashes"),
        ([r"so \boxed{5}", r"\boxed{6}"], "boxed"),
        (["5", "6"], "plain"),
        (["#### 5", "6"], "plain"),
        ([], "plain"),
        ([""], "plain"),
    ],
)
def test_the_form_of_the_answers(answers, form):
    assert answer_form(answers) == form


def test_boxed_answers_pass_the_check(job, capsys):
    rows = [
        {"problem": question, "solution": rf"so \boxed{{{worked.rpartition('#### ')[2]}}}"}
        for question, worked in problems(30)
    ]
    write_jsonl(job / "boxed.jsonl", rows)
    assert main(["init", "--model", "model", "--data", "boxed.jsonl", "--benchmark", "test.jsonl"]) == 0
    assert main(["check", "mine.toml"]) == 0, capsys.readouterr().out


def test_too_few_rows_are_not_held_out(job, capsys):
    write_csv(job / "few.csv", problems(12))
    line = fails(capsys, "init", "--model", "model", "--data", "few.csv")
    assert line == "--data 'few.csv': 12 rows are too few to hold some out; name a benchmark by --benchmark"


def test_numbers_that_json_has_no_form_for_are_held_out_and_dates_are_refused_with_the_cure(job, capsys):
    questions = [question for question, _ in problems(20)]
    for name, answers in (("decimal", [Decimal("2.50")] * 20), ("date", [date(2024, 5, 1)] * 20)):
        pq.write_table(pa.table({"question": questions, "answer": answers}), job / f"{name}.parquet")
    assert main(["init", "--model", "model", "--data", "decimal.parquet"]) == 0, capsys.readouterr().err
    held_out = (job / "mine-held-out.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in held_out] == ["2.50", "2.50"]
    line = fails(capsys, "init", "--model", "model", "--data", "date.parquet", "-o", "late.toml")
    assert line.endswith("(a date (2024-05-01), not text: write it as text, in the form that a response should have)")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "no-names.csv",
            "What is 1+1?,2\n",
            "its first line, 'What is 1+1?', '2', looks like a row; write the names of",
        ),
        (
            "chats.jsonl",
            '{"question": [{"role": "robot", "content": "a"}], "answer": "2"}\n',
            "role 'robot' is not one of",
        ),
        (
            "odd.jsonl",
            '{"question\\n": "What is 1+1?", "answer": "2"}\n',
            "problem_column: write one line without control",
        ),
    ],
)
def test_what_a_preset_could_not_name_is_refused_before_one_is_written(job, capsys, name, content, said):
    (job / name).write_text(content * 30)
    assert said in fails(capsys, "init", "--model", "model", "--data", name)
    assert list(job.glob("mine*")) == [job / "mine.csv"]


def test_a_word_of_millions_of_letters_does_not_keep_the_tokenizer_busy(job):
    begin = time.process_time()
    (long, short) = look_at_model(job / "model").tokens(["x" * 3_000_000, "What is 1+1?"])
    assert time.process_time() - begin < 1
    assert long > 900_000
    assert 1 <= short <= 12
