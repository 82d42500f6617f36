"""`ngrpo watch`: check whether the served champion is as good as when it was promoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.help import MODELS
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    ActingPreset,
    Cluster,
    ImagesFile,
    Json,
    PresetOption,
    Seed,
    Settings,
    checked,
    chosen_preset,
    read_cluster,
    read_cluster_config,
)

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def watch(
    preset: ActingPreset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="where the champion is served; short for watch.endpoint.url"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", metavar="NAME", help="create a schedule of that name on the cluster, with --cron"),
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="CRON", help="when the schedule measures, as for `ngrpo schedule create`"),
    ] = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    as_json: Json = False,
) -> None:
    """Measure the served champion with fresh samples; exit code 1 is an alert."""
    chosen = chosen_preset(preset, preset_option)
    asked = [*(settings or ()), *([] if endpoint is None else [f"watch.endpoint.url={json.dumps(endpoint)}"])]
    if schedule is not None:
        if as_json:
            raise ConfigError("--json is for a measurement here: with --schedule nothing is measured yet; leave it out")
        _schedule(schedule, cron, chosen, asked, seed, cluster, images)
        return
    if cron is not None or cluster is not None:
        raise ConfigError("--cron and --cluster apply to a schedule; name it with --schedule NAME, or leave them out")
    home, console = workspace(), terminal()
    from ngrpo.report.phases import messages
    from ngrpo_kfp.pipelines.cli.acting import acting_config

    config = acting_config(chosen, asked, seed, home, messages(console, as_json=as_json), version="champion")
    from ngrpo_kfp.pipelines.local import watching

    if watching.watch(config, home, console, as_json=as_json).alert:
        raise typer.Exit(1)


def _schedule(
    name: str,
    cron: str | None,
    preset: str | None,
    settings: list[str],
    seed: int | None,
    cluster: Path | None,
    images: Path,
) -> None:
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.kubeflow.scheduling import schedules
    from ngrpo_kfp.pipelines.kubeflow.scheduling.watch_compilation import compile_watch

    if cron is None:
        raise ConfigError(f"--schedule {name}: when? Give --cron, for example --cron '@daily'")
    checked("--schedule", name)
    found = Images(images)
    if preset is not None:
        config = read_cluster_config(preset, settings, seed, cluster)
    else:
        from ngrpo_kfp.pipelines.cli.acting import acting_config

        there = None if cluster is None else read_cluster(cluster)
        config = acting_config(None, settings, seed, workspace(), terminal(), version="champion", cluster=there)
    schedules.create(name, cron, config, found, terminal(), text=compile_watch(config, found))
