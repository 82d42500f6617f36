"""The commands that serve a model: `ngrpo serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import MODELS
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="champion, challenger, the number of a version, or a run")
    ],
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="port on 127.0.0.1")] = 8000,
    length: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            metavar="TOKENS",
            min=2,
            help="room for a prompt and its response together (default: what the settings of its run ask for)",
        ),
    ] = None,
) -> None:
    """Serve a model on this machine: vLLM's OpenAI API, until Ctrl-C."""
    from ngrpo_kfp.pipelines.local import serving

    serving.serve_model(model, port, length, workspace(), terminal())
