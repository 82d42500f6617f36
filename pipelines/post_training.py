"""The pipeline: the order of the stages, and the artifacts that each reads. It is defined only here.

The planner traces this function, and nothing else calls it: the plan contains all of its information.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ngrpo.config import RunConfig

NAME = "ngrpo-post-training"


class StageTracer(Protocol):
    """Called once for each node of the pipeline, in order; returns a handle that later nodes take as input."""

    def __call__(
        self,
        stage: str,
        /,
        *labels: str,
        settings: Mapping[str, Any] | None = None,
        config: RunConfig | None = None,
        **inputs: Any,
    ) -> Any:
        """Add a node that runs the stage `stage` and reads the artifacts of the nodes whose handles are its `inputs`.

        For a stage that is not part of the run (`Declaration.wanted`) there is no node and no handle.

        Args:
            stage: Name of the stage; without labels also the name of the node.
            labels: Distinguish this node from others of the same stage; lower-case letters, digits and `-`. `("grpo", "seed1")` makes the
                node `<stage>.grpo.seed1`.
            config: A whole configuration for the node, in place of the run's.
            settings: Settings that override the configuration for the node, by path: `{"training.steps": 40}`.
            inputs: Handles by name of the input.
        """
        ...


def post_training(stage: StageTracer) -> None:
    """Post-train a model: warm start, N-GRPO, evaluation, promotion; and deployment, if it is requested."""
    dataset = stage("prepare_data")
    index = stage("neighbor_index")
    warm_start = stage("sft_warm_start", dataset=dataset)
    trained = stage("ngrpo_training", dataset=dataset, neighbor_index=index, warm_start=warm_start)
    evaluation = stage("benchmark_evaluation", dataset=dataset, warm_start=warm_start, trained=trained)
    promotion = stage("model_promotion", trained=trained, evaluation=evaluation)
    stage("deploy", dataset=dataset, trained=trained, evaluation=evaluation, promotion=promotion)
