"""The commands that inspect runs and results: `ngrpo status | logs | report | config | ui | neighbors`."""

from __future__ import annotations

from typing import Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.help import INSPECT
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import RunDirectory, RunId, StageName, checked_run, checked_stage

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.

_PLANNERS = ("scheduled_run", "champion_run", "requested_run")
"""Tasks that submit a run of their own: of schedules, of those that older versions made, of the run form."""

app = typer.Typer()


@app.command(rich_help_panel=INSPECT)
def status(
    run: RunId = None, as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False
) -> None:
    """Show how far a run on the cluster is."""
    from ngrpo_kfp.pipelines.kubeflow.runs.status import show_status

    show_status(checked_run(run), terminal(), as_json=as_json)


@app.command(rich_help_panel=INSPECT)
def logs(
    stage: StageName,
    run: RunId = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="everything its pods have printed, Kubeflow's launcher included")
    ] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the stage is over")] = False,
) -> None:
    """Print what a stage on the cluster has printed, in each of its tries."""
    from ngrpo_kfp.pipelines.kubeflow.runs.logs import show_logs

    checked_stage(stage, *_PLANNERS)
    show_logs(checked_run(run), stage, terminal(), raw=raw, follow=follow)


@app.command(rich_help_panel=INSPECT)
def report(run: RunDirectory = None) -> None:
    """Write the report of a finished run again."""
    from ngrpo_kfp.pipelines.local.reporting import rebuild_report

    home = workspace()
    terminal().print(f"report  {rebuild_report(run or home.latest, home)}")


@app.command(rich_help_panel=INSPECT)
def config(
    section: Annotated[
        str | None,
        typer.Argument(metavar="SECTION", help="a section, or a setting: training, training.steps (default: all)"),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print a JSON schema of presets, for editors")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print all of it as a page")] = False,
) -> None:
    """List the settings: type, default and meaning."""
    from ngrpo_kfp.pipelines.cli import settings

    if [section is not None, schema, markdown].count(True) > 1:
        raise ConfigError("SECTION, --schema and --markdown are three things to print: name one")
    if schema or markdown:
        typer.echo(settings.schema() if schema else settings.markdown(), nl=schema)
        return
    settings.show_settings(section, terminal())


@app.command(rich_help_panel=INSPECT)
def ui(
    port: Annotated[int, typer.Option("--port", metavar="PORT", help="port of MLflow on 127.0.0.1")] = 5000,
) -> None:
    """Serve MLflow and the object store of the workspace."""
    from ngrpo_kfp.pipelines.local.ui import serve_ui

    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port is a number from 1 to 65535")
    serve_ui(workspace(), port, terminal())


@app.command(rich_help_panel=INSPECT)
def neighbors(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="directory of a model, or a preset, for its base model")
    ],
    tokens: Annotated[list[str], typer.Argument(metavar="TOKEN", help="text of one token; mind a leading space")],
    count: Annotated[int, typer.Option("--count", metavar="N", help="neighbors to show")] = 8,
    metric: Annotated[str, typer.Option("--metric", metavar="METRIC", help="cosine, dot, l2 or l1")] = "cosine",
) -> None:
    """Show the nearest neighbors of tokens in a model's embeddings."""
    from ngrpo_kfp.pipelines.cli.neighbors import show_neighbors

    show_neighbors(model, tokens, terminal(), count=count, metric=metric)
