"""Plain-text help of the command line, with commands grouped by section."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

RUN_HERE = "Run here"
ON_CLUSTER = "Run on a cluster"
MODELS = "Models"
INSPECT = "Inspect"

_WHOLE = 1000
"""Longer than any line of help, so that nothing is cut; long lines are wrapped."""


class Sections(TyperGroup):
    """A group whose help lists its commands by section (`rich_help_panel`). typer shows sections only in rich's boxes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one list of commands per section, in the order of declaration."""
        widest = max(map(len, self.commands))
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            section = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(section, []).append((name.ljust(widest), command.get_short_help_str(_WHOLE)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """Return the end of a help text: example command lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)  # \b: do not wrap
