"""Facts of a run from its Argo Workflow: why its nodes failed, and whether it was cancelled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GROUPS = ("DAG", "Retry", "Steps", "StepGroup", "TaskGroup")
"""Types of nodes whose message only repeats that a node below them failed."""


def why_failed(workflow: Mapping[str, Any], task: str | None = None) -> str | None:
    """Return the message of the last failed node; None if none has a message.

    Args:
        workflow: The Workflow.
        task: Name of a task of the pipeline, whose driver and executor count; None for any node.
    """
    # For example `ngrpo-44gvd(0).root(0).prepare-data-driver(0)`, and `….prepare-data(0).executor(0)`.
    belongs = re.compile(rf"\.{re.escape(task)}(-driver)?(\(\d+\))?(\.|$)" if task is not None else "")
    failed = [
        node
        for node in (workflow.get("status") or {}).get("nodes", {}).values()
        if node.get("phase") in ("Failed", "Error") and node.get("message") and belongs.search(node["name"])
    ]
    last = sorted(failed, key=lambda node: (node.get("type") not in _GROUPS, node.get("finishedAt") or ""))
    return " ".join(last[-1]["message"].split()) if last else None


def was_cancelled(workflow: Mapping[str, Any]) -> bool:
    """Whether a run was cancelled, which Kubeflow does by setting its Workflow's deadline to zero."""
    return (workflow.get("spec") or {}).get("activeDeadlineSeconds") == 0
