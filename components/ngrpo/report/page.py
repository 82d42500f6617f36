"""The report of a run: one HTML page that needs nothing else, neither network nor scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ngrpo.config import RunConfig
from ngrpo.contracts.evaluation import EVALUATION, Evaluation, read_evaluation
from ngrpo.contracts.history import read_history
from ngrpo.contracts.layout import read_bytes
from ngrpo.contracts.metrics import read_metrics
from ngrpo.contracts.promotion import Promotion, read_promotion
from ngrpo.contracts.sources import read_sources
from ngrpo.report.failures import FailureGallery, failure_galleries, is_confidential
from ngrpo.report.last_run import LastRun, against_champion, against_last_run
from ngrpo.report.lineage import costs_view, settings_text, stage_views, table_views, timings
from ngrpo.report.neighbors import neighbor_changes, neighbors_view
from ngrpo.report.places import places
from ngrpo.report.promotion import Comparison, comparisons, promotion_sentence, signature_sentence
from ngrpo.report.results import STYLES, BenchmarkView, benchmark_views, headline, signed
from ngrpo.report.rollouts import RolloutView, rollout_views
from ngrpo.report.training import MixingView, Panel, learning_curves, mixing_view, warm_start_curve
from ngrpo.report.wording import describe, method_name, printable
from ngrpo.storage.state import DamagedStateError

_TEMPLATE = "page.html.j2"
_CURE = "run the preset again"


@dataclass(frozen=True)
class EvaluationView:
    """An evaluation: its benchmarks, those that selected the checkpoint apart, and the failures if the problems are available."""

    node: str
    test: list[BenchmarkView]
    validation: list[BenchmarkView]
    headline: str
    last_run: str | None
    galleries: list[FailureGallery] | None

    @property
    def benchmarks(self) -> list[BenchmarkView]:
        """All of them."""
        return [*self.test, *self.validation]


@dataclass(frozen=True)
class PromotionView:
    """A decision: `promotion.json`, in a sentence, against the champion, and problem by problem."""

    node: str
    decision: Promotion
    sentence: str
    signature: str
    champion: str
    comparisons: list[Comparison]


@dataclass(frozen=True)
class TrainingView:
    """A training: its curves, how it mixed, and rollouts where their text may be published."""

    node: str
    curves: list[Panel]
    not_logged: list[str]
    selected_step: float | None
    mixing: MixingView
    rollouts: list[RolloutView] | None


def write_report(
    path: Path,
    *,
    summary: dict[str, Any],
    config: RunConfig,
    artifacts: dict[str, Path],
    last_run: LastRun | None = None,
) -> None:
    """Write the report of a run.

    What a model or a data set says is untrusted: the template escapes it, and the page forbids scripts and requests. Every node is shown;
    those of one stage stand below each other, under their names.

    Args:
        path: File to write; logs and models are linked relative to it.
        summary: `summary.json` of the run.
        config: Its configuration.
        artifacts: Directory of each node's artifact. A stage may have none: the page then says so where its results would stand.
        last_run: The run of the preset before this one, if there was one that finished.

    Raises:
        DataError: A benchmark of the data set is damaged.
        StoreError: A file of an artifact is missing, damaged or of another layout.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    manifests = {name: _manifest(directory) for name, directory in artifacts.items()}
    stages = stage_views(summary["stages"], manifests)
    promotions, champions = _promotions(artifacts, manifests, summary)
    confidential = any(map(is_confidential, config.data.training_sets().values()))
    trainings = [
        _training(node, directory, config, confidential) for node, directory in _of("ngrpo_training", artifacts)
    ]
    evaluations = _evaluations(artifacts, config, champions, last_run)
    indexes = [
        (node, neighbors_view(_read_json(directory / "neighbors.json")))
        for node, directory in _of("neighbor_index", artifacts)
    ]
    model_names = {
        "base": "base model",
        "warm_start": "warm start" if config.warm_start.steps else "base model",
        "trained": "trained",
    }
    met = next((view.decision["champion_version"] for view in promotions), None)
    page = environment.get_template(_TEMPLATE).render(
        preset=config.preset,
        seed=config.seed,
        config=config,
        method=method_name(config.mixing, config.training),
        styles=STYLES,
        model=describe(config.model.source.model_dump(mode="json")),
        model_names=model_names | {"champion": f"champion, version {met}"},
        places=places(path, summary, artifacts),
        stages=stages,
        timings=timings(stages, summary["wall_seconds"]),
        costs=costs_view(summary.get("costs")),
        settings=settings_text(config),
        tables=[
            (node, table_views(read_sources(directory, _CURE))) for node, directory in _of("prepare_data", artifacts)
        ],
        indexes=indexes,
        changes=_changes(indexes, trainings),
        evaluations=evaluations,
        promotions=promotions,
        trainings=trainings,
        warm_starts=[
            (node, curve)
            for node, directory in _of("sft_warm_start", artifacts)
            if (curve := warm_start_curve(read_history(directory, _CURE))) is not None
        ],
        rollouts_are_confidential=confidential,
    )
    path.write_text(printable(page), encoding="utf-8")


def _of(stage: str, artifacts: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Return the nodes that run a stage, with their artifacts, in order."""
    return [(node, directory) for node, directory in artifacts.items() if node.partition(".")[0] == stage]


def _promotions(
    artifacts: Mapping[str, Path], manifests: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]
) -> tuple[list[PromotionView], dict[str, Evaluation | None]]:
    """Return the decisions, and by node of an evaluation the champion's, if the candidate met one and it is available."""
    views, champions = [], {}
    evaluations = dict(_of("benchmark_evaluation", artifacts))
    for node, directory in _of("model_promotion", artifacts):
        promotion = read_promotion(directory, _CURE)
        stored = directory / "champion_evaluation.json"
        champion = read_evaluation(stored, _CURE) if stored.exists() else None
        judged_by = manifests[node].get("inputs", {}).get("evaluation")
        judged = next((name for name in evaluations if summary["stages"][name]["key"] == judged_by), None)
        compared: list[Comparison] = []
        if judged is not None:
            champions[judged] = champion
            ours = read_evaluation(evaluations[judged] / EVALUATION, _CURE)
            compared = comparisons(promotion, ours, champion)
        sentence = promotion_sentence(promotion)
        views.append(
            PromotionView(
                node, promotion, sentence, signature_sentence(promotion), against_champion(promotion), compared
            )
        )
    return views, champions


def _evaluations(
    artifacts: Mapping[str, Path],
    config: RunConfig,
    champions: Mapping[str, Evaluation | None],
    last_run: LastRun | None,
) -> list[EvaluationView]:
    views = []
    selection = config.training.selection
    data = next((directory for _, directory in _of("prepare_data", artifacts)), None)
    for node, directory in _of("benchmark_evaluation", artifacts):
        evaluation = read_evaluation(directory / EVALUATION, _CURE)
        benchmarks = benchmark_views(evaluation, config, champions.get(node))
        selected = {selection.benchmark} if selection is not None else set()
        galleries = None
        if data is not None:
            samples = directory / "samples" / "trained"
            galleries = failure_galleries(evaluation, samples, data / "benchmarks", config)
        views.append(
            EvaluationView(
                node=node,
                test=[view for view in benchmarks if view.name not in selected],
                validation=[view for view in benchmarks if view.name in selected],
                headline=headline(benchmarks, config),
                last_run=None if last_run is None else against_last_run(last_run, evaluation, config),
                galleries=galleries,
            )
        )
    return views


def _training(node: str, directory: Path, config: RunConfig, confidential: bool) -> TrainingView:
    history = read_history(directory, _CURE)
    curves, not_logged = learning_curves(history, config)
    mixing = mixing_view(
        history,
        _read_json(directory / "anchor_cosine_histogram.json"),
        _read_json(directory / "example_neighbors.json"),
    )
    rollouts = None if confidential else rollout_views(_read_json(directory / "rollout_samples.json"))
    selected = read_metrics(directory, _CURE).get("selected_step")
    return TrainingView(node, curves, not_logged, selected, mixing, rollouts)


def _changes(indexes: Sequence[Any], trainings: Sequence[TrainingView]) -> list[tuple[str, Any]]:
    """Return what each training changed in the neighbors of the example tokens, if there is an index to compare with."""
    if not indexes:
        return [(view.node, neighbor_changes([], view.mixing.neighbors)) for view in trainings]
    return [(view.node, neighbor_changes(indexes[0][1].examples, view.mixing.neighbors)) for view in trainings]


def _manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of an artifact; empty for one that was never published."""
    path = directory / "manifest.json"
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path, _CURE))
    except ValueError as error:
        raise DamagedStateError(f"{path}: damaged: it is not JSON ({error}); {_CURE}") from error
