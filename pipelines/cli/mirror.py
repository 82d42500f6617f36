"""`ngrpo mirror`: copy what a configuration reads from the hub or from local files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ngrpo.config import HubModel, HubSource, RunConfig
from ngrpo.data.locations import is_bucket
from ngrpo.errors import ConfigError
from ngrpo.report.phases import Phase, phase
from ngrpo.section import check_store
from ngrpo_kfp.pipelines.cli.amounts import bytes_text
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace


def copy_sources(config: RunConfig, target: str, workspace: Workspace, console: Console) -> None:
    """Copy what a configuration reads from the hub or from local files, and print the settings that read the copies.

    Args:
        config: The configuration.
        target: Directory or `s3://` prefix of the copies.
        workspace: Where the embedded object store is, if one is used.
        console: Where the settings are printed.

    Raises:
        ConfigError: It reads neither from the hub nor from local files, or the target cannot hold copies.
        NGRPOError: A source cannot be read, or its copy cannot be written.
    """
    from ngrpo.data.mirror import copied_sources, mirror

    _check_target(target)
    sources = copied_sources(config)
    if not sources:
        raise ConfigError(
            f"preset {config.preset}: reads nothing from the hub and no files of this machine, so there is nothing to copy; name another"
        )
    with services(workspace):
        for setting, source in sources.items():
            name = "id" if isinstance(source, HubSource | HubModel) else "path"
            with phase(console, f"copying what {setting} names") as shown:

                def progress(done: int, total: int, shown: Phase = shown, setting: str = setting) -> None:
                    shown.reached(f"{setting}: copied {bytes_text(done)} of {bytes_text(total)}", done, total)

                copy = mirror(source, target, progress)
            console.print(f"--set {setting}.{name}={copy}", soft_wrap=True)


def _check_target(target: str) -> None:
    """Refuse a target that cannot hold copies, before anything is fetched."""
    try:
        if is_bucket(target):
            check_store(target)
        elif not target.strip() or (Path(target).exists() and not Path(target).is_dir()):
            raise ValueError("no directory, and none can be made there; name another, or an s3:// prefix")
    except ValueError as error:
        raise ConfigError(f"TARGET {target!r}: {error}") from error
