"""A comparison in a few lines, for experiments with small stages: tests look at its input, and at the use of its output."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ngrpo.errors import ConfigError

JSON, PAGE = "comparison.json", "comparison.html"


@dataclass(frozen=True)
class ComparedRun:
    seed: int
    evaluation: dict
    training: Path | None
    samples: Path | None
    took: Mapping


@dataclass(frozen=True)
class Arm:
    name: str
    runs: tuple[ComparedRun, ...]
    failed: Mapping[int, str]


def compare(arms, *, baseline, benchmark, measure, margin, published=None, prices=None):
    if not any(arm.name == baseline and arm.runs for arm in arms):
        raise ConfigError(f"baseline {baseline}: no run of it has finished")
    return {
        "arms": {
            arm.name: {
                "means": {run.seed: run.evaluation["models"]["trained"][benchmark]["mean"] for run in arm.runs},
                "training": [sorted(path.name for path in run.training.iterdir()) for run in arm.runs],
                "took": [
                    sorted(stage for (stage, _), cost in run.took.items() if cost is not None) for run in arm.runs
                ],
                "failed": dict(arm.failed),
            }
            for arm in arms
        },
        "asked": [baseline, benchmark, measure, margin, published],
    }


def write_comparison(comparison, directory):
    (directory / JSON).write_text(json.dumps(comparison))
    (directory / PAGE).write_text("<html>comparison")


def comparison_table(comparison):
    table = Table("arm", "seeds", "failed")
    for name, arm in comparison["arms"].items():
        table.add_row(name, str(len(arm["means"])), str(len(arm["failed"])))
    return table
