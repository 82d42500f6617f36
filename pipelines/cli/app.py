"""The command line: `ngrpo plan | run | rerun | report | ui`, and those of `cluster` and `promotion` beside it."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.disk import explain
from ngrpo_kfp.pipelines.cli.cluster import add_cluster_commands, rerun_on_cluster
from ngrpo_kfp.pipelines.cli.mirror import add_mirror_command
from ngrpo_kfp.pipelines.cli.neighbors import add_neighbors_command
from ngrpo_kfp.pipelines.cli.options import add_images, based, configured, read_config
from ngrpo_kfp.pipelines.cli.promotion import add_promotion_commands
from ngrpo_kfp.pipelines.local.lifeline import Interrupted
from ngrpo_kfp.pipelines.local.workspace import Workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error the user can put right, 128 + n after signal n.

    Args:
        arguments: Command line; by default that of the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal has no character for is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        workspace = Workspace.from_environment()
    except NGRPOError as error:
        return _say(str(error))
    try:
        try:
            return _main(sys.argv[1:] if arguments is None else arguments, workspace)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        return _refused_by_system(error, workspace)


def _main(arguments: Sequence[str], workspace: Workspace) -> int:
    try:
        _check_characters(arguments)
        options = _parser().parse_args(arguments)
        signal.signal(signal.SIGTERM, _interrupt)
        with addresses_without_users():
            options.command(options, workspace, Console(file=sys.stdout, highlight=False))
    except NGRPOError as error:
        return _say(str(error))
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print("ngrpo: stopped; the next run goes on from here", file=sys.stderr)
        return 128 + number
    return 0


def _refused_by_system(error: OSError, workspace: Workspace) -> int:
    """Say what the operating system refused; nothing where who reads the output has seen enough (`ngrpo plan | head`)."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as refusal:
        # Python would try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(refusal, BrokenPipeError):
            return 128 + signal.SIGPIPE
        return _say(f"the standard output cannot be written: {refusal.strerror}; make room, or send it somewhere else")
    return _say(explain(error, workspace.root))


def _say(problem: str) -> int:
    """Print what the user can put right, and return the exit code that says so."""
    # A terminal would obey what is a control character in a name or in what a service answered.
    shown = "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1] for letter in redacted(problem)
    )
    print(f"ngrpo: {shown}", file=sys.stderr)
    return 2


def _check_characters(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument or any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ConfigError(f"argument {argument!r}: it is not UTF-8, or holds a NUL; correct its encoding")


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
    from ngrpo_kfp.pipelines.local.run_pipeline import show_plan

    show_plan(read_config(options), workspace, console, base=options.base)


def _run(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.local.run_pipeline import dry_run, run

    (dry_run if options.dry_run else run)(read_config(options), workspace, console, base=options.base)


def _rerun(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    if options.run is not None:
        rerun_on_cluster(options, workspace, console)
        return
    from ngrpo_kfp.pipelines.local.run_pipeline import run

    run(read_config(options), workspace, console, base=options.base, rerun=options.stage)


def _report(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.local.reporting import rebuild_report

    console.print(f"report  {rebuild_report(options.run or workspace.latest, workspace)}")


def _ui(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.local.ui import serve_ui

    if not 1 <= options.port <= 65535:
        raise ConfigError(f"--port {options.port}: a port is a number from 1 to 65535")
    serve_ui(workspace, options.port, console)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
