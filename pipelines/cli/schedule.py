"""`ngrpo schedule`: recurring runs on a cluster."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.help import Sections, examples
from ngrpo_kfp.pipelines.cli.lazy import terminal
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    Base,
    Cluster,
    ImagesFile,
    KeptPreset,
    Preset,
    PresetOption,
    ScheduleName,
    Seed,
    Settings,
    checked,
    chosen_preset,
    read_cluster,
    read_cluster_config,
)

# The commands import what they need when they run, and kfp, boto3 and MLflow, which take seconds, only once the arguments are right.

app = typer.Typer(
    cls=Sections,
    help="Run the pipeline on a cluster on a schedule.",
    epilog=examples(
        "ngrpo schedule create weekly --cron '0 0 3 * * MON' --preset paper-7b --cluster mine.toml",
        "ngrpo schedule apply schedules.toml   # all schedules of a file, differences first",
    ),
)


@app.command()
def create(
    name: ScheduleName,
    cron: Annotated[
        str,
        typer.Option(
            "--cron", metavar="CRON", help="second minute hour day month weekday, in UTC, as in '0 0 3 * * MON'"
        ),
    ],
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    base: Base = None,
) -> None:
    """Create a schedule."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    checked("NAME", name)
    config, found = read_cluster_config(chosen_preset(preset, preset_option), settings, seed, cluster), Images(images)
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.create(name, cron, config, found, terminal(), base=base)


@app.command()
def replace(
    name: ScheduleName,
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="CRON", help="as for create (default: unchanged)"),
    ] = None,
    preset: KeptPreset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    base: Base = None,
) -> None:
    """Replace the time, the settings or the images of a schedule. What is not named stays, except the images."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    checked("NAME", name)
    chosen = chosen_preset(preset, preset_option)
    if chosen is not None:
        config = read_cluster_config(chosen, settings, seed, cluster)
    else:
        from ngrpo_kfp.pipelines.kubeflow.scheduling.kept_settings import kept_settings

        there = None if cluster is None else read_cluster(cluster)
        overrides = [*(settings or ()), *([] if seed is None else [f"seed={seed}"])]
        config, kept = kept_settings(name, overrides, there)
        base = base or kept
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.replace(name, cron, config, Images(images), terminal(), base=base)


@app.command(
    epilog=examples(
        "ngrpo schedule apply schedules.toml --dry-run   # what would change",
        "ngrpo schedule apply schedules.toml --yes       # in a script",
        "ngrpo schedule apply schedules.toml --prune     # remove what the file no longer has",
    )
)
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML file of schedules")],
    images: ImagesFile = IMAGES,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would change, and change nothing")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove schedules of the file's owner that are not in the file")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Make the schedules of the cluster like those of a file."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.scheduling.schedule_file import read_schedules

    wanted, found = read_schedules(file, datetime.now(UTC)), Images(images)
    from ngrpo_kfp.pipelines.kubeflow.scheduling.applying import apply as apply_file

    def agreed() -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise ConfigError("schedule apply asks before it changes anything, and nobody can answer here: add --yes")
        return typer.confirm("apply?")

    apply_file(file, wanted, found, terminal(), dry_run=dry_run, prune=prune, agreed=agreed)


@app.command()
def pause(name: ScheduleName) -> None:
    """Stop starting runs."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.pause(name, terminal())


@app.command()
def resume(name: ScheduleName) -> None:
    """Start runs again after a pause."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.resume(name, terminal())


@app.command()
def delete(name: ScheduleName) -> None:
    """Delete a schedule."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.delete(name, terminal())


@app.command("list", epilog=examples("ngrpo schedule list --json"))
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="print the schedules as JSON, times in UTC")] = False,
) -> None:
    """List the schedules, and which file each comes from."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    if as_json:
        typer.echo(json.dumps(schedules.listed(), indent=1, ensure_ascii=False))
    else:
        schedules.show(terminal())
