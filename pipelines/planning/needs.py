"""What a run needs of the machine and of the network, known from its configuration alone."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config import CopiedModel, FilesSource, HubModel, HubSource, RunConfig, Source
from ngrpo.data.copies import is_copy
from ngrpo.data.locations import is_bucket, is_local
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.planning.nodes import Plan


def show_needs(config: RunConfig, plan: Plan, console: Console) -> None:
    """Print what each node asks for and what the run would fetch from outside."""
    console.print(_resources_table(config, plan))
    lines = downloads(config)
    console.print("Downloads:" if lines else "Downloads: none")
    for line in lines:
        console.print(f"  {escape(line)}", soft_wrap=True)


def _resources_table(config: RunConfig, plan: Plan) -> Table:
    table = Table(title="What each stage needs")
    table.add_column("stage")
    for column in ("GPUs", "cores", "memory"):
        table.add_column(column, justify="right")
    for node in plan:
        needs = config.needs(node.stage)
        gpus = f"{needs.gpus} x {needs.gpu_memory_gib} GiB" if needs.gpus else "-"
        table.add_row(node.name, gpus, str(needs.cpus), f"{needs.memory_gib} GiB")
    return table


def downloads(config: RunConfig) -> list[str]:
    """Return what a run would fetch from outside, a line each."""
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
    """Refuse a run whose stages ask for more GPUs than this machine has.

    Args:
        config: Configuration of the run.
        plan: Only nodes that have to run count.
        devices: Where the driver lists its devices.

    Raises:
        ConfigError: Names the first such stage.
    """
    present = sum(device.name.removeprefix("nvidia").isdigit() for device in devices.glob("nvidia*"))
    for stage in plan.stages_to_run:
        needs = config.needs(stage)
        if needs.gpus > present:
            raise ConfigError(
                f"resources.{stage}.gpus={needs.gpus} but this machine has {present}: run the preset on a machine that "
                f"has them, or set resources.{stage}.gpus={present}; --dry-run shows what it needs"
            )
