"""Cheap check of the engine: can vLLM serve a model that the run itself initializes?"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from ngrpo.checking.findings import Finding
from ngrpo.config import InitializedModel, RunConfig
from ngrpo.data.vllm_classes import head_size_problem


def check_engine(config: RunConfig) -> Iterator[Finding]:
    """Check the head size of a model with random weights against vLLM's CPU build, where no stage with that engine has a GPU.

    Other models are checked when their files are read (`ngrpo.data.vllm_service`).
    """
    source = config.model.source
    if not isinstance(source, InitializedModel) or not _only_cpu():
        return
    problem = head_size_problem(source.hidden_size // source.heads)
    if problem is None:
        return
    for name, section, stage in (
        ("rollout", config.rollout, "ngrpo_training"),
        ("evaluation", config.evaluation, "benchmark_evaluation"),
    ):
        if section.engine != "vllm" or "hf_overrides" in section.vllm.options or config.needs(stage).gpus:
            continue
        yield Finding(
            "error",
            f"{name}.engine",
            f"{name}.engine='vllm': {problem}",
            f"set {name}.engine='transformers', or give {stage} a GPU (resources.{stage}.gpus=1)",
        )


def _only_cpu() -> bool:
    """Say whether the installed torch is a build without GPUs, without importing it."""
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False
