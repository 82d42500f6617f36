"""The command line: `ngrpo plan | run | rerun | report | ui`, and those of `cluster_commands` and `promotion_commands`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import NGRPOError
from ngrpo.stages.registry import STAGES
from ngrpo_kfp.pipelines.cluster_commands import add_cluster_commands, rerun_on_cluster
from ngrpo_kfp.pipelines.mirroring import add_mirror_command
from ngrpo_kfp.pipelines.neighbor_sets import add_neighbors_command
from ngrpo_kfp.pipelines.options import add_images, based, configured, read_config
from ngrpo_kfp.pipelines.promotion_commands import add_promotion_commands
from ngrpo_kfp.pipelines.runtime.lifeline import Interrupted
from ngrpo_kfp.pipelines.runtime.workspace import Workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error the user can put right, 128 + n after signal n.

    Args:
        arguments: Command line; by default that of the process.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with addresses_without_users():
            options.command(options, Workspace.from_environment(), Console(file=sys.stdout, highlight=False))
    except NGRPOError as error:
        print(f"ngrpo: {redacted(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print("ngrpo: stopped; the next run goes on from here", file=sys.stderr)
        return 128 + number
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ngrpo", description="Post-train reasoning models with N-GRPO.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    config = [configured(), based()]

    plan = commands.add_parser("plan", parents=config, help="say what a run would do, and why")
    plan.set_defaults(command=_plan)
    run = commands.add_parser("run", parents=config, help="run the pipeline on this machine")
    run.add_argument("--dry-run", action="store_true", help="show what would run and what it needs; contacts nothing")
    run.set_defaults(command=_run)
    rerun = commands.add_parser("rerun", parents=config, help="run a stage again, and what depends on it")
    rerun.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    rerun.add_argument("--from", dest="run", metavar="RUN", help="a run on the cluster: its configuration, run there")
    add_images(rerun)
    rerun.set_defaults(command=_rerun)
    report = commands.add_parser("report", help="write the report of a finished run again")
    report.add_argument("--run", type=Path, metavar="DIR", help="directory of the run (default: the latest)")
    report.set_defaults(command=_report)
    ui = commands.add_parser("ui", help="serve MLflow and the object store of the workspace")
    ui.add_argument("--port", type=int, default=5000, help="port of MLflow on 127.0.0.1 (default: 5000)")
    ui.set_defaults(command=_ui)
    add_cluster_commands(commands)
    add_promotion_commands(commands)
    add_mirror_command(commands)
    add_neighbors_command(commands)
    return parser


# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.


def _plan(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.run import show_plan

    show_plan(read_config(options), workspace, console, base=options.base)


def _run(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.run import dry_run, run

    (dry_run if options.dry_run else run)(read_config(options), workspace, console, base=options.base)


def _rerun(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    if options.run is not None:
        rerun_on_cluster(options, workspace, console)
        return
    from ngrpo_kfp.pipelines.run import run

    run(read_config(options), workspace, console, base=options.base, rerun=options.stage)


def _report(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.reporting import rebuild_report

    console.print(f"report  {rebuild_report(options.run or workspace.latest, workspace)}")


def _ui(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.ui import serve_ui

    serve_ui(workspace, options.port, console)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
