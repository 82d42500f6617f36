"""The commands of a cluster: `ngrpo compile`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ngrpo_kfp.pipelines.options import configured, on_cluster, read_config
from ngrpo_kfp.pipelines.runtime.workspace import Workspace

# The commands import what they need when they run: kfp, boto3 and MLflow take seconds.


def add_cluster_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    described = [configured(), on_cluster()]
    compiled = commands.add_parser("compile", parents=described, help="write the pipeline as a cluster runs it")
    compiled.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write (default: PRESET.yaml)")
    compiled.set_defaults(command=_compile)


def _compile(options: argparse.Namespace, workspace: Workspace, console: Console) -> None:
    from ngrpo_kfp.pipelines.runtime.compilation import compile_whole
    from ngrpo_kfp.pipelines.runtime.images import Images

    config = read_config(options)
    path = options.output or Path(f"{config.preset}.yaml")
    path.write_text(compile_whole(config, Images(options.images)), encoding="utf-8")
    console.print(f"pipeline  {path}")
