"""The terminal and the workspace of a command, imported on first use, because importing them takes a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ngrpo_kfp.pipelines.local.workspace import Workspace


def terminal() -> Console:
    """Return the console of the standard output as it is now."""
    from ngrpo_kfp.pipelines.cli.terminal import Terminal

    return Terminal()


def workspace() -> Workspace:
    """Return the workspace that `NGRPO_HOME` names.

    Raises:
        ConfigError: The path cannot be that of a workspace.
    """
    from ngrpo_kfp.pipelines.local.workspace import Workspace

    return Workspace.from_environment()
