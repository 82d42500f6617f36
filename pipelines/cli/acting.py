"""Choose the configuration of a command that acts on a model: from a preset, the latest run, or the run that trained the version."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from ngrpo.config.reading import override
from ngrpo.errors import ConfigError
from ngrpo.report.phases import phase
from ngrpo_kfp.pipelines.cli.options import naming_model, read_config
from ngrpo_kfp.pipelines.local.named_model import looked_up_settings
from ngrpo_kfp.pipelines.local.runs import RunSettings, run_directories, settings_of_runs
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.config import RunConfig
    from ngrpo.config.cluster import ClusterConfig


def acting_config(
    preset: str | None,
    settings: Sequence[str] | None,
    seed: int | None,
    workspace: Workspace,
    console: Console,
    version: str | None = None,
    cluster: ClusterConfig | None = None,
) -> RunConfig:
    """Return the configuration of a command, after printing which model it acts on.

    Args:
        preset: Name of a preset, or a TOML file. By default the configuration comes from a run.
        settings: Settings that override it.
        seed: Seed of the run.
        workspace: Workspace with the runs.
        console: Where the model is printed.
        version: Alias or number of the version to evaluate. Without a preset, the configuration is that of the run that trained it, if
            that run is in the workspace, otherwise that of the latest run.
        cluster: Settings of a cluster that replace those of the run. A named preset has its own.

    Raises:
        ConfigError: There is neither a preset nor a run in the workspace, or a setting is unknown or invalid.
        TrackingError: The registry, which knows the run of a version, cannot be reached.
        StoreError: The embedded object store does not start.
    """
    if preset is not None:
        config, origin = read_config(preset, settings, seed), f"preset {preset}"
    else:
        runs = (_placed(run, cluster) for run in settings_of_runs(run_directories(workspace)))
        latest = next(runs, None)
        if latest is None:
            raise ConfigError(
                f"workspace {workspace.root}: no run here whose settings can be read, so it is not known which model is meant; name a "
                "preset (--preset NAME)"
            )
        given = [*(settings or ()), *([] if seed is None else [f"seed={seed}"])]
        chosen, origin = latest, f"run {latest.name}"
        if version is not None:
            model_name = _model_name(latest, chain([latest], runs), given)
            with phase(console, f"looking for the run that made {version}"):
                own = looked_up_settings(version, model_name, workspace)
            chosen = latest if own is None else _placed(own, cluster)
            origin = (
                f"{origin}, the latest: no run here made {version}"
                if own is None
                else f"run {own.name}, which made {version}"
            )
            given = [naming_model(model_name), *given]  # a run of another model may have made the same files
        config = override(chosen.config, given)
    say_model(config, origin, console)
    return config


def _placed(run: RunSettings, cluster: ClusterConfig | None) -> RunSettings:
    """Return the settings of a run on another cluster; unchanged if there is none."""
    return run if cluster is None else RunSettings(run.name, run.config.model_copy(update={"cluster": cluster}))


def _model_name(latest: RunSettings, runs: Iterable[RunSettings], given: Sequence[str]) -> str:
    """Return the registered model that is meant: that of the latest run, unless the given settings name another.

    Args:
        latest: Settings of the latest run.
        runs: Those of all runs here, the latest first. Which of them made the version is not known yet.
        given: Settings that override them.

    Raises:
        ConfigError: The given settings fit none of the runs, so that no service need be started to refuse them.
    """
    name = naming_model(latest.config.promotion.model_name)
    refused = []
    for run in runs:
        try:
            return override(run.config, [name, *given]).promotion.model_name
        except ConfigError as error:
            refused.append(error)
    raise refused[0]


def say_model(config: RunConfig, origin: str, console: Console) -> None:
    """Print which registered model a command acts on, and where its settings come from."""
    console.print(escape(f"model  {config.promotion.model_name}  (settings of {origin})"), soft_wrap=True)


def confirmed(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; without a terminal the answer is no."""
    return sys.stdin is not None and sys.stdin.isatty() and typer.confirm(question)
