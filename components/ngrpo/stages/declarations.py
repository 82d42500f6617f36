"""The stages by name: their settings and the module that does the work.

The order of the stages and who reads whose artifact is not known here: see `pipelines/post_training.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

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

StageFunction = Callable[[Section, Mapping[str, Path], Path, Path], None]


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    """Name of the stage, of its module in `ngrpo.stages` and of its folder in the artifact store."""
    config: type[Section]
    """The part of a run's configuration that the stage reads; the module's `CONFIG`."""
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
        run: StageFunction = importlib.import_module(self.module).run
        return run


_MODELS = ("jinja2", "safetensors", "tokenizers", "torch", "transformers")
_TRAINING = ("accelerate", "datasets", "pyarrow", "trl")

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare_data",
            PrepareDataConfig,
            libraries=(*_MODELS, *GRADER_LIBRARIES, "datasets", "gguf", "pyarrow", "reasoning-gym"),
        ),
        Stage("neighbor_index", NeighborIndexConfig, libraries=(*_MODELS, "gguf")),
        Stage("sft_warm_start", SFTWarmStartConfig, libraries=(*_MODELS, *_TRAINING, "gguf")),
        Stage(
            "ngrpo_training",
            NGRPOTrainingConfig,
            parallel=True,
            libraries=(*_MODELS, *_TRAINING, *GRADER_LIBRARIES, "numpy", "vllm"),
        ),
        Stage(
            "benchmark_evaluation",
            BenchmarkEvaluationConfig,
            libraries=(*_MODELS, *GRADER_LIBRARIES, "gguf", "numpy", "pyarrow", "vllm"),
        ),
        # The champion moves between two runs: a decision is made anew every time.
        Stage(
            "model_promotion", ModelPromotionConfig, cacheable=False, libraries=(*GRADER_LIBRARIES, "numpy", "pyarrow")
        ),
    )
}
