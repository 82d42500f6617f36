"""Every command line of the documentation is one that the command line takes."""

import re
from pathlib import Path

import pytest
import typer

import cli_reference
import documented_commands
from ngrpo_kfp.pipelines.cli.app import app

ROOT = Path(__file__).parents[2]
LINES = sorted({line.words: line for line in documented_commands.lines()}.values(), key=str)
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def parse(words: tuple[str, ...]) -> str:
    """Read the arguments of `ngrpo` as it does, without running anything; return the command they are for."""
    command, context, rest = typer.main.get_command(app), None, list(words)
    path = []
    while True:
        context = command.make_context(path[-1] if path else "ngrpo", list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return " ".join(path)
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
        path.append(name)


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "ngrpo"], ids=str)
def test_a_documented_command_line_can_be_read(line):
    assert parse(line.words[1:])


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "make"], ids=str)
def test_a_documented_target_of_make_is_there(line):
    assert next(word for word in line.words[1:] if "=" not in word and not word.startswith("-")) in TARGETS


def test_commands_that_the_text_names_are_there():
    commands = {
        (name, *([sub] if sub else []))
        for name, command in typer.main.get_command(app).commands.items()
        for sub in [None, *getattr(command, "commands", {})]
    }
    unknown = []
    for page, words in documented_commands.named():
        first, *rest = words.split()
        group = any(len(command) == 2 and command[0] == first for command in commands)
        if (first,) not in commands or (
            group and rest and not rest[0].startswith("-") and (first, rest[0]) not in commands
        ):
            unknown.append(f"{page.name}: {words}")
    assert unknown == []
    assert [f"{page.name}: {name}" for page, name in documented_commands.targets() if name not in TARGETS] == []


@pytest.mark.parametrize("words", [("plan", "--no-such-option"), ("no-such-command",), ("schedule", "create")])
def test_a_line_that_is_wrong_is_noticed(words):
    with pytest.raises(typer.TyperException):
        parse(words)


def test_the_page_of_the_command_line_is_up_to_date():
    """If this fails: `make reference`."""
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.reference()


def test_the_page_of_variables_has_all_of_them():
    source = "".join(
        path.read_text("utf-8") for room in ("components", "pipelines") for path in (ROOT / room).rglob("*.py")
    )
    variables = set(re.findall(r"\bNGRPO_[A-Z0-9_]*[A-Z0-9]\b", source)) - {"NGRPO_S3", "NGRPO_COMPLETE"}
    page = (ROOT / "docs" / "environment.md").read_text("utf-8")
    assert sorted(name for name in variables if f"`{name}`" not in page) == []
    assert len(variables) > 15
