"""`ngrpo check`: find within seconds what would fail a run."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import RUN_HERE
from ngrpo_kfp.pipelines.cli.lazy import terminal
from ngrpo_kfp.pipelines.cli.options import Preset, PresetOption, Seed, Settings, chosen_preset, read_config

if TYPE_CHECKING:
    from ngrpo.checking.findings import Examination

# The command imports what it needs when it runs.

app = typer.Typer()

_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


@app.command(rich_help_panel=RUN_HERE)
def check(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Look for what would fail a run: files, columns, prompts, answers, rewards."""
    from ngrpo.checking.examination import examine
    from ngrpo.report.phases import phase, standard_error

    config = read_config(chosen_preset(preset, preset_option), settings, seed)
    # Output of the user's functions must not mix with the findings.
    with redirect_stdout(sys.stderr), phase(standard_error(), "looking at model, data and rewards"):
        examination = examine(config)
    if as_json:
        typer.echo(json.dumps(examination.record(), indent=1, ensure_ascii=False))
    else:
        _show(examination)
    if examination.errors:
        raise typer.Exit(1)


def _show(examination: Examination) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = terminal()
    table = Table()
    for column in ("", "setting", "what was found", "what to do"):
        table.add_column(column)
    for finding in examination.findings:
        colour = _COLOURS[finding.level]
        table.add_row(
            f"[{colour}]{finding.level}[/{colour}]",
            *(escape(text) for text in (finding.subject, finding.found, finding.cure)),
        )
    console.print(table)
    if examination.prompt is not None:
        console.print("The first training prompt, as the model gets it:")
        console.print(examination.prompt, markup=False, soft_wrap=True)
    if examination.unseen is not None:
        console.print(escape(examination.unseen))
    errors = len(examination.errors)
    console.print("passed" if not errors else f"{errors} error{'s' * (errors > 1)}")
