"""Choose the configuration of a command that acts on a model: from a preset, the latest run, or the run that trained the version."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from ngrpo.config.reading import override
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.options import read_config
from ngrpo_kfp.pipelines.local.named_model import looked_up_settings
from ngrpo_kfp.pipelines.local.runs import latest_settings
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.config import RunConfig


def acting_config(
    preset: str | None,
    settings: Sequence[str] | None,
    seed: int | None,
    workspace: Workspace,
    console: Console,
    version: str | None = None,
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

    Raises:
        ConfigError: There is neither a preset nor a run in the workspace, or a setting is unknown or invalid.
        TrackingError: The registry, which knows the run of a version, cannot be reached.
        StoreError: The embedded object store does not start.
    """
    if preset is not None:
        config, origin = read_config(preset, settings, seed), f"preset {preset}"
    else:
        latest = latest_settings(workspace)
        if latest is None:
            raise ConfigError(
                f"workspace {workspace.root}: no run here whose settings can be read, so it is not known which model is meant; name a "
                "preset (--preset NAME)"
            )
        given = [*(settings or ()), *([] if seed is None else [f"seed={seed}"])]
        # Start with those of the latest run, so that invalid settings are refused before any service starts.
        config, origin = override(latest.config, given), f"run {latest.name}"
        if version is not None:
            own = looked_up_settings(version, config.promotion.model_name, workspace)
            if own is not None:
                config, origin = override(own.config, given), f"run {own.name}, which made {version}"
            else:
                origin += f", the latest: no run here made {version}"
    say_model(config, origin, console)
    return config


def say_model(config: RunConfig, origin: str, console: Console) -> None:
    """Print which registered model a command acts on, and where its settings come from."""
    console.print(escape(f"model  {config.promotion.model_name}  (settings of {origin})"), soft_wrap=True)


def confirmed(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; without a terminal the answer is no."""
    return sys.stdin is not None and sys.stdin.isatty() and typer.confirm(question)
