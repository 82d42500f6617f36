"""Problems in files of one's own: read as they are, or refused with the place and what to do."""

import gzip
import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ngrpo.config import FilesSource, HubSource, load_config
from ngrpo.data.problem import Problem
from ngrpo.data.problems import load_problems
from ngrpo.errors import ConfigError, DataError
from ngrpo.storage.objects import ObjectStore

TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"
COLUMNS = {"problem_column": "question"}


def source(path: Path | str, **settings) -> FilesSource:
    return FilesSource.model_validate({"kind": "files", "path": str(path), **COLUMNS, **settings})


def lines(*rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(**columns) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue().to_pybytes()


def answers(path: Path, **settings) -> list[str]:
    return [problem.answer for problem in load_problems(source(path, **settings))]


ROWS = [{"question": "What is 1+1?", "answer": "2"}, {"question": "Größe?", "answer": "3"}]
WANTED = [("What is 1+1?", "2"), ("Größe?", "3")]
TEXT = "question,answer\nWhat is 1+1?,2\nGröße?,3\n"
FORMS = {
    "mine.csv": TEXT.encode(),
    "bom.csv": b"\xef\xbb\xbf" + TEXT.encode(),
    "spaces.csv": TEXT.replace("question,", "\u200bquestion , ").replace(",2", ', "2"').encode(),
    "numbered.csv": TEXT.replace("question", ",question").replace("What", "1,What").replace("Gr", "2,Gr").encode(),
    "trailing.csv": TEXT.replace("\n", ",,\n").encode(),
    "windows.csv": TEXT.replace("\n", "\r\n").encode(),
    "mine.CSV": TEXT.encode(),
    "mine.tsv": TEXT.replace(",", "\t").encode(),
    "mine.csv.gz": gzip.compress(TEXT.encode()),
    "mine.jsonl": lines(*ROWS) + b"\n",
    "mine.ndjson": lines(*ROWS).rstrip(),
    "mine.jsonl.gz": gzip.compress(lines(*ROWS)),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": lines(*ROWS),
    "under a key.json": json.dumps({"version": "1.1", "data": ROWS}).encode(),
    "under a key, indented.json": json.dumps({"data": ROWS, "tags": ["a"]}, indent=1).encode(),
    "mine.parquet": parquet(question=[row["question"] for row in ROWS], answer=[row["answer"] for row in ROWS]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_table_is_read_the_same(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    problems = load_problems(source(tmp_path / name))
    assert [(problem.problem, problem.answer) for problem in problems] == WANTED
    assert [problem.id for problem in problems] == [f"{name}:1", f"{name}:2"]


def test_cells_of_csv_are_the_texts_that_they_are(tmp_path):
    (tmp_path / "mine.csv").write_text(
        'question,answer\na,007\nb,NA\nc,1e3\nd,2024-05-01\ne,True\nf,"1,5"\ng,"two\nlines"\nh,"say ""x"""\ni,\n',
        encoding="utf-8",
    )
    wanted = ["007", "NA", "1e3", "2024-05-01", "True", "1,5", "two\nlines", 'say "x"', ""]
    assert answers(tmp_path / "mine.csv") == wanted


def test_values_of_other_types_are_understood_where_they_are_one_text(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(
        lines(
            *({"question": "a", "answer": value} for value in (5, 5.0, 2.5, "007", None, float("nan"))),
            {"question": "b"},
        )
    )
    assert answers(tmp_path / "mine.jsonl") == ["5", "5", "2.5", "007", "", "", ""]
    (tmp_path / "ints with a gap.parquet").write_bytes(parquet(question=["a", "b"], answer=[5.0, float("nan")]))
    assert answers(tmp_path / "ints with a gap.parquet") == ["5", ""]
    (tmp_path / "decimal.parquet").write_bytes(parquet(question=["a"], answer=[Decimal("2.50")]))
    assert answers(tmp_path / "decimal.parquet") == ["2.50"]


def jsonl(answer) -> bytes:
    return lines(ROWS[0], {"question": "a", "answer": answer})


ROW = r"row 2, column 'answer' holds "
BAD = {
    # not text
    "list.jsonl": (jsonl(["3", "9"]), ROW + "a list of 2 answers where one is expected"),
    "true.jsonl": (jsonl(True), ROW + "true, not text"),
    "object.jsonl": (
        jsonl({"value": 3}),
        ROW + r"an object \(value\), not text: name one of its fields, for example COLUMN.value",
    ),
    "infinite.jsonl": (jsonl(float("inf")), ROW + "an infinite number"),
    "surrogate.jsonl": (
        b'{"question": "a", "answer": "\\ud800"}\n',
        "row 1, column 'answer' holds half of a character",
    ),
    "date.parquet": (
        parquet(question=["a"], answer=[date(2024, 5, 1)]),
        r"row 1, column 'answer' holds a date \(2024-05-01\)",
    ),
    "time.parquet": (parquet(question=["a"], answer=[datetime(2024, 5, 1)]), "holds a datetime"),
    "bytes.parquet": (parquet(question=["a"], answer=[b"5"]), r"holds raw bytes \(1\)"),
    "lists.parquet": (parquet(question=["a"], answer=[["3", "9"]]), "holds a list of 2 answers"),
    "structs.parquet": (parquet(question=["a"], answer=[{"x": 1}]), r"holds an object \(x\)"),
    # no table
    "empty.csv": (b"", "empty.csv': no rows"),
    "empty.jsonl": (b"\n\n", "no rows"),
    "empty.json": (b"[]", "no rows"),
    "header.csv": (b"question,answer\n", "no rows"),
    "empty.parquet": (b"", "empty.parquet cannot be read"),
    "latin.csv": ("question,answer\nGröße,3\n".encode("latin-1"), "latin.csv: line 2 is not UTF-8"),
    "utf16.csv": (TEXT.encode("utf-16"), "utf16.csv: UTF-16; save it as UTF-8"),
    "cut.csv": (b'question,answer\n"a,3\n', "cut.csv, line 2: not valid CSV"),
    "long.csv": (b"question,answer\na,3,4\n", r"long.csv, row 1 \(line 2\): 3 cells but the header has 2"),
    "short.csv": (b"question,answer\na,3\nb\n", r"short.csv, row 2 \(line 3\): 1 cells"),
    "twice.csv": (b"question,answer,answer\na,3,4\n", "the column 'answer' occurs twice"),
    "twice.jsonl": (b'{"question": "a", "answer": 1, "answer": 2}\n', "line 1: not valid JSON .*'answer' twice"),
    "semicolons.csv": (b"question;answer\na;1,5\n", "separated by semicolons, 'question;answer'; write commas"),
    "excel.csv": (b"sep=;\nquestion;answer\na;3\n", "separated by semicolons"),
    "tabs.csv": (b"question\tanswer\na\t3\n", "separated by tabs, .*; write commas"),
    "nameless.csv": (b",\nquestion,answer\na,3\n", "its first line names no column"),
    # another file than it says
    "pointer.jsonl": (
        b"version https://git-lfs.github.com/spec/v1\noid",
        r"pointer of Git LFS .*; fetch it with `git lfs pull`",
    ),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
    "page.csv": (b"\n<!DOCTYPE html><html></html>", "page.csv: a web page in place of the file; download it again"),
    "workbook.csv": (b"PK\x03\x04\xff\xfe", "workbook.csv: a ZIP archive, .*; save the table as CSV"),
    "squeezed.jsonl": (gzip.compress(lines(*ROWS)), "squeezed.jsonl: compressed with gzip; rename it to end with .gz"),
    "list.jsonl.gz": (
        gzip.compress(json.dumps(ROWS).encode()),
        "line 1: a list, not an object; .*its name ends with .json",
    ),
    "digits.jsonl": (
        b'{"question": "a", "answer": ' + b"9" * 5000 + b"}",
        "line 1: a number with thousands of digits; write it as text",
    ),
    "late.parquet": (
        parquet(question=["a"], answer=["3"], when=pa.array([9 * 10**18], pa.timestamp("us"))),
        "column 'when' cannot be read: .*; remove it, or store text",
    ),
    "broken.jsonl": (lines(ROWS[0]) + b'{"question": \n', "broken.jsonl, line 2: not valid JSON"),
    "text.jsonl": (b'"only a text"\n', "text.jsonl, line 1: a str, not an object"),
    "values.json": (b"[1, 2]", "values.json, row 1: a int, not an object"),
    "cut.json": (
        json.dumps({"data": ROWS}, indent=1)[:-9].encode(),
        r"cut.json: not valid JSON \(.* line \d+.*one list of objects",
    ),
    "splits.json": (
        json.dumps({"train": ROWS, "test": ROWS}).encode(),
        "splits.json: it has rows under several keys, 'train', 'test'; store the rows of one key alone",
    ),
    "columns.json": (
        json.dumps({name: {"0": "a", "1": "b"} for name in ("question", "answer")}).encode(),
        r"columns.json: it is stored by column \('question', 'answer'\); store rows, .*orient=\"records\"",
    ),
    "lists.json": (
        json.dumps({"question": ["a", "b"], "answer": ["1", "2"]}).encode(),
        "it is stored by column",
    ),
    "no rows.json": (json.dumps({"data": []}).encode(), "problem_column='question' is not one of its columns: data"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "damaged.csv.gz": (b"no gzip", "damaged.csv.gz cannot be read"),
    "damaged.parquet": (b"PAR1 no parquet", "damaged.parquet cannot be read"),
    "mine.xlsx": (b"PK", "its name is not a table's; the name of a table ends with .jsonl"),
    # columns
    "other.jsonl": (
        lines({"query": "a", "answer": 3}),
        "problem_column='question' is not one of its columns: query, answer",
    ),
    "near.csv": (b"Question ,answer\na,3\n", "problem_column='question' .*; did you mean 'Question'"),
    "unanswered.csv": (b"question,answer\na,\nb,\n", "answer_column='answer' holds no answer in any of its 2 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line_with_the_place(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as failure:
        load_problems(source(tmp_path / name))
    assert "\n" not in str(failure.value)


# --- places -----------------------------------------------------------------------------------------------------------


def names(path) -> list[str]:
    return [problem.id for problem in load_problems(source(path))]


@pytest.fixture
def place(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "more/c.jsonl", ".hidden.jsonl", ".cache/d.jsonl", "README.md", "more/_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines({"question": name, "answer": 1}))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (".", ["a.jsonl:1", "b.jsonl:1", "more/c.jsonl:1"]),
        ("more", ["c.jsonl:1"]),
        ("*.jsonl", ["a.jsonl:1", "b.jsonl:1"]),
        ("**/*.jsonl", ["a.jsonl:1", "b.jsonl:1", "more/c.jsonl:1"]),
        ("*/c.jsonl", ["more/c.jsonl:1"]),
        ("[a]*", ["a.jsonl:1"]),
        (".hidden.jsonl", [".hidden.jsonl:1"]),
        (".cache", ["d.jsonl:1"]),
    ],
)
def test_a_path_is_a_file_a_directory_or_a_glob_and_what_is_hidden_does_not_count(place, path, wanted):
    assert names(place / path) == wanted


def test_a_name_with_the_signs_of_a_glob_is_a_name_where_it_exists(tmp_path):
    (tmp_path / "[x].jsonl").write_bytes(lines(*ROWS))
    assert names(tmp_path / "[x].jsonl") == ["[x].jsonl:1", "[x].jsonl:2"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.csv", "nowhere.csv': no such file or directory; in a preset a path is relative to the preset file"),
        ("nowhere/", "nowhere': no such file or directory"),
        ("*.csv", r"\*.csv': no table there; the name of a table ends with"),
        ("more/_SUCCESS", "its name is not a table's"),
    ],
)
def test_a_place_without_a_table_is_refused(place, path, message):
    with pytest.raises(DataError, match=message):
        names(place / path)


def test_tables_of_several_forms_are_refused(place):
    (place / "exam.csv").write_bytes(FORMS["mine.csv"])
    with pytest.raises(
        DataError,
        match=r"tables of several formats: csv \(1, for example exam.csv\), jsonl \(3, .*glob, for example \*\.jsonl",
    ):
        names(place)


def test_a_column_that_one_of_several_files_lacks_is_missed_there(place):
    (place / "more" / "c.jsonl").write_bytes(lines({"problem": "a", "answer": 1}))
    with pytest.raises(
        DataError, match=r"more/c\.jsonl: problem_column='question' is not one of its columns: problem, answer"
    ):
        names(place)


@pytest.mark.pipeline
def test_files_in_a_bucket_are_read_like_those_of_this_machine(objects: ObjectStore, place):
    for path in place.rglob("*"):
        if path.is_file():
            objects.put_file(path, path.relative_to(place).as_posix())
    for path in ("", "/more", "/*.jsonl", "/**/*.jsonl", "/a.jsonl"):
        assert load_problems(source(f"{objects.uri}{path}")) == load_problems(source(f"{place}{path}"))
    with pytest.raises(DataError, match="no table there"):
        load_problems(source(f"{objects.uri}/nowhere.csv"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": ""}, r"^data\.train\.path: .*at least 1 character"),
        ({"path": "https://h/x.csv"}, r"^data\.train\.path: https://… is not read: copy the files to this machine"),
        ({"path": "hf://datasets/a/b.parquet"}, r"^data\.train\.path: hf://… is not read"),
        ({"path": 3}, r"^data\.train\.path: .*valid string"),
        ({"path": "s3://b/x?y"}, r"^data\.train\.path: write s3://bucket/prefix"),
        ({}, r"^data\.train\.path: missing"),
        ({"path": "x", "revision": "main"}, r"^data\.train\.revision: unknown setting"),
        ({"path": "x", "digest": "abc"}, r"^data\.train\.digest: "),
        ({"path": "x", "problem_column": ""}, r"^data\.train\.problem_column: "),
        ({"path": "x", "limit": 0}, r"^data\.train\.limit: "),
        ({"path": "x", "wrong_answer_columns": ["a"]}, r"train\.wrong_answer_columns=.*only benchmarks"),
        ({"path": "x", "weight": 2}, r"^data\.train\.weight: unknown setting"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TINY, [f"data.train={json.dumps({'kind': 'files', **settings})}"])


# --- chats ------------------------------------------------------------------------------------------------------------


def turn(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


def chat_file(tmp_path, *cells, name="chats.jsonl", **more) -> Path:
    path = tmp_path / name
    path.write_bytes(lines(*({"messages": cell, "answer": "2", **more} for cell in cells)))
    return path


def test_chats_and_texts_are_problems(tmp_path):
    asked = [turn("system", "Be brief."), turn("user", "Hi."), turn("assistant", "Yes?"), turn("user", "What is 1+1?")]
    parts = [turn("user", [{"type": "text", "text": "What "}, {"type": "text", "text": "is 1+1?"}])]
    path = chat_file(tmp_path, asked, "What is 1+1?", parts)
    before = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Yes?"))
    assert load_problems(source(path, problem_column="messages")) == [
        Problem("chats.jsonl:1", "What is 1+1?", "2", None, before),
        Problem("chats.jsonl:2", "What is 1+1?", "2"),
        Problem("chats.jsonl:3", "What is 1+1?", "2"),
    ]


def test_the_last_turn_of_a_chat_is_the_solution_or_holds_the_answer_where_it_is_named(tmp_path):
    path = chat_file(tmp_path, [turn("user", "What is 1+1?"), turn("assistant", r"It is \boxed{2}.")])
    named = {"problem_column": "messages", "solution_column": "messages"}
    assert load_problems(source(path, **named))[0] == Problem("chats.jsonl:1", "What is 1+1?", "2", r"It is \boxed{2}.")
    boxed = {**named, "answer_column": "messages", "answer_is_boxed": True}
    assert load_problems(source(path, **boxed))[0].answer == "2"
    with pytest.raises(
        DataError, match="column 'messages': the last turn is the assistant's; if it is the solution, set"
    ):
        load_problems(source(path, problem_column="messages"))


def test_prompt_and_completion_as_trl_has_them(tmp_path):
    path = tmp_path / "trl.parquet"
    path.write_bytes(parquet(prompt=[[turn("user", "a")]], completion=[[turn("assistant", "b")]], answer=["2"]))
    found = load_problems(source(path, problem_column="prompt", solution_column="completion"))
    assert found == [Problem("trl.parquet:1", "a", "2", "b")]


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [turn("user", "What is 1+1?")],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0, "answer": {"worked": "1+1=2"}},
    "a.b": "2",
}


@pytest.mark.parametrize("name", ["verl.parquet", "verl.jsonl", "hub"])
def test_parts_of_a_column_are_named_with_a_dot_as_verls_data_needs_it(tmp_path, name):
    path = tmp_path / name
    if name == "hub":
        path.mkdir()
        (path / "train.jsonl").write_bytes(lines(VERL))
        made = HubSource(
            kind="hub", id=str(path), split="train", problem_column="prompt", answer_column="reward_model.ground_truth"
        )
    else:
        path.write_bytes(
            lines(VERL) if name.endswith("jsonl") else parquet(**{key: [cell] for key, cell in VERL.items()})
        )
        made = source(path, problem_column="prompt", answer_column="reward_model.ground_truth")
    named = {"solution_column": "extra_info.answer.worked"}
    (found,) = load_problems(made.model_copy(update=named))
    assert (found.problem, found.answer, found.solution) == ("What is 1+1?", "2", "1+1=2")
    assert load_problems(made.model_copy(update={"answer_column": "a.b"}))[0].answer == "2"
    with pytest.raises(DataError, match=r"not one of its columns: .*did you mean 'reward_model.ground_truth'"):
        load_problems(made.model_copy(update={"answer_column": "reward_model.groundtruth"}))


USER = turn("user", "a")
BAD_CHATS = {
    "empty": ([], "holds an empty list: a chat has at least"),
    "texts": (["a"], r"holds a list of 1 value, not text"),
    "object": (USER, r"holds an object \(role, content\), not text"),
    "unknown role": ([turn("human", "a")], "message 1: role 'human' is not one of system, user, assistant"),
    "no role": (
        [{"from": "human", "value": "a"}],
        "message 1 has 'from', 'value': a message is an object with role and content",
    ),
    "second is a text": ([USER, "b"], "message 2 is a text: a message is"),
    "empty content": ([turn("user", " ")], "message 1: content is empty"),
    "no content": ([turn("user", None)], "message 1: content is empty"),
    "image": ([turn("user", [{"type": "image"}])], "message 1: content holds a list of 1 value"),
    "tools": ([turn("assistant", "a", tool_calls=[{}]), USER], "message 1 has 'tool_calls', which is not supported"),
    "late system": ([USER, turn("system", "b")], "message 2: a system message must come first"),
    "system alone": ([turn("system", "b")], "the last turn is the system's; a prompt ends with the user's"),
    "reply alone": ([turn("assistant", "b")], "the last turn is the assistant's; a prompt ends with the user's"),
    "two replies": (
        [USER, turn("assistant", "b"), turn("assistant", "c")],
        "the last turn before the reply is the assistant's",
    ),
    "as text": (str([USER]), "holds a chat that is written as text"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_what_is_no_chat_is_refused_with_row_and_column(tmp_path, case):
    cell, message = BAD_CHATS[case]
    path = chat_file(tmp_path, [USER], cell)
    with pytest.raises(DataError, match=rf"^chats.jsonl, row 2, column 'messages'.*{message}") as failure:
        load_problems(source(path, problem_column="messages"))
    assert "\n" not in str(failure.value)
