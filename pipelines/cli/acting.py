"""The configuration of a command that acts on a model: named, that of the latest run, or that of the run that made the version."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from ngrpo.config.reading import override
from ngrpo.errors import ConfigError
from ngrpo.report.phases import phase
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
        preset: Name of a preset, or a TOML file; by default the configuration of the latest run.
        settings: Settings that override it.
        seed: Seed of the run.
        workspace: Where the runs are.
        console: Where the model is named.
        version: Alias or number of a version that is measured: by default the configuration is then that of the run that made it, as far as
            that run is here.

    Raises:
        ConfigError: No preset is named and there is no run here, or a setting is unknown or impossible.
        TrackingError: The registry, which says who made a version, cannot be reached.
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
        # With those of the latest run first: what is nonsense is refused before any service starts.
        config, origin = override(latest.config, given), f"run {latest.name}"
        if version is not None:
            with phase(console, f"looking for the run that made {version}"):
                own = looked_up_settings(version, config.promotion.model_name, workspace)
            if own is not None:
                config, origin = override(own.config, given), f"run {own.name}, which made {version}"
            else:
                origin += f", the latest: no run here made {version}"
    say_model(config, origin, console)
    return config


def say_model(config: RunConfig, origin: str, console: Console) -> None:
    """Print which registered model a command acts on, and which settings name it."""
    console.print(escape(f"model  {config.promotion.model_name}  (settings of {origin})"), soft_wrap=True)


def confirmed(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; without a terminal the answer is no."""
    return sys.stdin is not None and sys.stdin.isatty() and typer.confirm(question)
