"""The pipeline: which stage follows which, and whose artifact it reads. No other module knows.

The function is traced: by the planner, whose `stage` returns what is planned for a stage, and by the builder of the Kubeflow
pipeline, whose `stage` makes a task of it.
"""

from __future__ import annotations

from typing import Any, Protocol

NAME = "ngrpo-post-training"


class StageTracer(Protocol):
    """Called once for each stage, in order; returns a handle that later stages take as input."""

    def __call__(self, name: str, /, **inputs: Any) -> Any:
        """Add the stage `name`, which reads the artifacts of the stages that its `inputs` are handles of."""
        ...


def post_training(stage: StageTracer) -> None:
    """Post-train a model: warm start, N-GRPO, evaluation, promotion."""
    dataset = stage("prepare_data")
    index = stage("neighbor_index")
    warm_start = stage("sft_warm_start", dataset=dataset)
    trained = stage("ngrpo_training", dataset=dataset, neighbor_index=index, warm_start=warm_start)
    evaluation = stage("benchmark_evaluation", dataset=dataset, warm_start=warm_start, trained=trained)
    stage("model_promotion", trained=trained, evaluation=evaluation)
