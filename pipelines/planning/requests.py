"""The requested configuration: a preset's name, settings on top of it, and a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngrpo.errors import ConfigError

if TYPE_CHECKING:
    from ngrpo.config import RunConfig

# `ngrpo.config` is slow to import, so this waits until a configuration is read: shell completion uses this module too.

PRESETS = Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the built-in presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_file(preset: str) -> Path:
    """Return the file of a preset.

    Args:
        preset: Name of a built-in preset, or a TOML file.

    Raises:
        ConfigError: There is no preset with this name.
    """
    path = Path(preset)
    if path.suffix == ".toml":
        return path
    from ngrpo.section import check_name

    try:
        check_name(preset)
    except ValueError as error:
        raise ConfigError(f"preset {preset!r}: {error}") from error
    path = PRESETS / f"{preset}.toml"
    if not path.exists():
        raise ConfigError(f"preset {preset}: unknown; choose one of {', '.join(preset_names())}, or name a .toml file")
    return path


def closed_there(config: RunConfig) -> list[str]:
    """Return the benchmarks that the pods of a cluster cannot read, because they are gated and the pods will have no token."""
    from ngrpo.data.gated import gated_benchmarks

    has_token = any("HF_TOKEN" in variables for variables in config.cluster.secrets.values())
    return [] if has_token else gated_benchmarks(config)


def cluster_config(
    preset: Path,
    overrides: Sequence[str] = (),
    cluster: Path | None = None,
    above: Sequence[tuple[Path, Mapping[str, Any]]] = (),
) -> tuple[RunConfig, list[str]]:
    """Return the configuration of a run on a cluster, and the benchmarks left out because its pods have no token for the hub.

    Args:
        preset: File of the preset.
        overrides: Settings that override it, `section.field=value`.
        cluster: TOML file with the section `cluster`.
        above: Settings of other files on top of the preset, each with its file.

    Raises:
        ConfigError: A file cannot be read, or a setting is unknown or impossible.
    """
    from ngrpo.config import load_config
    from ngrpo.data.gated import without_benchmarks

    config = load_config(preset, overrides, cluster, PRESETS, above)
    closed = closed_there(config)
    return (without_benchmarks(config, closed) if closed else config), closed
