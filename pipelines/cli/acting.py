"""The configuration of a command that acts on a model: the one that is named, or that of the latest run."""

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
from ngrpo_kfp.pipelines.local.runs import latest_settings
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.config import RunConfig


def acting_config(
    preset: str | None, settings: Sequence[str] | None, seed: int | None, workspace: Workspace, console: Console
) -> RunConfig:
    """Return the configuration of a command, after printing which model it acts on.

    Args:
        preset: Name of a preset, or a TOML file; by default the configuration of the latest run.
        settings: Settings that override it.
        seed: Seed of the run.
        workspace: Where the runs are.
        console: Where the model is named.

    Raises:
        ConfigError: No preset is named and there is no run here, or a setting is unknown or impossible.
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
        config = override(latest.config, [*(settings or ()), *([] if seed is None else [f"seed={seed}"])])
        origin = f"run {latest.name}"
    say_model(config, origin, console)
    return config


def say_model(config: RunConfig, origin: str, console: Console) -> None:
    """Print which registered model a command acts on, and which settings name it."""
    console.print(escape(f"model  {config.promotion.model_name}  (settings of {origin})"), soft_wrap=True)


def confirmed(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; without a terminal the answer is no."""
    return sys.stdin is not None and sys.stdin.isatty() and typer.confirm(question)
