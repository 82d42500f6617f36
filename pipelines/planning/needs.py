"""What a run needs from machine and network, computed from its configuration alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config import CopiedModel, FilesSource, HubModel, HubSource, RunConfig, Source
from ngrpo.data.copies import is_copy
from ngrpo.data.locations import is_bucket, is_local
from ngrpo.errors import ConfigError
from ngrpo.sizing.amounts import MIB, Amount
from ngrpo.sizing.fit import gpu_cure, misfits
from ngrpo.sizing.model_shape import model_shape
from ngrpo.sizing.stages import needs_of
from ngrpo_kfp.pipelines.planning.nodes import Plan

_PATIENCE = 20.0
"""Seconds to wait for `nvidia-smi`."""


def show_needs(config: RunConfig, plan: Plan, console: Console) -> None:
    """Print the needs and requests of each node that has to run, their parts, and everything the run would download."""
    show_amounts(config, plan, console)
    for line in _explanations(config, plan):
        console.print(escape(line))
    lines = downloads(config)
    console.print("Downloads:" if lines else "Downloads: none")
    for line in lines:
        console.print(f"  {escape(line)}", soft_wrap=True)


def show_amounts(config: RunConfig, plan: Plan, console: Console) -> None:
    """Print the largest need and the request of each node that has to run."""
    if not plan.to_run:
        return
    shape = model_shape(config.model.source)
    table = Table(title="What each stage needs at most, of what it asks for (GiB)")
    table.add_column("stage", overflow="fold")
    for column in ("GPUs", "of each", "cores", "memory", "scratch"):
        table.add_column(column, justify="right", overflow="fold")
    for node in plan.to_run:
        asked = config.needs(node.stage)
        needs = None if shape is None else needs_of(config, node.stage, shape)
        gpus = f"{asked.gpus} x {asked.gpu_memory_gib} GiB" if asked.gpus else "-"
        table.add_row(
            node.name,
            gpus,
            _amount(None if needs is None else needs.gpu, None) if asked.gpus else "-",
            str(asked.cpus),
            _amount(None if needs is None else needs.memory, asked.memory_gib),
            _amount(None if needs is None else needs.scratch, config.cluster.scratch_of(asked)),
        )
    console.print(table)
    if shape is None:
        console.print("?: the shape of the model is not known here, so that nothing can be computed (docs/sizing.md)")


def _amount(needed: Amount | None, asked: int | None) -> str:
    said = "?" if needed is None else str(needed.gib)
    return said if asked is None else f"{said} of {asked}"


def _explanations(config: RunConfig, plan: Plan) -> Iterator[str]:
    """Yield the parts of each amount, and the estimated time, of every node that has to run."""
    shape = model_shape(config.model.source)
    for node in plan.to_run:
        needs = None if shape is None else needs_of(config, node.stage, shape)
        if needs is None:
            continue
        amounts = {"each GPU": needs.gpu, "memory": needs.memory, "scratch": needs.scratch}
        said = [f"{name}: {amount.text}" for name, amount in amounts.items() if amount is not None and amount.terms]
        yield "; ".join([f"{node.name}  {said[0]}", *said[1:], f"time: {needs.duration.text}"])


def require_fit(config: RunConfig, plan: Plan) -> None:
    """Refuse a run on this machine whose stages need more memory per GPU than they request.

    Raises:
        ConfigError: A line for each.
    """
    lines = [misfit.line for misfit in misfits(config, plan.stages_to_run) if not misfit.on_cluster]
    if lines:
        raise ConfigError("\n".join(lines))


def downloads(config: RunConfig) -> list[str]:
    """Return everything a run would download, one line each."""
    lines = []
    model = config.model.source
    if isinstance(model, CopiedModel) and not is_local(model.location):
        lines.append(f"model {model.location}{_at(model)}")
    sources: dict[str, Source | None] = {
        **config.data.training_sets(),
        "warm_start": config.data.warm_start,
        **{f"benchmark {config.title(name)}": source for name, source in config.data.benchmarks.items()},
    }
    for name, source in sources.items():
        if isinstance(source, HubSource) and not is_local(source.id):
            subset = f", {source.subset}" if source.subset else ""
            lines.append(f"data set {source.id}{subset} ({name}, split {source.split}){_at(source)}")
        elif isinstance(source, FilesSource) and is_bucket(source.path):
            lines.append(f"files {source.path} ({name})")
    return lines


def _at(source: CopiedModel | HubSource) -> str:
    return "" if not isinstance(source, HubModel | HubSource) or is_copy(source) else f" at {source.revision}"


def require_gpus(config: RunConfig, plan: Plan, devices: Path = Path("/dev")) -> None:
    """Refuse a run whose stages ask for more GPUs than this machine has, or need more memory than the smallest of them has.

    Args:
        config: Configuration of the run.
        plan: Only nodes that have to run count.
        devices: Where the driver lists its devices.

    Raises:
        ConfigError: Names the first such stage.
    """
    present = sum(device.name.removeprefix("nvidia").isdigit() for device in devices.glob("nvidia*"))
    smallest = min(gpu_memories(), default=None) if present else None
    for stage in plan.stages_to_run:
        asked = config.needs(stage)
        if asked.gpus > present:
            raise ConfigError(
                f"resources.{stage}.gpus={asked.gpus} but this machine has {present}: run the preset on a machine that "
                f"has them, or set resources.{stage}.gpus={present}; --dry-run shows what it needs"
            )
        if asked.gpus and asked.gpu_memory_gib and smallest is not None:
            _require_memory(config, stage, smallest)


def _require_memory(config: RunConfig, stage: str, mib: int) -> None:
    needs = needs_of(config, stage)
    if needs is not None and needs.gpu is not None and needs.gpu.bytes > mib * MIB:
        raise ConfigError(
            f"{stage}: up to {needs.gpu.gib} GiB of each GPU are needed ({needs.gpu.largest_terms}) but a GPU of this machine has "
            f"{mib / 1024:.1f}; {gpu_cure(config, stage)}; resources.{stage}.gpu_memory_gib=0 leaves this check out"
        )


def gpu_memories() -> list[int]:
    """Return the memory of each GPU of this machine in MiB, from `nvidia-smi`; none if there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # the stage will report a driver that does not answer
    return [int(line) for line in said.split() if line.isdigit()]
