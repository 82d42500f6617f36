"""The task of a stage, in a form that can be passed to another process or pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """See `ngrpo.stages.step.execute` for the fields; `ngrpo.stages.execution.run_task` does it."""

    stage: str
    config_json: str
    key: str
    code_version: str
    inputs: Mapping[str, str]
    """References to the inputs, as JSON or as the files that hold them, which other pods lack."""
    output: str = ""
    """File to write the reference to the result to; none if empty."""
    metrics: str = ""
    """File to write the metrics to, as JSON; none if empty."""
    node: str = ""
    """Name of its node in the pipeline; empty if it is that of the stage."""

    @property
    def node_name(self) -> str:
        """Name of its node in the pipeline, which its log, record, pods and MLflow run share."""
        return self.node or self.stage
