"""Paths of a preset are relative to the preset."""

from pathlib import Path

import pytest

from ngrpo.config import validate
from ngrpo.config.located import locate
from ngrpo.config.sources import Place
from ngrpo.errors import ConfigError
from ngrpo.section import Section


class Files(Section):
    path: Place


def test_a_path_is_relative_to_the_file_that_it_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = locate({"path": "data/mine.csv"}, Path("presets"))
    found = validate(Files, tree)
    assert found.path == str(tmp_path / "presets" / "data" / "mine.csv")
    monkeypatch.chdir("/")
    assert validate(Files, found.model_dump()) == found
    assert type(found.path) is str


@pytest.mark.parametrize("written", ["/somewhere/mine.csv", "~/mine.csv"])
def test_an_absolute_path_stays(written):
    assert validate(Files, locate({"path": written}, Path("presets"))).path == str(Path(written).expanduser())


def test_on_the_command_line_a_path_is_relative_to_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert validate(Files, {"path": "../mine.csv"}).path == str(tmp_path.parent / "mine.csv")


@pytest.mark.parametrize("written", ["", "a\0b", 3, None, ["mine.csv"]])
def test_what_is_no_path_is_refused(written):
    with pytest.raises(ConfigError, match="path"):
        validate(Files, {"path": written})


def test_the_home_of_nobody_is_a_name_like_others(tmp_path):
    found = validate(Files, locate({"path": "~nobody-of-this-name/mine.csv"}, tmp_path))
    assert found.path == str(tmp_path / "~nobody-of-this-name" / "mine.csv")
