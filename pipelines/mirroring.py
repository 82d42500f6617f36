"""`ngrpo mirror`: copies of what a configuration reads from the hub."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.options import configured, read_config
from ngrpo_kfp.pipelines.runtime.services import services
from ngrpo_kfp.pipelines.runtime.workspace import Workspace


def add_mirror_command(commands: Any) -> None:
    """Add the command to what `add_subparsers` returned."""
    mirror = commands.add_parser(
        "mirror", parents=[configured()], help="copy data sets and model of a configuration, to be read without the hub"
    )
    mirror.add_argument(
        "target", metavar="TARGET", help="directory or s3:// prefix for the copies; keep gated sets private"
    )
    mirror.set_defaults(command=_mirror)


def _mirror(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo.data.mirror import hub_sources, mirror

    config = read_config(options)
    sources = hub_sources(config)
    if not sources:
        raise ConfigError(
            f"preset {config.preset}: reads nothing from the hub, so there is nothing to copy; name another"
        )
    with services(workspace):
        for setting, source in sources.items():
            console.print(f"--set {setting}.id={mirror(source, options.target)}", soft_wrap=True)
