"""The commands of a cluster: `ngrpo compile | submit | status | logs | cancel | doctor | schedule`, and `ngrpo rerun --from`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import STAGES
from ngrpo_kfp.pipelines.cli.options import IMAGES, based, checked, configured, on_cluster, read_config
from ngrpo_kfp.pipelines.local.workspace import Workspace

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.

PLANNERS = ("scheduled_run", "champion_run")
"""Tasks of a schedule's runs, which submit the run of the day; the second is what older versions called it."""


def add_cluster_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    described = [configured(), on_cluster()]
    compiled = commands.add_parser("compile", parents=described, help="write the pipeline as a cluster runs it")
    compiled.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write (default: PRESET.yaml)")
    compiled.set_defaults(command=_compile)
    submitted = commands.add_parser("submit", parents=[*described, based()], help="run the pipeline on a cluster")
    submitted.add_argument(
        "--wait", action="store_true", help="follow the run to its end; exit code 1 if it does not succeed"
    )
    submitted.set_defaults(command=_submit)
    status = commands.add_parser("status", help="show how far a run on the cluster is")
    status.add_argument("run", nargs="?", metavar="RUN", help="id of the run (default: the newest)")
    status.set_defaults(command=_status)
    logs = commands.add_parser("logs", help="print what a stage on the cluster has printed, in each of its tries")
    named = [*STAGES, *PLANNERS]
    logs.add_argument("stage", choices=named, metavar="STAGE", help=", ".join(named))
    logs.add_argument("run", nargs="?", metavar="RUN", help="id of the run (default: the newest)")
    logs.add_argument(
        "--raw", action="store_true", help="everything its pods have printed, Kubeflow's launcher included"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the stage is over")
    logs.set_defaults(command=_logs)
    cancelled = commands.add_parser("cancel", help="end a run on the cluster")
    cancelled.add_argument("run", metavar="RUN", help="id of the run")
    cancelled.set_defaults(command=_cancel)
    examined = commands.add_parser("doctor", parents=described, help="look whether a cluster has what runs need")
    examined.add_argument("--no-pod", action="store_true", help="make no pod there to see what stages can reach")
    examined.set_defaults(command=_doctor)
    _add_schedule_commands(commands, described)


def _add_schedule_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], described: list[argparse.ArgumentParser]
) -> None:
    schedule = commands.add_parser("schedule", help="run the pipeline on a cluster again and again")
    actions = schedule.add_subparsers(required=True, metavar="ACTION")
    created = actions.add_parser("create", parents=[*described, based()], help="make a schedule")
    created.add_argument(
        "--cron", required=True, help="second minute hour day month weekday, in UTC, as in '0 0 3 * * MON'"
    )
    created.set_defaults(command=_create_schedule)
    replaced = actions.add_parser(
        "replace", parents=[*described, based()], help="give a schedule another pipeline or time"
    )
    replaced.add_argument("--cron", help="as of create (default: the time it has)")
    replaced.set_defaults(command=_replace_schedule)
    for action, what in (("pause", "start no runs"), ("resume", "start runs again"), ("delete", "delete a schedule")):
        actions.add_parser(action, help=what).set_defaults(command=_change_schedule, action=action)
    for parser in actions.choices.values():
        parser.add_argument("name", metavar="NAME", help="name of the schedule")
    actions.add_parser("list", help="list the schedules").set_defaults(command=_list_schedules)


def rerun_on_cluster(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    """Run a stage of a run on the cluster again there, with that run's configuration, and what depends on it.

    Raises:
        NGRPOError: What the user can put right.
    """
    if options.preset is not None or options.set or options.seed is not None or options.base is not None:
        raise ConfigError(
            "--from takes the configuration of that run: leave out --preset, --set, --seed and --base, or submit anew"
        )
    from ngrpo_kfp.pipelines.kubeflow.client import connect
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.submission import recorded_config, submit

    run, images = checked("--from", options.run), Images(options.images)
    config = recorded_config(connect(), run)
    name = workspace.run_name(config.preset)
    submit(config, images, console, cache=workspace.cache, name=name, rerun=options.stage)


def _run_id(text: str | None) -> str | None:
    return None if text is None else checked("RUN", text)


def _compile(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole
    from ngrpo_kfp.pipelines.kubeflow.images import PlaceholderImages

    config = read_config(options)
    images = PlaceholderImages(options.images, required=options.images != IMAGES)
    path = Path(f"{config.preset}.yaml") if options.output is None else options.output
    if path.is_dir() or not path.parent.is_dir():
        # Before the pipeline is compiled, which takes seconds.
        raise ConfigError(f"--output {str(path)!r}: a file in a directory that is there is needed; name one")
    path.write_text(compile_whole(config, images), encoding="utf-8")
    console.print(f"pipeline  {path}", soft_wrap=True)
    if images.placeholders:
        print(
            f"to look at only: {options.images} lacks {' and '.join(sorted(images.placeholders))}, so the pipeline has placeholders that "
            "no cluster can pull: build the images (make images) and compile again, or submit",
            file=sys.stderr,
        )


def _submit(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.submission import submit
    from ngrpo_kfp.pipelines.planning.base_model import from_champion

    config, images = read_config(options), Images(options.images)
    chosen = config if options.base is None else from_champion(config)
    run = submit(chosen, images, console, cache=workspace.cache, name=workspace.run_name(config.preset))
    if options.wait:
        from ngrpo_kfp.pipelines.kubeflow.runs.status import follow

        if not follow(run, console):
            raise SystemExit(1)


def _status(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.runs.status import show_status

    show_status(_run_id(options.run), console)


def _logs(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.runs.logs import show_logs

    show_logs(_run_id(options.run), options.stage, console, raw=options.raw, follow=options.follow)


def _cancel(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.submitted_runs import cancel

    cancel(checked("RUN", options.run), console)


def _doctor(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.doctor.report import examine
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    examine(read_config(options), Images(options.images), console, pod=not options.no_pod)


def _create_schedule(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    name = checked("NAME", options.name)
    config, images = read_config(options), Images(options.images)
    schedules.create(name, options.cron, config, images, console, base=options.base)


def _replace_schedule(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    name = checked("NAME", options.name)
    config, images = read_config(options), Images(options.images)
    schedules.replace(name, options.cron, config, images, console, base=options.base)


def _change_schedule(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    changes: dict[str, Callable[[str, Console], None]] = {
        "pause": schedules.pause,
        "resume": schedules.resume,
        "delete": schedules.delete,
    }
    changes[options.action](options.name, console)


def _list_schedules(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.show(console)
