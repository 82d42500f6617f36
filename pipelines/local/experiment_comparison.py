"""The comparison of an experiment: its input for `ngrpo.report.comparison`, and its output files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ngrpo.contracts.evaluation import EVALUATION, Evaluation, read_evaluation
from ngrpo.ledger.spending import Cost, recorded_cost
from ngrpo.report.phases import Phase
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.local.workspace import written
from ngrpo_kfp.pipelines.planning.experiment import ArmRun
from ngrpo_kfp.pipelines.planning.experiment_plan import ExperimentPlan
from ngrpo_kfp.pipelines.planning.nodes import PlannedStage

if TYPE_CHECKING:
    from ngrpo.report.comparison import Arm

_CURE = "run the experiment again"
_LOG = "log_history.json"
_SAMPLES = "samples/trained/"


@dataclass(frozen=True)
class Outcome:
    """Outcome of the runs of an experiment."""

    made: Mapping[str, Reference]
    """Results by key, earlier ones and those of this run."""
    failed: Mapping[ArmRun, str] = field(default_factory=dict)
    """Why a run failed, or was not started."""
    failed_keys: Mapping[ArmRun, str] = field(default_factory=dict)
    """Key of the node that failed."""

    def reference(self, node: PlannedStage | None) -> Reference | None:
        """Return the result of a node, if there is one."""
        return None if node is None else node.reference or self.made.get(node.key)


class ComparedArms:
    """The arms of an experiment with the results of their finished runs."""

    def __init__(self, planned: ExperimentPlan, outcome: Outcome, store: ArtifactStore, shown: Phase) -> None:
        """Fetch the evaluations and their samples of the trained models.

        Args:
            planned: The plan of the experiment.
            outcome: Its outcome.
            store: Where the results are.
            shown: Where progress is shown.

        Raises:
            StoreError: A result is gone, or does not match its manifest.
        """
        self._planned, self._outcome, self._store = planned, outcome, store
        self.evaluations: dict[ArmRun, Evaluation] = {}
        self._directories: dict[ArmRun, Path] = {}
        found = [
            (run, reference)
            for run in planned.nodes
            for reference in [outcome.reference(planned.of(run, "benchmark_evaluation"))]
            if run.arm not in planned.merged and reference is not None and run not in outcome.failed
        ]
        for run, reference in shown.each(found, "reading", "runs"):
            self._directories[run] = store.fetch(reference, only=(EVALUATION, _SAMPLES))
            self.evaluations[run] = read_evaluation(self._directories[run] / EVALUATION, _CURE)
        shown.now("comparing the arms")

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The numbers of the trained model by arm and benchmark, averaged over the seeds that have them."""
        values: dict[str, dict[str, list[float]]] = {}
        for run, evaluation in self.evaluations.items():
            for benchmark, result in evaluation["models"]["trained"].items():
                for name, value in _numbers(result):
                    values.setdefault(run.arm, {}).setdefault(f"{benchmark}/{name}", []).append(value)
        return {
            arm: {name: sum(each) / len(each) for name, each in of_arm.items()} | {"seeds": float(self._seeds(arm))}
            for arm, of_arm in values.items()
        }

    def compare(self, directory: Path, console: Console, *, as_json: bool = False) -> list[Path]:
        """Compare the arms, show the result, and return its files.

        Args:
            directory: Gets the files.
            console: Where the tables are shown.
            as_json: Print `comparison.json` in place of the tables.

        Raises:
            ConfigError: The runs cannot be compared, for example because they were measured in different ways.
        """
        from ngrpo.report.comparison import JSON, PAGE, compare, comparison_table, write_comparison

        file = self._planned.experiment.file
        comparison = compare(
            self._arms(),
            baseline=file.baseline,
            benchmark=file.benchmark,
            measure=file.measure,
            margin=file.equivalence,
            published=file.published,
            prices=self._planned.experiment.baseline.costs,
        )
        with written(directory):
            write_comparison(comparison, directory)
        if as_json:
            console.print((directory / JSON).read_text(encoding="utf-8"), soft_wrap=True, markup=False)
        else:
            console.print(comparison_table(comparison))
        return [directory / JSON, directory / PAGE]

    def _arms(self) -> list[Arm]:
        from ngrpo.report.comparison import Arm, ComparedRun

        arms = []
        for arm in self._planned.arms:
            runs = [run for run in self._planned.nodes if run.arm == arm]
            compared = tuple(
                ComparedRun(
                    seed=run.seed,
                    evaluation=self.evaluations[run],
                    training=self._training(run),
                    samples=self._directories[run],
                    took=took_by_results(self._results(run), self._store),
                )
                for run in runs
                if run in self.evaluations
            )
            failed = {
                run.seed: self._outcome.failed.get(run, "has not run") for run in runs if run not in self.evaluations
            }
            arms.append(Arm(name=arm, runs=compared, failed=failed))
        return arms

    def _seeds(self, arm: str) -> int:
        return sum(run.arm == arm for run in self.evaluations)

    def _training(self, run: ArmRun) -> Path | None:
        """Return the log of a training; none if the pipeline has no training."""
        reference = self._outcome.reference(self._planned.of(run, "ngrpo_training"))
        return None if reference is None else self._store.fetch(reference, only=_LOG)

    def _results(self, run: ArmRun) -> list[tuple[str, str]]:
        """Return the stage and the key of each result of a run."""
        return [(node.stage, node.key) for node in map(self._planned.plan.__getitem__, self._planned.nodes[run])]


def took_by_results(results: Iterable[tuple[str, str]], store: ArtifactStore) -> dict[tuple[str, str], Cost | None]:
    """Return what results took, whenever they were made; none where it is not known.

    Args:
        results: The stage and the key of each.
        store: Where they are.

    Raises:
        StoreError: The store cannot be reached.
    """
    return {(stage, key): recorded_cost(store.objects, stage, key) for stage, key in dict.fromkeys(results)}


def _numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a result by name; values by K, such as `pass_at_k`, one by one: `pass_at_4`."""
    for name, value in result.items():
        if isinstance(value, int | float):
            yield name, float(value)
        elif name.endswith("_at_k"):
            yield from ((f"{name.removesuffix('k')}{k}", float(each)) for k, each in value.items())


def node_summaries(planned: ExperimentPlan, run: ArmRun, outcome: Outcome, seconds: Mapping[str, float]) -> Any:
    """Return the entries of `summary.json` for the nodes of a run that have a result (`NodeSummary`)."""
    found = {name: outcome.reference(planned.plan[name]) for name in planned.nodes[run]}
    return {
        name: {
            "key": reference.key,
            "artifact": reference.uri,
            "digest": reference.digest,
            "seconds": seconds.get(reference.key),
        }
        for name, reference in found.items()
        if reference is not None
    }
