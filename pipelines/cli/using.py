"""The commands that use a trained model: `ngrpo export | chat | exec`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import MODELS
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import Registered, checked

# The commands import what they need when they run: torch and MLflow take seconds.

app = typer.Typer()

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="champion, challenger, the number of a version, or a run (latest, its name)"),
]


@app.command(rich_help_panel=MODELS)
def export(
    what: ModelName,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="directory to write; new or empty")],
    model: Registered = None,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged/--adapter", help="for a model trained with adapters: the merged model, or the adapter alone"
        ),
    ] = True,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="bfloat16, float16 or float32 (default: as it was evaluated)"),
    ] = None,
    for_vllm: Annotated[
        bool,
        typer.Option("--for-vllm", help="fill narrow attention heads up with zeros, as vLLM's CPU build needs it"),
    ] = False,
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="ORG/NAME", help="upload it to the hub too; needs HF_TOKEN"),
    ] = None,
) -> None:
    """Write a model to a directory, for transformers and vLLM."""
    from ngrpo_kfp.pipelines.local.exporting import Form, export_model

    export_model(what, _checked(model), directory, Form(not merged, dtype, hub, for_vllm), workspace(), terminal())


@app.command(rich_help_panel=MODELS)
def chat(
    what: ModelName = "champion",
    model: Registered = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="answer this and exit (default: ask for prompts)")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", help="tokens of a response (default: those of the evaluation)"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="T", help="0 for the most likely tokens (default: that of the evaluation)"
        ),
    ] = None,
) -> None:
    """Chat with a model in the terminal, or answer the lines of standard input."""
    from ngrpo_kfp.pipelines.local import chatting

    chatting.chat(what, _checked(model), prompt, chatting.Sampling(max_tokens, temperature), workspace())


@app.command("exec", rich_help_panel=MODELS, context_settings={"allow_interspersed_args": False})
def exec_(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="the command and its arguments")],
) -> None:
    """Run a command with the workspace's store and MLflow set in its environment."""
    from ngrpo_kfp.pipelines.local.command import run_command

    code = run_command(command, workspace())
    if code:
        raise typer.Exit(code)


def _checked(model: str | None) -> str | None:
    return None if model is None else checked("--model", model)
