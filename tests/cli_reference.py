"""The page of the command line, docs/cli.md, as typer writes it from the help texts; run as a script, writes it again."""

from pathlib import Path

from typer.cli import app as typer_cli
from typer.testing import CliRunner

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def reference() -> str:
    """Return the page."""
    command = ["ngrpo_kfp.pipelines.cli.app", "utils", "docs", "--name", "ngrpo", "--title", "The command line"]
    result = CliRunner().invoke(typer_cli, command)
    assert result.exit_code == 0, result.output
    return result.stdout


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
