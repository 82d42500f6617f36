"""The stage `prepare_data` with chats, system prompts and several training sets."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_data import metrics, prepare, stage_config

from ngrpo.errors import DataError


def write(path: Path, problems: list[str], **more) -> dict:
    rows = [{"problem": f"what is {problem}?", "answer": str(eval(problem)), **more} for problem in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "files", "path": str(path)}


def train(output: Path) -> list[dict]:
    return pq.read_table(output / "train.parquet").to_pylist()


@pytest.fixture
def sets(tmp_path):
    """Two sets; each holds a problem of the benchmark, one of them a problem twice, and both a common problem."""
    plus = write(tmp_path / "plus.jsonl", ["1+1", "2+2", "1+1", "9+9"])
    minus = write(tmp_path / "minus.jsonl", ["3-1", "2+2", "9-9"])
    return {
        "train": {"plus": plus, "minus": {**minus, "weight": 3}},
        "benchmarks": {"exam": write(tmp_path / "exam.jsonl", ["9+9", "9-9"])},
    }


def test_several_sets_are_one_table_with_set_and_weight_of_each_problem(tmp_path, sets):
    output = prepare(stage_config(tmp_path, **sets), tmp_path)
    assert [(row["id"], row["training_set"], row["training_set_weight"]) for row in train(output)] == [
        ("plus/plus.jsonl:1", "plus", 1.0),
        ("plus/plus.jsonl:2", "plus", 1.0),
        ("minus/minus.jsonl:1", "minus", 3.0),
        ("minus/minus.jsonl:2", "minus", 3.0),
    ]
    found = metrics(output)
    assert {name: found[name] for name in found if name.startswith("train/")} == {
        "train/kept": 4,
        "train/dropped/repeated": 1,
        "train/dropped/in_benchmark": 2,
        "train/plus/kept": 2,
        "train/plus/dropped/repeated": 1,
        "train/plus/dropped/in_benchmark": 1,
        "train/minus/kept": 2,
        "train/minus/dropped/in_benchmark": 1,
    }
    listed = json.loads((output / "contamination.json").read_text())
    assert [(row["source"], row["id"]) for row in listed] == [
        ("data.train.plus", "plus.jsonl:4"),
        ("data.train.minus", "minus.jsonl:3"),
    ]
    source = json.loads((output / "sources.json").read_text())["tables"]["train.parquet"]["source"]
    assert source["minus"]["weight"] == 3
    assert str(tmp_path) not in json.dumps(source)


def test_a_set_of_which_nothing_is_left_is_named(tmp_path, sets):
    sets["train"]["minus"] |= write(tmp_path / "minus.jsonl", ["9-9"])
    with pytest.raises(DataError, match=r"^data\.train\.minus: nothing is left"):
        prepare(stage_config(tmp_path, **sets), tmp_path)


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def test_a_system_prompt_stands_before_prompts_that_have_none(tmp_path):
    own = [
        turn("system", "find 2+2."),
        turn("user", "what is 1+1?"),
        turn("assistant", "2"),
        turn("user", "what is 2+3?"),
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"problem": cell, "answer": "2"}) + "\n" for cell in ("what is 1+1?", own)))
    config = stage_config(
        tmp_path,
        train={"kind": "files", "path": str(path)},
        system_prompt="compute 1+1.",
        prompt_suffix=" then ",
        max_prompt_tokens=100,
    )
    output = prepare(config, tmp_path)
    system = turn("system", "compute 1+1.")
    assert [row["prompt"] for row in train(output)] == [
        [system, turn("user", "what is 1+1? then ")],
        [*own[:-1], turn("user", "what is 2+3? then ")],
    ]
    for table in ("benchmarks/arithmetic", "warm_start"):
        assert pq.read_table(output / f"{table}.parquet")["prompt"][0].as_py()[0] == system


def test_an_earlier_turn_of_a_chat_that_a_benchmark_holds_too_is_found(tmp_path):
    chat = [turn("user", "what is 9+9?"), turn("assistant", "18"), turn("user", "what is 1+1?")]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"problem": cell, "answer": "2"}) + "\n" for cell in (chat, "what is 1+1?")))
    config = stage_config(
        tmp_path,
        train={"kind": "files", "path": str(path)},
        benchmarks={"exam": write(tmp_path / "exam.jsonl", ["9+9"])},
    )
    assert [row["id"] for row in train(prepare(config, tmp_path))] == ["chats.jsonl:2"]


def test_chats_that_end_alike_are_different_problems(tmp_path):
    chats = [[turn("user", f"what is {a}+1?"), turn("assistant", "2"), turn("user", "find 1+1.")] for a in (1, 2, 1)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"problem": cell, "answer": "2"}) + "\n" for cell in chats))
    output = prepare(stage_config(tmp_path, train={"kind": "files", "path": str(path)}), tmp_path)
    assert [row["id"] for row in train(output)] == ["chats.jsonl:1", "chats.jsonl:2"]
