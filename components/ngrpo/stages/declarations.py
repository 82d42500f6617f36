"""The declaration of each stage. These facts are stated nowhere else, or `tests/pipeline/test_components.py` keeps both in step.

The order of the stages is in `pipelines/post_training.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ngrpo.checking.light_imports import light_imports
from ngrpo.config import (
    BenchmarkEvaluationConfig,
    ModelPromotionConfig,
    NeighborIndexConfig,
    NGRPOTrainingConfig,
    PrepareDataConfig,
    Section,
    SFTWarmStartConfig,
)
from ngrpo.evaluation.protocol import GRADER_LIBRARIES
from ngrpo.stages.context import Context

StageFunction = Callable[[Any, Mapping[str, Path], Path, Context], None]
"""Does the work of a stage, given settings, the directory of each input, an empty output directory and the context."""


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    """Name of the stage, of its module in `ngrpo.stages` and of its folder in the artifact store."""
    config: type[Section]
    """The part of a run's configuration that the stage reads."""
    artifact: Literal["Artifact", "Dataset", "Model"] = "Artifact"
    """Name of its artifact in kfp."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The stage that makes each input, by the input's name."""
    cacheable: bool = True
    """Whether a result in the store may replace a run; false for a stage with effects outside the store."""
    parallel: bool = False
    """Whether it runs as several processes, one per GPU, in a pod with several GPUs."""
    libraries: tuple[str, ...] = ()
    """Names of the distributions whose versions decide its result; see `ngrpo.stages.libraries` for those that settings select."""

    @property
    def module(self) -> str:
        """Dotted name of the module that does the work."""
        return f"ngrpo.stages.{self.name}"

    def function(self) -> StageFunction:
        """Import the stage's module, with all the libraries it works with, and return its `run`."""
        with light_imports():
            run: StageFunction = importlib.import_module(self.module).run
        return run


_MODELS = ("jinja2", "safetensors", "tokenizers", "torch", "transformers")
_TRAINING = ("accelerate", "datasets", "peft", "pyarrow", "trl")

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare_data",
            PrepareDataConfig,
            "Dataset",
            libraries=(*_MODELS, *GRADER_LIBRARIES, "datasets", "gguf", "pyarrow", "reasoning-gym"),
        ),
        Stage("neighbor_index", NeighborIndexConfig, libraries=(*_MODELS, "gguf")),
        Stage(
            "sft_warm_start",
            SFTWarmStartConfig,
            "Model",
            {"dataset": "prepare_data"},
            libraries=(*_MODELS, *_TRAINING, "gguf"),
        ),
        Stage(
            "ngrpo_training",
            NGRPOTrainingConfig,
            "Model",
            {"dataset": "prepare_data", "neighbor_index": "neighbor_index", "warm_start": "sft_warm_start"},
            parallel=True,
            libraries=(*_MODELS, *_TRAINING, *GRADER_LIBRARIES, "numpy", "regex", "vllm"),
        ),
        Stage(
            "benchmark_evaluation",
            BenchmarkEvaluationConfig,
            inputs={"dataset": "prepare_data", "warm_start": "sft_warm_start", "trained": "ngrpo_training"},
            libraries=(*_MODELS, *GRADER_LIBRARIES, "gguf", "numpy", "pyarrow", "vllm"),
        ),
        # The champion may change between two runs, so the decision is made every time.
        Stage(
            "model_promotion",
            ModelPromotionConfig,
            inputs={"trained": "ngrpo_training", "evaluation": "benchmark_evaluation"},
            cacheable=False,
            libraries=(*GRADER_LIBRARIES, "numpy", "pyarrow"),
        ),
    )
}
TRAININGS = ("sft_warm_start", "ngrpo_training")
"""Stages that train."""
