"""The commands of a cluster: `ngrpo compile | submit | form | cancel | doctor`, and `ngrpo rerun --from`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import schedule
from ngrpo_kfp.pipelines.cli.help import ON_CLUSTER, examples
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    Base,
    Cluster,
    ImagesFile,
    Preset,
    PresetOption,
    Seed,
    Settings,
    Wait,
    checked,
    chosen_preset,
    read_cluster_config,
)

# The commands import what they need when they run, and kfp, boto3 and MLflow, which take seconds, only once the arguments are right.

app = typer.Typer()
app.add_typer(schedule.app, name="schedule", rich_help_panel=ON_CLUSTER)


@app.command("compile", rich_help_panel=ON_CLUSTER)
def compile_(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="file to write (default: PRESET.yaml)"),
    ] = None,
) -> None:
    """Compile the pipeline into the file that a cluster runs."""
    from ngrpo_kfp.pipelines.kubeflow.images import PlaceholderImages

    config = read_cluster_config(chosen_preset(preset, preset_option), settings, seed, cluster)
    found = PlaceholderImages(images, required=images != IMAGES)
    path = Path(f"{config.preset}.yaml") if output is None else output
    _require_file(path)
    from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole

    path.write_text(compile_whole(config, found), encoding="utf-8")
    terminal().print(f"pipeline  {path}", soft_wrap=True)
    if found.placeholders:
        print(
            f"only for reading: {images} lacks {' and '.join(sorted(found.placeholders))}, so the pipeline has placeholders that "
            "no cluster can pull: build the images (make images) and compile again, or submit",
            file=sys.stderr,
        )


@app.command(rich_help_panel=ON_CLUSTER)
def submit(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    base: Base = None,
    wait: Wait = None,
) -> None:
    """Run the pipeline on a cluster."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    config, found = read_cluster_config(chosen_preset(preset, preset_option), settings, seed, cluster), Images(images)
    from ngrpo_kfp.pipelines.kubeflow import submission
    from ngrpo_kfp.pipelines.planning.base_model import from_champion
    from ngrpo_kfp.pipelines.planning.early_stop import against_champion

    home = workspace()
    chosen = against_champion(config if base is None else from_champion(config))
    run = submission.submit(chosen, found, terminal(), cache=home.cache, name=home.run_name(config.preset))
    follow_run(run, wait)


@app.command(
    rich_help_panel=ON_CLUSTER,
    epilog=examples(
        "ngrpo form --preset paper-7b --cluster mine.toml",
        "ngrpo form mine.toml --cluster cluster.toml      # a preset of your own goes with the form",
        "ngrpo form --cluster mine.toml -o form.yaml      # write it, to upload it yourself",
    ),
)
def form(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="file to write, in place of the upload"),
    ] = None,
) -> None:
    """Put a run form into Kubeflow's UI."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    named = chosen_preset(preset, preset_option)
    config = read_cluster_config(named, settings, seed, cluster)
    if output is not None:
        _require_file(output)
    own = {config.preset: config} if settings or (named is not None and named.endswith(".toml")) else {}
    found = Images(images)
    from ngrpo_kfp.pipelines.kubeflow.scheduling.form import compile_form, upload_form

    text = compile_form(config, found, own)
    if output is None:
        upload_form(text, config.preset, terminal())
    else:
        output.write_text(text, encoding="utf-8")
        terminal().print(f"form  {output}", soft_wrap=True)


@app.command(rich_help_panel=ON_CLUSTER)
def cancel(run: Annotated[str, typer.Argument(metavar="RUN", help="id of the run")]) -> None:
    """End a run on the cluster."""
    from ngrpo_kfp.pipelines.kubeflow import submitted_runs

    submitted_runs.cancel(checked("RUN", run), terminal())


@app.command(rich_help_panel=ON_CLUSTER)
def doctor(
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    no_pod: Annotated[
        bool, typer.Option("--no-pod", help="do not start a pod that tests what stages can reach")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Check whether a cluster has what runs need."""
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    config, found = read_cluster_config(chosen_preset(preset, preset_option), settings, seed, cluster), Images(images)
    from ngrpo_kfp.pipelines.kubeflow.doctor.examination import examine

    examine(config, found, terminal(), pod=not no_pod, as_json=as_json)


def rerun_on_cluster(stage: str, run: str, images: Path, wait: bool | None) -> None:
    """Run a stage of a cluster run again on the cluster, and what depends on it, with that run's configuration.

    Args:
        stage: Name of the stage.
        run: Id of the run.
        images: File with the images.
        wait: Whether to follow the new run to its end; None to follow it until it has started.

    Raises:
        NGRPOError: The user can fix it.
        typer.Exit: The new run did not succeed.
    """
    from ngrpo_kfp.pipelines.kubeflow import submission
    from ngrpo_kfp.pipelines.kubeflow.client import connect
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    checked("--from", run)
    found, home = Images(images), workspace()
    client = connect()
    submission.require_no_experiment(client, run)
    config = submission.recorded_config(client, run)
    name = home.run_name(config.preset)
    follow_run(submission.submit(config, found, terminal(), cache=home.cache, name=name, rerun=stage), wait)


def follow_run(run: str, wait: bool | None) -> None:
    """Follow a submitted run to its end (true), not at all (false), or until it has started (None).

    Raises:
        typer.Exit: The run ended without success.
    """
    from ngrpo_kfp.pipelines.kubeflow.runs import following

    if wait is False:
        return
    follow = following.follow if wait else following.follow_start
    if not follow(run, terminal()):
        raise typer.Exit(1)


def _require_file(output: Path) -> None:
    """Refuse an output file that cannot be written, before the compilation, which takes seconds."""
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(
            f"--output {str(output)!r}: its directory does not exist, or it is not a file; name a file in an existing directory"
        )
