"""The pipeline: which stage follows which, and whose artifact it reads. No other module knows.

A function of this form is traced by the planner, and by nothing else: the plan holds all that it says.
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
        """Add a node that runs the stage `stage` and reads the artifacts of the nodes that its `inputs` are handles of.

        A stage that the run does not have (`Declaration.wanted`) is no node, and has no handle.

        Args:
            stage: Name of the stage; that of the node too, where there are no labels.
            labels: What tells this node from others of the same stage, lower-case letters, digits and `-`: `("grpo", "seed1")` makes the
                node `<stage>.grpo.seed1`.
            config: The whole configuration that the node has in place of the run's.
            settings: Settings that the node has in place of those, by their path, as in `{"training.steps": 40}`.
            inputs: By name of the input.
        """
        ...


def post_training(stage: StageTracer) -> None:
    """Post-train a model: warm start, N-GRPO, evaluation, promotion; and deployment, where it is asked for."""
    dataset = stage("prepare_data")
    index = stage("neighbor_index")
    warm_start = stage("sft_warm_start", dataset=dataset)
    trained = stage("ngrpo_training", dataset=dataset, neighbor_index=index, warm_start=warm_start)
    evaluation = stage("benchmark_evaluation", dataset=dataset, warm_start=warm_start, trained=trained)
    promotion = stage("model_promotion", trained=trained, evaluation=evaluation)
    stage("deploy", dataset=dataset, trained=trained, evaluation=evaluation, promotion=promotion)
