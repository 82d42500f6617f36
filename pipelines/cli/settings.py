"""`ngrpo config`: the list of all settings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from ngrpo.config import RunConfig
from ngrpo.config.listing import EXTENDS, NAME, Setting, Table, editor_schema, tables
from ngrpo.errors import ConfigError

_HEAD = """# Settings

<!-- made by `ngrpo config --markdown`: change the docstrings of `components/ngrpo/config` instead -->

A preset is a TOML file with these tables; `ngrpo run mine.toml` runs it. `ngrpo config SECTION` prints one section of this page.

`ngrpo config --schema` prints a JSON schema. Save it as `ngrpo.schema.json` beside a preset whose first line is
`#:schema ./ngrpo.schema.json`, and editors with TOML support complete and check the preset.

Settings of TRL and vLLM that have no name here go through as they are ([presets.md](presets.md)).
"""


def show_settings(section: str | None, console: Console) -> None:
    """Print the settings of a section, or all.

    Args:
        section: A section, a table in one, or a setting: `training`, `training.selection`, `training.steps`.
        console: Where they are printed.

    Raises:
        ConfigError: There is no such section or setting.
    """
    for table in _asked(section):
        console.print(f"[bold]{escape(_title(table))}[/]", soft_wrap=True)
        console.print(escape(table.meaning))
        shown = Shown(box=None, pad_edge=False, padding=(0, 2, 1, 0), show_header=False)
        shown.add_column(no_wrap=True)
        shown.add_column(ratio=1)
        shown.add_column(ratio=2)
        for setting in table.settings:
            shown.add_row(
                *(escape(text) for text in (setting.name, f"{setting.type}; {_default(setting)}", setting.meaning))
            )
        console.print(shown)


def markdown() -> str:
    """Return the page of all settings."""
    return _HEAD + "".join(_markdown(table) for table in _tables())


def schema() -> str:
    """Return the JSON schema of a preset."""
    return json.dumps(editor_schema(RunConfig), indent=1, ensure_ascii=False)


def _tables() -> list[Table]:
    whole, *others = tables(RunConfig)
    own = [setting for setting in whole.settings if setting.name != "preset"]
    extends = Setting("extends", "text", "none", EXTENDS)
    return [Table([""], None, "At the top of a preset, before its tables.", [extends, *own]), *others]


def _asked(section: str | None) -> list[Table]:
    if section is None:
        return _tables()
    asked = section.split(".")
    inside = [table for table in _tables() if any(_begins(path.split("."), asked) for path in table.paths if path)]
    # `training.selection` is also a setting, but its table has the details.
    found = inside or [
        Table(table.paths, table.kind, table.meaning, [setting])
        for table in _tables()
        for setting in table.settings
        if any(_begins([*filter(None, path.split(".")), setting.name], asked) for path in table.paths)
    ]
    if not found:
        known = list(_paths())
        close = (
            difflib.get_close_matches(section, known, n=1)
            or [path for path in known if path.endswith(f".{asked[-1]}")][:1]
        )
        cure = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(RunConfig.model_fields)}"
        raise ConfigError(f"SECTION {section!r}: unknown; {cure}")
    return found


def _paths() -> Iterator[str]:
    for table in _tables():
        for path in table.paths:
            yield from filter(None, [path, *(f"{path}.{setting.name}".lstrip(".") for setting in table.settings)])


def _begins(path: Sequence[str], asked: Sequence[str]) -> bool:
    parts = [part.removesuffix("[]") for part in path]
    return len(parts) >= len(asked) and all(part in (name, NAME) for part, name in zip(parts, asked, strict=False))


def _title(table: Table) -> str:
    return (", ".join(table.paths) or "(top)") + (f" with kind = {json.dumps(table.kind)}" if table.kind else "")


def _default(setting: Setting) -> str:
    return setting.default if setting.default == "required" else f"default {setting.default}"


def _markdown(table: Table) -> str:
    where = ", ".join(f"`{path}`" for path in table.paths if path) or "Top"
    kind = f" with `kind = {json.dumps(table.kind)}`" if table.kind else ""
    rows = [
        f"| `{setting.name}` | {_cell(setting.type)} | `{_cell(setting.default)}` | {_cell(setting.meaning)} |"
        for setting in table.settings
    ]
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join(["", f"## {where}{kind}", "", table.meaning, "", *head, *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")
