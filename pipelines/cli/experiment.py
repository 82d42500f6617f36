"""`ngrpo experiment`: arms with several seeds, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.help import Sections, examples
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    IN_ENVIRONMENT,
    IN_SECRET,
    PRESETS,
    Cluster,
    ImagesFile,
    Json,
    Settings,
    Wait,
    checked,
    closed_here,
    closed_there,
    say_left_out,
)

if TYPE_CHECKING:
    from ngrpo.config import RunConfig
    from ngrpo_kfp.pipelines.planning.experiment import Experiment

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.

EXPERIMENTS = PRESETS.parent / "experiments"

app = typer.Typer(
    cls=Sections,
    help="Run arms with several seeds, and compare them.",
    epilog=examples(
        "ngrpo experiment plan laptop              # what would run, and which arms share it",
        "ngrpo experiment run laptop               # only what has no result yet",
        "ngrpo experiment run mine.toml --rerun k1  # one arm again",
        "ngrpo experiment submit paper-main --cluster mine.toml",
    ),
)


def _experiments() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="name of an experiment, or a TOML file", autocompletion=_experiments),
]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the experiments that have names."""
    from rich.table import Table

    files = {name: _read(name, None, None).file for name in _experiments()}
    if as_json:
        listed = [
            {"experiment": name, "preset": file.preset, "arms": list(file.arms), "seeds": list(file.seeds)}
            for name, file in files.items()
        ]
        terminal().print_json(data=listed, indent=1)
        return
    table = Table()
    for column in ("experiment", "preset", "arms", "seeds"):
        table.add_column(column, overflow="fold")
    for name, file in files.items():
        table.add_row(name, file.preset, ", ".join(file.arms), str(len(file.seeds)))
    terminal().print(table)


@app.command()
def plan(name: Name, settings: Settings = None, as_json: Json = False) -> None:
    """Show what an experiment would run, and what it needs."""
    from ngrpo_kfp.pipelines.local.run_experiment import show_plan

    show_plan(_here(name, settings), workspace(), terminal(), as_json=as_json)


@app.command()
def run(
    name: Name,
    settings: Settings = None,
    rerun: Annotated[str | None, typer.Option("--rerun", metavar="ARM", help="an arm to run again")] = None,
) -> None:
    """Run the missing parts of an experiment on this machine, and compare its arms."""
    from ngrpo_kfp.pipelines.local import run_experiment

    run_experiment.run(_here(name, settings), workspace(), terminal(), rerun=rerun)


@app.command()
def report(
    name: Name,
    settings: Settings = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    as_json: Json = False,
) -> None:
    """Compare the arms by the results that exist; with --cluster, by those of the cluster."""
    from ngrpo_kfp.pipelines.local import run_experiment

    if cluster is None:
        run_experiment.report(_here(name, settings), workspace(), terminal(), as_json=as_json)
        return
    from ngrpo_kfp.pipelines.kubeflow.experiment_submission import planned_there
    from ngrpo_kfp.pipelines.kubeflow.images import Images
    from ngrpo_kfp.pipelines.local.experiment_records import ExperimentRecords

    home = workspace()
    planned, store = planned_there(_there(name, settings, cluster), Images(images), home.cache)
    records = ExperimentRecords.of(home, planned.experiment.name)
    run_experiment.compare_finished(planned, store, records, terminal(), as_json=as_json)


@app.command()
def submit(
    name: Name,
    settings: Settings = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    wait: Wait = None,
) -> None:
    """Run the missing parts of an experiment on a cluster, as one pipeline."""
    from ngrpo_kfp.pipelines.cli.cluster import follow_run
    from ngrpo_kfp.pipelines.kubeflow.experiment_submission import submit_experiment
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    home, experiment = workspace(), _there(name, settings, cluster)
    submitted = submit_experiment(
        experiment, Images(images), terminal(), cache=home.cache, name=home.run_name(experiment.name)
    )
    if submitted is not None:
        follow_run(submitted, wait)


def _here(name: str, settings: Sequence[str] | None) -> Experiment:
    """Return an experiment for this machine, without gated benchmarks if there is no token."""
    return _without(closed_here, _read(name, settings, None), IN_ENVIRONMENT)


def _there(name: str, settings: Sequence[str] | None, cluster: Path | None) -> Experiment:
    """Return an experiment for a cluster, without gated benchmarks if its pods will have no token."""
    return _without(closed_there, _read(name, settings, cluster), IN_SECRET)


def _without(closed: Callable[[RunConfig], list[str]], experiment: Experiment, where: str) -> Experiment:
    from ngrpo.data.gated import without_benchmarks

    left_out = {arm: closed(config) for arm, config in experiment.arms.items()}
    names = dict.fromkeys(name for of_arm in left_out.values() for name in of_arm)
    if not names:
        return experiment
    say_left_out(names, where)
    remaining = experiment.with_arms(
        {arm: without_benchmarks(config, left_out[arm]) for arm, config in experiment.arms.items()}
    )
    remaining.require_measured()
    return remaining


def _read(name: str, settings: Sequence[str] | None, cluster: Path | None) -> Experiment:
    """Return the experiment that a command names.

    Raises:
        ConfigError: There is no such experiment, or its file or settings are invalid.
    """
    from ngrpo_kfp.pipelines.planning.experiment import read_experiment

    path = Path(name)
    if path.suffix != ".toml":
        checked("experiment", name)
        path = EXPERIMENTS / f"{name}.toml"
        if not path.exists():
            known = ", ".join(_experiments())
            raise ConfigError(
                f"experiment {name}: unknown; {f'choose one of {known}, or ' if known else ''}name a .toml file"
            )
    return read_experiment(path, PRESETS, settings or (), cluster)
