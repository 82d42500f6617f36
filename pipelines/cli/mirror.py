"""`ngrpo mirror`: copies of what a configuration reads from the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from ngrpo.data.locations import is_bucket
from ngrpo.errors import ConfigError
from ngrpo.section import check_store
from ngrpo_kfp.pipelines.cli.options import configured, read_config
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace


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
    _check_target(options.target)
    sources = hub_sources(config)
    if not sources:
        raise ConfigError(
            f"preset {config.preset}: reads nothing from the hub, so there is nothing to copy; name another"
        )
    with services(workspace):
        for setting, source in sources.items():
            console.print(f"--set {setting}.id={mirror(source, options.target)}", soft_wrap=True)


def _check_target(target: str) -> None:
    """Refuse a place that cannot hold copies, before anything is fetched."""
    try:
        if is_bucket(target):
            check_store(target)
        elif not target.strip() or (Path(target).exists() and not Path(target).is_dir()):
            raise ValueError("no directory, and none can be made there; name another, or an s3:// prefix")
    except ValueError as error:
        raise ConfigError(f"TARGET {target!r}: {error}") from error
