"""What is compared: arms, each with a run for every seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ngrpo.contracts.evaluation import Evaluation


@dataclass(frozen=True)
class ComparedRun:
    """One run of an arm.

    Attributes:
        seed: Its seed.
        evaluation: Its `evaluation.json`.
        training: Artifact of its `ngrpo_training`, or `log_history.json` of it in a directory; none where there is none.
        samples: Artifact of its `benchmark_evaluation`, or `samples/trained/` of it in a directory; none where there is none.
        gpu_seconds: Seconds of its training times the GPUs that it had; none where that is not known.
    """

    seed: int
    evaluation: Evaluation
    training: Path | None
    samples: Path | None
    gpu_seconds: float | None


@dataclass(frozen=True)
class Arm:
    """Runs that differ by their seed alone.

    Attributes:
        name: What the arm is called.
        runs: Its runs that finished.
        failed: Why a run has no result, by seed.
    """

    name: str
    runs: tuple[ComparedRun, ...]
    failed: Mapping[int, str] = field(default_factory=dict)

    @property
    def by_seed(self) -> dict[int, ComparedRun]:
        """The runs by seed, in order."""
        return {run.seed: run for run in sorted(self.runs, key=lambda run: run.seed)}
