"""The commands of a run on this machine: `ngrpo plan | run | rerun`, and `ngrpo experiment`."""

from __future__ import annotations

from typing import Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import experiment
from ngrpo_kfp.pipelines.cli.help import RUN_HERE
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    ActingPreset,
    Base,
    ImagesFile,
    Preset,
    PresetOption,
    Seed,
    Settings,
    StageName,
    Wait,
    checked_stage,
    chosen_preset,
    read_config,
)

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.

app = typer.Typer()
app.add_typer(experiment.app, name="experiment", rich_help_panel=RUN_HERE)


@app.command(rich_help_panel=RUN_HERE)
def plan(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    base: Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
) -> None:
    """Show what a run would do, and why."""
    config, home = read_config(chosen_preset(preset, preset_option), settings, seed), workspace()
    from ngrpo_kfp.pipelines.local.store_ahead import store_ahead

    with store_ahead(home, stopped=False):  # starting it takes as long as the imports
        from ngrpo_kfp.pipelines.local.run_pipeline import show_plan

        show_plan(config, home, terminal(), base=base, as_json=as_json)


@app.command(rich_help_panel=RUN_HERE)
def run(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    base: Base = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would run and what it needs; contacts nothing")
    ] = False,
) -> None:
    """Run the pipeline on this machine."""
    config = read_config(chosen_preset(preset, preset_option), settings, seed)
    home, console = workspace(), terminal()
    if dry_run:
        from ngrpo_kfp.pipelines.local import run_pipeline

        run_pipeline.dry_run(config, home, console, base=base)
        return
    from ngrpo_kfp.pipelines.local.store_ahead import store_ahead

    with store_ahead(home):
        from ngrpo_kfp.pipelines.local import run_pipeline

        run_pipeline.run(config, home, console, base=base)


@app.command(rich_help_panel=RUN_HERE)
def rerun(
    stage: StageName,
    preset: ActingPreset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    base: Base = None,
    run: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="a run on the cluster: run there again, with its configuration"),
    ] = None,
    images: ImagesFile = IMAGES,
    wait: Wait = None,
) -> None:
    """Run a stage again, and what depends on it."""
    checked_stage(stage)
    if run is not None:
        if chosen_preset(preset, preset_option) is not None or settings or seed is not None or base is not None:
            raise ConfigError(
                "--from takes the configuration of that run: leave out the preset, --set, --seed and --base, or submit again"
            )
        from ngrpo_kfp.pipelines.cli.cluster import rerun_on_cluster

        rerun_on_cluster(stage, run, images, wait)
        return
    if wait is not None:
        raise ConfigError("--wait and --no-wait are for a run on the cluster: name one by --from, or leave them out")
    from ngrpo_kfp.pipelines.cli.acting import acting_config

    home, console = workspace(), terminal()
    config = acting_config(chosen_preset(preset, preset_option), settings, seed, home, console)
    from ngrpo_kfp.pipelines.local import run_pipeline

    run_pipeline.run(config, home, console, base=base, rerun=stage)
