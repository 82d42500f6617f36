"""Options that several commands share: the configuration of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ngrpo.config import RunConfig, load_config
from ngrpo.data.gated import gated_benchmarks, without_benchmarks
from ngrpo.errors import ConfigError
from ngrpo.section import check_name

PRESETS = Path(__file__).parent.parent / "presets"
IMAGES = Path("images/images.lock")
"""Where the images are looked up if no option names a file."""
_DEFAULT_PRESET = "tiny"


def configured() -> argparse.ArgumentParser:
    """Return a parent parser with the options that name a configuration."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset", help=f"name of a preset, or a TOML file (default: {_DEFAULT_PRESET})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override a setting; repeatable"
    )
    parser.add_argument("--seed", type=int, help="seed of the run; short for --set seed=N")
    return parser


def based() -> argparse.ArgumentParser:
    """Return a parent parser with the option that says what a run starts from."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--base", choices=["champion"], help="start from the champion in place of the base model and its warm start"
    )
    return parser


def on_cluster() -> argparse.ArgumentParser:
    """Return a parent parser with the options that say how a configuration runs on a cluster."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="TOML file with the settings of `cluster`")
    add_images(parser)
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the images."""
    parser.add_argument(
        "--images",
        type=Path,
        default=IMAGES,
        metavar="FILE",
        help="images by digest (default: %(default)s)",
    )


def read_config(options: argparse.Namespace) -> RunConfig:
    """Return the configuration that the options name, without gated benchmarks where no token is there.

    Raises:
        ConfigError: There is no such preset, or a setting is unknown or impossible.
    """
    preset = _DEFAULT_PRESET if options.preset is None else options.preset
    path = Path(preset)
    if path.suffix != ".toml":
        checked("--preset", preset)
        path = PRESETS / f"{preset}.toml"
        if not path.exists():
            known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.toml")))
            raise ConfigError(f"--preset {preset}: unknown; choose one of {known}, or name a .toml file")
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    config = load_config(path, [*options.set, *seed], getattr(options, "cluster", None))
    gated = gated_benchmarks(config)
    if not gated or _token_for(options, config):
        return config
    for name in gated:
        where = "a secret of cluster.secrets" if hasattr(options, "cluster") else "the environment"
        print(
            f"left out: data.benchmarks.{name}, which is gated: accept its terms on the hub and put HF_TOKEN into {where}, or set its "
            "id to a copy (ngrpo mirror)",
            file=sys.stderr,
        )
    return without_benchmarks(config, gated)


def checked(what: str, name: str) -> str:
    """Return what must be a name (see `ngrpo.section.check_name`), for example of a schedule.

    Args:
        what: What it names, for the message.
        name: What the user wrote.

    Raises:
        ConfigError: It cannot be a name.
    """
    try:
        return check_name(name)
    except ValueError as error:
        raise ConfigError(f"{what} {name!r}: {error}") from error


def _token_for(options: argparse.Namespace, config: RunConfig) -> bool:
    """Say whether the stages of a configuration will have a token of the hub."""
    if hasattr(options, "cluster"):
        return any("HF_TOKEN" in variables for variables in config.cluster.secrets.values())
    from huggingface_hub import get_token

    return get_token() is not None
