"""What is compared: arms, each with a run for every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ngrpo.contracts.evaluation import Evaluation
from ngrpo.ledger.spending import Cost, together


@dataclass(frozen=True)
class ComparedRun:
    """One run of an arm.

    Attributes:
        seed: Its seed.
        evaluation: Its `evaluation.json`.
        training: Artifact of its `ngrpo_training`, or `log_history.json` of it in a directory; none where there is none.
        samples: Artifact of its `benchmark_evaluation`, or `samples/trained/` of it in a directory; none where there is none.
        took: What each of its results took, by stage and key, whenever that was made; none where it is not known.
    """

    seed: int
    evaluation: Evaluation
    training: Path | None
    samples: Path | None
    took: Mapping[tuple[str, str], Cost | None] = field(default_factory=dict)

    @property
    def cost(self) -> Cost | None:
        """What all of its results took; none where that is not known of each."""
        return _sum(list(self.took.values()))

    @property
    def training_cost(self) -> Cost | None:
        """What its training took; none where that is not known, or there is none."""
        return _sum([cost for (stage, _), cost in self.took.items() if stage == "ngrpo_training"])


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


def _sum(costs: Sequence[Cost | None]) -> Cost | None:
    known = [cost for cost in costs if cost is not None]
    return together(known) if known and len(known) == len(costs) else None
