"""The table of what every preset needs, in docs/sizing.md; run as a script, writes it again."""

from pathlib import Path

from ngrpo.config import RunConfig, load_config
from ngrpo.sizing.stages import needs_of
from ngrpo.stages.declarations import STAGES

DOCUMENT = Path(__file__).parents[1] / "docs" / "sizing.md"
PRESETS = Path(__file__).parents[1] / "pipelines" / "presets"
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))
ON_GPUS = [name for name in NAMES if name not in ("tiny", "countdown", "smollm2")]
VLLM = ("rollout.engine=vllm", "evaluation.engine=vllm")
"""The engine of the presets for GPUs."""
BEGIN, END = "<!-- table: python tests/sizing_table.py -->\n", "<!-- end of table -->\n"


def preset(name: str, *overrides: str) -> RunConfig:
    """Return a preset."""
    return load_config(PRESETS / f"{name}.toml", overrides)


def table() -> str:
    """Return the table: a row for a stage of a preset, in GiB; presets with the same amounts share their rows."""
    presets: dict[tuple[str, ...], list[str]] = {}
    for name in NAMES:
        presets.setdefault(tuple(_rows(preset(name, *(VLLM if name in ON_GPUS else ())))), []).append(f"`{name}`")
    lines = ["| preset | stage | each GPU | memory | scratch |", "|---|---|---|---|---|"]
    for rows, names in presets.items():
        lines += [f"| {', '.join(names) if row == rows[0] else ''} | {row}" for row in rows]
    return "\n".join(lines) + "\n"


def _rows(config: RunConfig) -> list[str]:
    rows = []
    for stage in STAGES:
        needs, asked = needs_of(config, stage), config.needs(stage)
        assert needs is not None, "the model of every preset is known"
        gpu = f"{needs.gpu.gib} of {asked.gpu_memory_gib}" if needs.gpu else "–"
        scratch = f"{needs.scratch.gib} of {config.cluster.scratch_of(asked)}"
        rows.append(f"`{stage}` | {gpu} | {needs.memory.gib} of {asked.memory_gib} | {scratch} |")
    return rows


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
