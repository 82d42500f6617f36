"""`deployment.json` of the stage `deploy`: whether a promoted model is served, and on what evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import FiniteFloat
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.contracts.evaluation import Interval
from ngrpo.contracts.layout import read_layout, write_json

DEPLOYMENT = "deployment.json"
REPLACED = "deployments"
"""Folder of the artifact store with the service that a run found before it deployed its own: `<run>/<name>.json`."""


class Difference(TypedDict):
    """Endpoint minus stage on a benchmark: mean@n in percentage points, with its interval."""

    value: FiniteFloat
    interval: Interval


class Deployment(TypedDict):
    """The file: `deployed` with the differences by benchmark, or `skipped` where the version is not the champion."""

    layout: Literal[1]
    decision: Literal["deployed", "skipped"]
    reason: str
    model: str
    version: int
    differences: dict[str, Difference]


def write_deployment(artifact: Path, deployment: Deployment) -> None:
    """Write what became of a deployment into the artifact of its stage."""
    write_json(artifact / DEPLOYMENT, deployment)


def read_deployment(artifact: Path, cure: str) -> Deployment:
    """Return the outcome of a deployment.

    Raises:
        StoreError: The file cannot be read, is damaged, or has another layout version.
    """
    return read_layout(artifact / DEPLOYMENT, Deployment, cure=cure)
