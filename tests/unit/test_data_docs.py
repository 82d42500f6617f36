"""The examples of docs/data.md work as they stand there."""

import re
import tomllib
from pathlib import Path

import pytest

from ngrpo.config import FilesSource, RunConfig, validate
from ngrpo.config.located import locate
from ngrpo.data.problems import load_problems

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.-]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
SETTINGS = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def merged(tree: dict, more: dict, depth: int = 2) -> dict:
    """Return settings with others in place of theirs: sections are merged, sources are replaced."""
    both = {name for name in tree.keys() & more.keys() if depth > 1 and isinstance(tree[name], dict)}
    return tree | more | {name: merged(tree[name], more[name], depth - 1) for name in both}


@pytest.fixture
def configured(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tiny = tomllib.loads((ROOT / "pipelines" / "presets" / "tiny.toml").read_text())

    def configure(settings: str) -> RunConfig:
        tree = locate(merged(tiny, tomllib.loads(settings)), tmp_path)
        return validate(RunConfig, tree | {"preset": "mine"})

    return configure


def test_the_page_has_examples():
    assert [*FILES] == ["mine.csv", "chats.jsonl", "easy.jsonl", "hard.jsonl", "mine.jinja"]
    assert len(SETTINGS) == 4


def test_a_table(configured):
    problems = load_problems(configured(SETTINGS[0]).data.train)
    assert [(each.id, each.answer) for each in problems] == [
        ("mine.csv:1", "2"),
        ("mine.csv:2", "2007"),
        ("mine.csv:3", "007"),
    ]


def test_chats(configured):
    data = configured(SETTINGS[1]).data
    assert data.system_prompt == "Think first."
    problems = load_problems(data.warm_start)
    assert [(each.problem, each.answer, each.solution) for each in problems] == [
        ("What is 1+1?", "2", r"It is \boxed{2}."),
        ("What is 2+2?", "4", r"It is \boxed{4}."),
    ]


def test_several_training_sets(configured):
    sets = configured(SETTINGS[2]).data.training_sets()
    assert {name: source.weight for name, source in sets.items()} == {"train.easy": 1, "train.hard": 3}
    assert [each.answer for source in sets.values() for each in load_problems(source)] == ["2", "3", "391"]


def test_a_model(configured, tmp_path):
    config = configured(SETTINGS[3])
    assert config.model.source.path == str(tmp_path / "my-model")
    assert config.model.chat_template == FILES["mine.jinja"]
    assert (config.model.generation_prompt, config.model.end_of_turn) == ("<think>\n", ("<|im_end|>",))


def test_settings_of_the_table_are_those_of_the_section():
    named = {
        name
        for name in re.findall(r"`([a-z_]+)`", PAGE.partition("## Chats")[0])
        if name.endswith(("column", "columns"))
    }
    assert named <= {*FilesSource.model_fields}
