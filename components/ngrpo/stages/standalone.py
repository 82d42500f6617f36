"""Run one stage over local directories, without object storage, MLflow or Kubeflow."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ngrpo.config import load_config, select
from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.stages.context import Context
from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.surroundings import processes, save_minutes


class _Inputs(dict[str, Path]):
    def __missing__(self, name: str) -> Path:
        raise ConfigError(f"--input {name}=DIR is missing: the stage reads that artifact")


def main(stage: str, arguments: Sequence[str] | None = None) -> None:
    """Run a stage as `python -m ngrpo.stages.<stage>` and exit with its code.

    Args:
        stage: Name of the stage.
        arguments: Command line; by default that of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m ngrpo.stages.{stage}", description=f"Run the stage `{stage}`.")
    parser.add_argument("--preset", type=Path, required=True, metavar="FILE", help="configuration of a run (TOML)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override a setting")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=DIR", help="artifact of an earlier stage")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="directory for the artifact; must be empty"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="directory for unfinished work (default: OUTPUT.work)")
    options = parser.parse_args(arguments)
    try:
        with addresses_without_users():
            _run(stage, options)
    except NGRPOError as error:
        sys.exit(f"{stage}: {redacted(str(error))}")


def _run(stage: str, options: argparse.Namespace) -> None:
    inputs = _Inputs()
    for item in options.input:
        name, separator, directory = item.partition("=")
        if not separator or not Path(directory).is_dir():
            raise ConfigError(f"--input {item}: expected NAME=DIR with an existing directory")
        inputs[name] = Path(directory)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise ConfigError(f"--output {output}: the directory is not empty; empty it or name another one")
    work: Path = options.work or output.with_name(output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    config = select(load_config(options.preset, options.set), DECLARED[stage].config)
    context = Context(
        work=work,
        store=os.environ.get("NGRPO_STORE") or None,
        save_minutes=save_minutes(),
        processes=processes(),
        reporters=("mlflow",) if os.environ.get("MLFLOW_RUN_ID") else (),
        variable=os.environ.get,
    )
    DECLARED[stage].function()(config, inputs, output, context)
