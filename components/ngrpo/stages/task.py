"""What a stage is to do, in a form that can be handed to another process or pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """See `ngrpo.stages.step.execute`; it is done by `ngrpo.stages.execution.run_task`."""

    stage: str
    config_json: str
    key: str
    code_version: str
    inputs: Mapping[str, str]
    """References to the inputs: as JSON, or the files that hold them, which other pods do not have."""
    output: str = ""
    """File to write the reference to the result to; none if empty."""
    metrics: str = ""
    """File to write the metrics to, as JSON; none if empty."""
    node: str = ""
    """Name of its place in the pipeline; empty where that is called like the stage."""

    @property
    def node_name(self) -> str:
        """Name of its place in the pipeline: of its log, its record, its pods and its MLflow run."""
        return self.node or self.stage
