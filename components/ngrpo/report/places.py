"""Where the report leads to: MLflow, the logs, the model, and the command that comes next."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

_USER = re.compile(r"//[^/@]*@")


@dataclass(frozen=True)
class Link:
    """A place: what it is called, and its address where a browser can go there."""

    text: str
    href: str | None


@dataclass(frozen=True)
class Places:
    """Where a run leads to."""

    mlflow: Link
    logs: list[Link]
    model: Link | None
    next: list[tuple[str, str]]
    """Commands, each with what it does."""


def places(report: Path, summary: Mapping[str, Any], artifacts: Mapping[str, Path]) -> Places:
    """Return where a run leads to. Links are relative, so that a workspace can be moved; nothing tells where it is.

    Args:
        report: The report's file.
        summary: `summary.json` of the run.
        artifacts: Directory of each node's artifact.
    """
    tracking = summary["mlflow"]
    uri, run_id = str(tracking.get("tracking_uri", "")), tracking["run_id"]
    served = uri.startswith(("http://", "https://"))
    address = f"{_USER.sub('//', uri).rstrip('/')}/#/runs/{quote(run_id, safe='')}" if served else None
    logs = [
        Link(name, f"logs/{quote(name)}.log")
        for name in summary["stages"]
        if (report.parent / "logs" / f"{name}.log").exists()
    ]
    model = artifacts.get("ngrpo_training")
    directory = None if model is None else model / "model"
    shown = directory is not None and directory.is_dir()
    place = Path(os.path.relpath(directory, report.parent)).as_posix() if shown and directory is not None else ""
    decision = summary.get("promotion") or {}
    version = decision.get("version")
    what = "champion" if decision.get("alias") == "champion" else "latest" if version is None else str(version)
    return Places(
        mlflow=Link(run_id, address),
        logs=logs,
        model=Link(place.lstrip("./"), quote(place)) if place else None,
        next=[
            *([] if served else [("ngrpo ui", "opens MLflow with this run")]),
            (f"ngrpo export {what} DIR", "writes the model as files that transformers and vLLM load"),
            ("ngrpo history", "says what was decided before, and why"),
        ],
    )
