"""The GPUs and the processor of this machine, for the ledger: how many GPUs a process can see, and the energy that they have used."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ngrpo.grading.cores import usable_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPUS = Path("/proc/driver/nvidia/gpus")
_PROCESSORS = Path("/proc/cpuinfo")
_MODEL = re.compile(r"^(?:Model|model name)\s*:\s*(.+)$", re.MULTILINE)


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Return the GPUs that this process may use: their numbers, or what `CUDA_VISIBLE_DEVICES` calls them.

    Args:
        devices: Where the driver lists its devices.
    """
    numbers = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia*"))
    present = sorted((name for name in numbers if name.isdigit()), key=int)
    chosen = os.environ.get(_VISIBLE)
    if chosen is None or not present:
        return present
    return [name for each in chosen.split(",") if (name := each.strip()) and not name.startswith("-")]


def energy_used(gpus: Sequence[str]) -> list[float] | None:
    """Return the joules that each GPU has used since its driver was loaded, by the counter of NVML; none where it is not told.

    It is told by GPUs since Volta, to programs that have `nvidia-ml-py`; not for a slice of a GPU (MIG).

    Args:
        gpus: The GPUs, as `visible_gpus` names them.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
                for gpu in gpus
            ]
            return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000 for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


@cache
def processor_of(processors: Path = _PROCESSORS) -> str:
    """Return the cores that this process may use, and their model: `8 cores, AMD EPYC 9654`."""
    return f"{usable_cores()} cores, {_first_model(processors) or platform.machine()}"


def hardware(gpus: Sequence[str], described: Path = _GPUS) -> str:
    """Return what a stage runs on in words: its GPUs and their model, or the processor where it has none.

    Args:
        gpus: Its GPUs.
        described: Where the driver describes them.
    """
    if not gpus:
        return processor_of()
    models = sorted({_first_model(path) or "GPU" for path in described.glob("*/information")}) or ["GPU"]
    return f"{len(gpus)} x {', '.join(models)}"


def _first_model(path: Path) -> str | None:
    try:
        found = _MODEL.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # another system, or a driver that does not say
        return None
    return " ".join(found[1].split()) if found else None
