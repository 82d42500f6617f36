"""Options and arguments that several commands share, and the configuration that they name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.planning.requests import PRESETS, closed_there, preset_file, preset_names

if TYPE_CHECKING:
    from ngrpo.config import RunConfig

# Imported when a command needs it, for it takes a while: the configuration.

__all__ = ["PRESETS", "closed_there"]  # which other commands read from here

IMAGES = Path("images/images.lock")
"""Where the images are looked up if no option names a file."""
IN_ENVIRONMENT = "the environment"
IN_SECRET = "a secret of cluster.secrets"
_DEFAULT_PRESET = "tiny"


def stage_names() -> list[str]:
    """Return the names of the stages."""
    from ngrpo.stages.declarations import DECLARED

    return list(DECLARED)


Preset = Annotated[
    str | None,
    typer.Argument(
        metavar="PRESET",
        help=f"name of a preset, or a TOML file (default: {_DEFAULT_PRESET})",
        autocompletion=preset_names,
        show_default=False,
    ),
]
ActingPreset = Annotated[
    str | None,
    typer.Argument(
        metavar="PRESET",
        help="name of a preset, or a TOML file (default: the settings of the latest run)",
        autocompletion=preset_names,
        show_default=False,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="PRESET", help="the same as PRESET", autocompletion=preset_names),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="override a setting; repeatable"),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="SEED", help="seed of the run; short for --set seed=N"),
]
Base = Annotated[
    Literal["champion"] | None,
    typer.Option(
        "--base", metavar="champion", help="start from the champion in place of the base model and its warm start"
    ),
]
Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="FILE", help="TOML file with the settings of `cluster`"),
]
ImagesFile = Annotated[
    Path,
    typer.Option("--images", metavar="FILE", help="images by digest"),
]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="follow the run to its end (exit code 1 if it does not succeed), or return as soon as it is submitted; else the command "
        "stays until the run has started or waits for a place",
        show_default=False,
    ),
]
RunDirectory = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="directory of the run (default: the latest)"),
]
AnyRun = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="name of a run here (its beginning will do), or id of one on the cluster (default: the newest; on the cluster where "
        "KF_PIPELINES_ENDPOINT is set)",
    ),
]
StageName = Annotated[
    str,
    typer.Argument(metavar="STAGE", help="a stage; `ngrpo plan` lists them", autocompletion=stage_names),
]
ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="name of the schedule")]


def chosen_preset(preset: str | None, option: str | None) -> str | None:
    """Return the preset of a command line, which may name it as an argument or by `--preset`.

    Raises:
        ConfigError: It does both.
    """
    if preset is not None and option is not None:
        raise ConfigError(f"PRESET {preset!r}: --preset {option} names another; leave one of them out")
    return option if preset is None else preset


def read_config(preset: str | None = None, settings: Sequence[str] | None = None, seed: int | None = None) -> RunConfig:
    """Return the configuration of a run on this machine, without gated benchmarks where no token is there.

    Args:
        preset: Name of a preset, or a TOML file; by default `tiny`.
        settings: Settings that override it, `section.field=value`.
        seed: Seed of the run.

    Raises:
        ConfigError: There is no such preset, or a setting is unknown or impossible.
    """
    return _without(closed_here, _load(preset, settings, seed), IN_ENVIRONMENT)


def read_preset(name: str) -> RunConfig:
    """Return a preset as it is.

    Raises:
        ConfigError: There is no such preset.
    """
    return _load(checked("--extends", name), None, None)


def read_cluster_config(
    preset: str | None, settings: Sequence[str] | None, seed: int | None, cluster: Path | None
) -> RunConfig:
    """Return the configuration of a run on a cluster, without gated benchmarks where its pods will have no token; see `read_config`.

    Args:
        preset: Name of a preset, or a TOML file.
        settings: Settings that override it.
        seed: Seed of the run.
        cluster: TOML file with the settings of `cluster`.

    Raises:
        ConfigError: There is no such preset or file, or a setting is unknown or impossible.
    """
    return _without(closed_there, _load(preset, settings, seed, cluster), IN_SECRET)


def closed_here(config: RunConfig) -> list[str]:
    """Return the benchmarks that a run on this machine cannot read, for they are gated and no token is there."""
    from ngrpo.data.gated import gated_benchmarks

    gated = gated_benchmarks(config)
    if gated:
        from huggingface_hub import get_token

        if get_token() is None:
            return gated
    return []


def say_left_out(benchmarks: Iterable[str], where: str) -> None:
    """Say which benchmarks are left out because no token is there.

    Args:
        benchmarks: Their names.
        where: Where the token would have to be: `IN_ENVIRONMENT` or `IN_SECRET`.
    """
    for name in benchmarks:
        print(
            f"left out: data.benchmarks.{name}, which is gated: accept its terms on the hub and put HF_TOKEN into {where}, or set its "
            "id to a copy (ngrpo mirror)",
            file=sys.stderr,
        )


def checked(what: str, name: str) -> str:
    """Return what must be a name (see `ngrpo.section.check_name`), for example of a schedule.

    Args:
        what: What it names, for the message.
        name: What the user wrote.

    Raises:
        ConfigError: It cannot be a name.
    """
    from ngrpo.section import check_name

    try:
        return check_name(name)
    except ValueError as error:
        raise ConfigError(f"{what} {name!r}: {error}") from error


def checked_run(run: str | None) -> str | None:
    """Return what must be the id of a run, or none for the newest.

    Raises:
        ConfigError: It cannot be one.
    """
    return None if run is None else checked("RUN", run)


def checked_stage(name: str, *tasks: str) -> str:
    """Return what must be the name of a stage, or of one of its nodes (`ngrpo_training.grpo`; whether a run has it is looked up later).

    Args:
        name: What the user wrote.
        *tasks: Other tasks that may be named too.

    Raises:
        ConfigError: There is no such stage.
    """
    known = [*stage_names(), *tasks]
    if name.partition(".")[0] not in known:
        raise ConfigError(f"STAGE {name!r}: unknown; choose one of {', '.join(known)}")
    return name


def _load(
    preset: str | None, settings: Sequence[str] | None, seed: int | None, cluster: Path | None = None
) -> RunConfig:
    from ngrpo.config import load_config
    from ngrpo.config.run import unchecked

    preset = _DEFAULT_PRESET if preset is None else preset
    config = load_config(
        preset_file(preset), [*(settings or ()), *([] if seed is None else [f"seed={seed}"])], cluster, PRESETS
    )
    for setting, library in unchecked(config):
        print(f"{setting}: not checked here, where {library} is not installed; the stage checks it", file=sys.stderr)
    return config


def _without(closed: Callable[[RunConfig], list[str]], config: RunConfig, where: str) -> RunConfig:
    """Leave out benchmarks for which no token is there, and say so."""
    from ngrpo.data.gated import without_benchmarks

    names = closed(config)
    say_left_out(names, where)
    return without_benchmarks(config, names) if names else config
