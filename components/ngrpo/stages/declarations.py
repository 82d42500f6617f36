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

    @property
    def module(self) -> str:
        """Dotted name of the module that does the work."""
        return f"ngrpo.stages.{self.name}"

    def function(self) -> StageFunction:
        """Import the stage's module, with all the libraries it works with, and return its `run`."""
        run: StageFunction = importlib.import_module(self.module).run
        return run


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prepare_data", PrepareDataConfig),
        Stage("neighbor_index", NeighborIndexConfig),
        Stage("sft_warm_start", SFTWarmStartConfig),
        Stage("ngrpo_training", NGRPOTrainingConfig, parallel=True),
        Stage("benchmark_evaluation", BenchmarkEvaluationConfig),
        # The champion moves between two runs: a decision is made anew every time.
        Stage("model_promotion", ModelPromotionConfig, cacheable=False),
    )
}
