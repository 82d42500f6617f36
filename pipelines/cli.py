"""The command line: `ngrpo plan | run | rerun | report | ui`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from ngrpo.config import RunConfig, load_config
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.stages.registry import STAGES
from ngrpo_kfp.pipelines.runtime.lifeline import Interrupted
from ngrpo_kfp.pipelines.runtime.workspace import Workspace

PRESETS = Path(__file__).parent / "presets"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error the user can put right, 128 + n after signal n.

    Args:
        arguments: Command line; by default that of the process.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        options.command(options, Workspace.from_environment(), Console(file=sys.stdout, highlight=False))
    except NGRPOError as error:
        print(f"ngrpo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print("ngrpo: stopped; the next run goes on from here", file=sys.stderr)
        return 128 + number
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ngrpo", description="Post-train reasoning models with N-GRPO.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--preset", default="tiny", help="name of a preset, or a TOML file (default: tiny)")
    configured.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override a setting; repeatable"
    )
    configured.add_argument("--seed", type=int, help="seed of the run; short for --set seed=N")

    plan = commands.add_parser("plan", parents=[configured], help="say what a run would do, and why")
    plan.set_defaults(command=_plan)
    run = commands.add_parser("run", parents=[configured], help="run the pipeline on this machine")
    run.add_argument("--dry-run", action="store_true", help="show what would run and what it needs; contacts nothing")
    run.set_defaults(command=_run)
    rerun = commands.add_parser("rerun", parents=[configured], help="run a stage again, and what depends on it")
    rerun.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    rerun.set_defaults(command=_rerun)
    report = commands.add_parser("report", help="write the report of a finished run again")
    report.add_argument("--run", type=Path, metavar="DIR", help="directory of the run (default: the latest)")
    report.set_defaults(command=_report)
    ui = commands.add_parser("ui", help="serve MLflow and the object store of the workspace")
    ui.add_argument("--port", type=int, default=5000, help="port of MLflow on 127.0.0.1 (default: 5000)")
    ui.set_defaults(command=_ui)
    return parser


def _config(options: argparse.Namespace) -> RunConfig:
    path = Path(options.preset)
    if path.suffix != ".toml":
        path = PRESETS / f"{options.preset}.toml"
        if not path.exists():
            known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.toml")))
            raise ConfigError(f"--preset {options.preset}: unknown; choose one of {known}, or name a .toml file")
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    return load_config(path, [*options.set, *seed])


# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.


def _plan(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.run import show_plan

    show_plan(_config(options), workspace, console)


def _run(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.run import dry_run, run

    (dry_run if options.dry_run else run)(_config(options), workspace, console)


def _rerun(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.run import run

    run(_config(options), workspace, console, rerun=options.stage)


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
