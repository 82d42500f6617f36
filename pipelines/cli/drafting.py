"""`ngrpo init`: write a preset for the user's own model, problems and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import RUN_HERE
from ngrpo_kfp.pipelines.cli.options import read_preset

# The command imports what it needs when it runs.

app = typer.Typer()


@app.command("init", rich_help_panel=RUN_HERE)
def init(
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="directory of the model")],
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="problems to train on: JSONL, JSON, CSV or Parquet")
    ],
    rewards: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="FILE:NAME", help="a function of yours that rewards responses; repeatable"),
    ] = None,
    benchmark: Annotated[
        Path | None,
        typer.Option("--benchmark", metavar="FILE", help="problems to measure on (default: a tenth of the data)"),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option("--chat-template", metavar="FILE", help="Jinja template in place of the model's"),
    ] = None,
    problem_column: Annotated[
        str | None, typer.Option("--problem-column", metavar="NAME", help="column of the problems (default: guessed)")
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option("--answer-column", metavar="NAME", help="column of the answers (default: guessed)")
    ] = None,
    extends: Annotated[
        str | None,
        typer.Option(
            "--extends", metavar="PRESET", help="write only what differs from this preset, in place of all settings"
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="preset to write")] = Path("mine.toml"),
    force: Annotated[bool, typer.Option("--force", help="replace the file if it exists")] = False,
) -> None:
    """Write a preset for your own model, problems and rewards."""
    from ngrpo.drafting.draft import Named, write_preset
    from ngrpo.report.phases import phase, standard_error

    named = Named(
        model=model,
        data=data,
        rewards=rewards or [],
        benchmark=benchmark,
        chat_template=chat_template,
        problem_column=problem_column,
        answer_column=answer_column,
        extends=None if extends is None else read_preset(extends),
    )
    with phase(standard_error(), "reading model and data"):
        lines = write_preset(named, output, force=force)
    for line in lines:
        typer.echo(line)
    typer.echo(f"preset {output}; next: ngrpo check {output}, then ngrpo run {output}")
