"""`ngrpo schedule`: runs on a cluster again and again."""

from __future__ import annotations

from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import Sections, examples
from ngrpo_kfp.pipelines.cli.lazy import terminal
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    Base,
    Cluster,
    ImagesFile,
    Preset,
    PresetOption,
    ScheduleName,
    Seed,
    Settings,
    checked,
    chosen_preset,
    read_cluster_config,
)

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.

app = typer.Typer(
    cls=Sections,
    help="Run the pipeline on a cluster again and again.",
    epilog=examples("ngrpo schedule create weekly --cron '0 0 3 * * MON' --preset paper-7b --cluster mine.toml"),
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
    """Make a schedule."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    checked("NAME", name)
    config, found = read_cluster_config(chosen_preset(preset, preset_option), settings, seed, cluster), Images(images)
    schedules.create(name, cron, config, found, terminal(), base=base)


@app.command()
def replace(
    name: ScheduleName,
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="CRON", help="as of create (default: the time it has)"),
    ] = None,
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    base: Base = None,
) -> None:
    """Give a schedule another pipeline or time."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    checked("NAME", name)
    config, found = read_cluster_config(chosen_preset(preset, preset_option), settings, seed, cluster), Images(images)
    schedules.replace(name, cron, config, found, terminal(), base=base)


@app.command()
def pause(name: ScheduleName) -> None:
    """Start no runs."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.pause(name, terminal())


@app.command()
def resume(name: ScheduleName) -> None:
    """Start runs again."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.resume(name, terminal())


@app.command()
def delete(name: ScheduleName) -> None:
    """Delete a schedule."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.delete(name, terminal())


@app.command("list")
def list_() -> None:
    """List the schedules."""
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules

    schedules.show(terminal())
