"""Options and arguments that commands share, and the configuration that they name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.planning.requests import PRESETS, closed_there, preset_file, preset_names

if TYPE_CHECKING:
    from ngrpo.config import RunConfig
    from ngrpo.config.cluster import ClusterConfig

# The configuration is imported when a command needs it, because importing it takes a while.

__all__ = ["PRESETS", "closed_there"]  # which other commands read from here

IMAGES = Path("images/images.lock")
"""File with the images, unless an option names another."""
IN_ENVIRONMENT = "the environment"
IN_SECRET = "a secret of cluster.secrets"
_DEFAULT_PRESET = "tiny"
_COMPONENTS = Path(__file__).parents[2] / "components"


def stage_names() -> list[str]:
    """Return the names of the stages."""
    from ngrpo.stages.declarations import DECLARED

    return list(DECLARED)


def completed_stages() -> list[str]:
    """Return the names of the stages for a shell that completes one: by their components, for settings take long to import."""
    return sorted(path.parent.name for path in _COMPONENTS.glob("*/component.py"))


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
KeptPreset = Annotated[
    str | None,
    typer.Argument(
        metavar="PRESET",
        help="name of a preset, or a TOML file (default: the settings that the schedule has)",
        autocompletion=preset_names,
        show_default=False,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="PRESET", help="the same as PRESET", autocompletion=preset_names),
]
Registered = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="the registered model (default: that of the run, or the latest run)"),
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
        "--base", metavar="champion", help="start from the champion instead of the base model and its warm start"
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
        help="follow the run to its end (exit code 1 if it does not succeed), or return as soon as it is submitted; default: return once "
        "the run has started, or waits in a queue",
        show_default=False,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="print the result as JSON; everything else goes to the standard error")
]
RunDirectory = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="directory of the run (default: the latest)"),
]
AnyRun = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="name of a run here, or the beginning of one, or id of a run on the cluster (default: the newest; on the cluster if "
        "KF_PIPELINES_ENDPOINT is set)",
    ),
]
StageName = Annotated[
    str,
    typer.Argument(metavar="STAGE", help="a stage; `ngrpo plan` lists them", autocompletion=completed_stages),
]
ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="name of the schedule")]


def chosen_preset(preset: str | None, option: str | None) -> str | None:
    """Return the preset of a command line, given as an argument or by `--preset`.

    Raises:
        ConfigError: Both are given.
    """
    if preset is not None and option is not None:
        raise ConfigError(f"PRESET {preset!r}: --preset {option} names another; leave one of them out")
    return option if preset is None else preset


def naming_model(model_name: str) -> str:
    """Return the override that names the registered model, for `--set`."""
    return f"promotion.model_name={json.dumps(model_name)}"


def read_config(preset: str | None = None, settings: Sequence[str] | None = None, seed: int | None = None) -> RunConfig:
    """Return the configuration of a run on this machine, without gated benchmarks if there is no token.

    Args:
        preset: Name of a preset, or a TOML file; by default `tiny`.
        settings: Settings that override it, `section.field=value`.
        seed: Seed of the run.

    Raises:
        ConfigError: There is no such preset, or a setting is unknown or impossible.
    """
    return _without(closed_here, _load(preset, settings, seed), IN_ENVIRONMENT)


def read_preset(name: str) -> RunConfig:
    """Return the configuration of a preset, unchanged.

    Raises:
        ConfigError: There is no such preset.
    """
    return _load(checked("--extends", name), None, None)


def read_cluster_config(
    preset: str | None, settings: Sequence[str] | None, seed: int | None, cluster: Path | None
) -> RunConfig:
    """Return the configuration of a run on a cluster, without gated benchmarks if its pods will have no token; see `read_config`.

    Args:
        preset: Name of a preset, or a TOML file.
        settings: Settings that override it.
        seed: Seed of the run.
        cluster: TOML file with the settings of `cluster`.

    Raises:
        ConfigError: There is no such preset or file, or a setting is unknown or impossible.
    """
    return _without(closed_there, _load(preset, settings, seed, cluster), IN_SECRET)


def read_cluster(path: Path) -> ClusterConfig:
    """Return the settings of a cluster.

    Args:
        path: TOML file with the settings of `cluster`.

    Raises:
        ConfigError: It is not such a file.
    """
    from ngrpo.config import validate
    from ngrpo.config.cluster import ClusterConfig
    from ngrpo.config.reading import read_toml

    return validate(ClusterConfig, read_toml("cluster", path))


def closed_here(config: RunConfig) -> list[str]:
    """Return the gated benchmarks, which a run on this machine cannot read because it has no token."""
    from ngrpo.data.gated import gated_benchmarks

    gated = gated_benchmarks(config)
    if gated:
        from huggingface_hub import get_token

        if get_token() is None:
            return gated
    return []


def say_left_out(benchmarks: Iterable[str], where: str) -> None:
    """Print which benchmarks are left out because there is no token.

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
    """Return a name, for example of a schedule, after checking it with `ngrpo.section.check_name`.

    Args:
        what: The kind of thing it names, for the message.
        name: What the user wrote.

    Raises:
        ConfigError: It is not a valid name.
    """
    from ngrpo.section import check_name

    try:
        return check_name(name)
    except ValueError as error:
        raise ConfigError(f"{what} {name!r}: {error}") from error


def checked_run(run: str | None) -> str | None:
    """Return the id of a run after checking it; None stands for the newest run.

    Raises:
        ConfigError: It is not a valid id.
    """
    return None if run is None else checked("RUN", run)


def checked_stage(name: str, *tasks: str) -> str:
    """Return the name of a stage or node (`ngrpo_training.grpo`) after checking the stage. Whether a run has that node is checked later.

    Args:
        name: What the user wrote.
        *tasks: Names of other tasks that are allowed.

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
    """Leave out benchmarks that need a token which is missing, and print which."""
    from ngrpo.data.gated import without_benchmarks

    names = closed(config)
    say_left_out(names, where)
    return without_benchmarks(config, names) if names else config
