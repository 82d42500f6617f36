"""What a step executes, in a form that can be handed to other pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """See `ngrpo.stages.execution.execute`."""

    stage: str
    config_json: str
    key: str
    code_version: str
    inputs: Mapping[str, str]
    """References to the inputs, as JSON."""
