"""GPUs and processor of this machine: which GPUs a process can see, their energy, and the hardware in words."""

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
    """Return the GPUs that this process may use: their indices, or their names in `CUDA_VISIBLE_DEVICES`.

    Args:
        devices: Directory with the driver's device files.
    """
    numbers = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia*"))
    present = sorted((name for name in numbers if name.isdigit()), key=int)
    chosen = os.environ.get(_VISIBLE)
    if chosen is None or not present:
        return present
    return [name for each in chosen.split(",") if (name := each.strip()) and not name.startswith("-")]


def energy_used(gpus: Sequence[str]) -> list[float] | None:
    """Return the energy that each GPU has used since its driver was loaded, in joules, from NVML; None if it is not available.

    It takes GPUs since Volta and the package `nvidia-ml-py`, and is not available for a MIG slice.

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
    """Return number and model of the cores that this process may use: `8 cores, AMD EPYC 9654`."""
    return f"{usable_cores()} cores, {_first_model(processors) or platform.machine()}"


def hardware(gpus: Sequence[str], described: Path = _GPUS) -> str:
    """Return the hardware of a stage in words: number and model of its GPUs, or the processor if it has none.

    Args:
        gpus: Its GPUs.
        described: Directory in which the driver describes them.
    """
    if not gpus:
        return processor_of()
    models = sorted({_first_model(path) or "GPU" for path in described.glob("*/information")}) or ["GPU"]
    return f"{len(gpus)} x {', '.join(models)}"


def _first_model(path: Path) -> str | None:
    try:
        found = _MODEL.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # not Linux, or the driver gives no description
        return None
    return " ".join(found[1].split()) if found else None
