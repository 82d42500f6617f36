"""The command that verifies the signatures of a model: `ngrpo verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import MODELS
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def verify(
    what: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="champion, challenger, the number of a version, or a directory"),
    ],
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key",
            metavar="FILE",
            help="PEM file with the public key that must have signed it (default: signing.public_key of the run that made it)",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="the registered model (default: that of the latest run, or that a directory names)",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the links as JSON")] = False,
) -> None:
    """Verify the signatures of a model, link by link; exit code 2 where one is broken."""
    from ngrpo_kfp.pipelines.local import verifying

    verifying.verify(what, model, public_key, workspace(), terminal(), as_json=as_json)
