"""The stages, each declared once: what is here is known nowhere else, or is held to this by `tests/pipeline/test_components.py`.

The order of the stages is not known here: see `pipelines/post_training.py`.
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
"""Does the work of a stage: settings, the directory of each input, an empty directory for the artifact, and what is outside."""


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    """Name of the stage, of its module in `ngrpo.stages` and of its folder in the artifact store."""
    config: type[Section]
    """The part of a run's configuration that the stage reads."""
    artifact: Literal["Artifact", "Dataset", "Model"] = "Artifact"
    """What kfp calls its artifact."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """By name of an input, the stage whose artifact it is."""
    cacheable: bool = True
    """Whether a result found in the store may stand for a run; not for a stage with effects outside the store."""
    parallel: bool = False
    """Whether it works as several processes, one a GPU, where its pod has several."""
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
        # The champion moves between two runs: a decision is made anew every time.
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
