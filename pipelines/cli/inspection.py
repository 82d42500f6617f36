"""The commands that inspect runs and results: `ngrpo runs | status | logs | prune | report | config | ui | neighbors`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.help import INSPECT
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    AnyRun,
    Json,
    RunDirectory,
    checked_run,
    checked_stage,
    completed_stages,
    stage_names,
)

if TYPE_CHECKING:
    from ngrpo_kfp.pipelines.local.runs import Kind

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.

_ENDPOINT = "KF_PIPELINES_ENDPOINT"
_PLANNERS = ("scheduled_run", "champion_run", "requested_run")
"""Tasks that submit a run: of schedules, of schedules made by older versions, and of the run form."""

app = typer.Typer()


@app.command(rich_help_panel=INSPECT)
def runs(as_json: Annotated[bool, typer.Option("--json", help="print them as JSON")] = False) -> None:
    """List the runs on this machine, newest first: state, result, size."""
    from ngrpo_kfp.pipelines.cli.run_list import show_runs

    show_runs(workspace(), terminal(), as_json=as_json)


@app.command(rich_help_panel=INSPECT)
def status(
    run: AnyRun = None, as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False
) -> None:
    """Show the progress of a run, on this machine or on the cluster."""
    here = _run_here(run)
    if here is not None:
        from ngrpo_kfp.pipelines.cli.run_list import show_status as show_status_here

        show_status_here(*here, workspace(), terminal(), as_json=as_json)
        return
    from ngrpo_kfp.pipelines.kubeflow.runs.status import show_status

    show_status(checked_run(run), terminal(), as_json=as_json)


@app.command(rich_help_panel=INSPECT)
def logs(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="STAGE",
            help="a stage; `ngrpo plan` lists them. On this machine also a RUN, or nothing: the stage that is running, or ran last",
            autocompletion=completed_stages,
        ),
    ] = None,
    run: AnyRun = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="on a cluster: everything its pods printed, including Kubeflow's launcher")
    ] = False,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="keep printing until the stage ends, or the run if no stage is named")
    ] = False,
) -> None:
    """Print the log of a stage; on the cluster the logs of all its tries."""
    stage, run = _stage_and_run(what, run)
    here = _run_here(run)
    if here is not None:
        from ngrpo_kfp.pipelines.cli.run_logs import show_logs as show_logs_here

        if raw:
            raise ConfigError("--raw is for runs on a cluster: a stage on this machine has one log; leave it out")
        if stage is not None:
            checked_stage(stage)
        show_logs_here(*here, stage, workspace(), terminal(), follow=follow)
        return
    from ngrpo_kfp.pipelines.kubeflow.runs.logs import show_logs

    if stage is None:
        raise ConfigError(f"STAGE is missing: on a cluster name one of {', '.join(stage_names())}")
    checked_stage(stage, *_PLANNERS)
    show_logs(checked_run(run), stage, terminal(), raw=raw, follow=follow)


def _stage_and_run(what: str | None, run: str | None) -> tuple[str | None, str | None]:
    """Return the stage and the run that the two words of `ngrpo logs` name."""
    if what is not None and run is None and what.partition(".")[0] not in (*stage_names(), *_PLANNERS):
        from ngrpo_kfp.pipelines.local.runs import find_run

        if find_run(what, workspace()) is not None:
            return None, what
    return what, run


def _run_here(run: str | None) -> tuple[Kind, Path] | None:
    """Return the run on this machine that a command refers to; None if it refers to a run on the cluster.

    A name refers to a run on this machine if one here has that name. Without a name it is the newest run on the cluster if the environment
    names a cluster, else the newest here.

    Raises:
        ConfigError: There is no such run here, and the environment names no cluster.
    """
    from ngrpo_kfp.pipelines.local.runs import everything, find_run

    home, cluster = workspace(), bool(os.environ.get(_ENDPOINT))
    if run is not None:
        found = find_run(run, home)
        if found is None and not cluster:
            raise ConfigError(
                f"RUN {run!r}: no run of {home.root} has that name (`ngrpo runs` lists them); for one on a cluster set {_ENDPOINT}"
            )
        return found
    if cluster:
        return None
    newest = next(iter(everything(home)), None)
    if newest is None:
        raise ConfigError(
            f"workspace {home.root}: no run yet: start one (ngrpo run); for one on a cluster: {_ENDPOINT} is not set: name its API"
        )
    return newest


@app.command(rich_help_panel=INSPECT)
def prune(
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=0, help="number of newest runs to keep")] = 5,
    keep_run: Annotated[
        list[str] | None, typer.Option("--keep-run", metavar="RUN", help="another run to keep; repeatable")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            "--drop",
            metavar="RUN",
            help="a run or an experiment to remove, even if it is new or could be resumed; repeatable",
        ),
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="remove what was made here, even from a store that others use too")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; otherwise it is only shown")] = False,
    as_json: Json = False,
) -> None:
    """Show, or with --yes remove, what no champion, no kept run and no resumable run needs."""
    from ngrpo_kfp.pipelines.cli.pruning import show_pruning
    from ngrpo_kfp.pipelines.local.pruning import Wish

    wish = Wish(keep, keep_run or (), drop or (), shared)
    show_pruning(workspace(), wish, terminal(), yes=yes, as_json=as_json)


@app.command(rich_help_panel=INSPECT)
def report(run: RunDirectory = None) -> None:
    """Write the report of a finished run again."""
    from ngrpo.report.phases import phase
    from ngrpo_kfp.pipelines.local.reporting import rebuild_report

    home, console = workspace(), terminal()
    with phase(console, "writing the report"):
        path = rebuild_report(run or home.latest, home)
    console.print(f"report  {path}")


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
        raise ConfigError("SECTION, --schema and --markdown exclude each other: name one")
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
        str, typer.Argument(metavar="MODEL", help="directory of a model, or a preset, which stands for its base model")
    ],
    tokens: Annotated[list[str], typer.Argument(metavar="TOKEN", help="text of one token; a leading space counts")],
    count: Annotated[int, typer.Option("--count", metavar="N", help="neighbors to show")] = 8,
    metric: Annotated[str, typer.Option("--metric", metavar="METRIC", help="cosine, dot, l2 or l1")] = "cosine",
) -> None:
    """Show the nearest neighbors of tokens in a model's embeddings."""
    from ngrpo_kfp.pipelines.cli.neighbors import show_neighbors

    show_neighbors(model, tokens, workspace(), terminal(), count=count, metric=metric)
