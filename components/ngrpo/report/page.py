"""The report of a run: one HTML page that needs nothing else, neither network nor scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from ngrpo.report.failures import failure_galleries, is_confidential
from ngrpo.report.lineage import settings_text, stage_views, table_views, timings
from ngrpo.report.neighbors import neighbors_view
from ngrpo.report.promotion import comparisons, promotion_sentence, signature_sentence
from ngrpo.report.results import STYLES, benchmark_views, headline, signed
from ngrpo.report.rollouts import rollout_views
from ngrpo.report.training import learning_curves, mixing_view, warm_start_curve
from ngrpo.report.wording import describe, method_name, printable
from ngrpo.storage.state import DamagedStateError

_TEMPLATE = "page.html.j2"
_CURE = "run the preset again"


def write_report(path: Path, *, summary: dict[str, Any], config: RunConfig, artifacts: dict[str, Path]) -> None:
    """Write the report of a run.

    What a model or a data set says is untrusted: the template escapes it, and the page forbids scripts and requests.

    Args:
        path: File to write.
        summary: `summary.json` of the run.
        config: Its configuration.
        artifacts: Directory of each node's artifact. The node of a stage's own name may be missing: the page then says so where its results
            would stand.

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
    stages = stage_views(summary["stages"], {name: _manifest(directory) for name, directory in artifacts.items()})
    page = environment.get_template(_TEMPLATE).render(
        preset=config.preset,
        seed=config.seed,
        config=config,
        method=method_name(config.mixing, config.training),
        styles=STYLES,
        model=describe(config.model.source.model_dump(mode="json")),
        run_id=summary["mlflow"]["run_id"],
        stages=stages,
        timings=timings(stages, summary["wall_seconds"]),
        settings=settings_text(config),
        weights=[f"{stage.artifact}model/" for stage in stages if stage.name.partition(".")[0] == "ngrpo_training"],
        **_data(artifacts),
        **_index(artifacts),
        **_results(artifacts, config),
        **_training(artifacts, config),
    )
    path.write_text(printable(page), encoding="utf-8")


def _data(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    directory = artifacts.get("prepare_data")
    return {"tables": None if directory is None else table_views(read_sources(directory, _CURE))}


def _index(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    directory = artifacts.get("neighbor_index")
    return {"index": None if directory is None else neighbors_view(_read_json(directory / "neighbors.json"))}


def _results(artifacts: Mapping[str, Path], config: RunConfig) -> dict[str, Any]:
    """Return what there is to say of evaluation and promotion."""
    values: dict[str, Any] = dict.fromkeys(("benchmarks", "headline", "galleries", "promotion"))
    values["comparisons"] = []
    values["model_names"] = {
        "base": "base model",
        "warm_start": "warm start" if config.warm_start.steps else "base model",
        "trained": "trained",
    }
    directory, data = artifacts.get("benchmark_evaluation"), artifacts.get("prepare_data")
    promotion, champion = _promotion(artifacts.get("model_promotion"))
    if promotion is not None:
        values["promotion"] = dict(promotion) | {
            "sentence": promotion_sentence(promotion),
            "signature": signature_sentence(promotion),
        }
        values["model_names"]["champion"] = f"champion, version {promotion['champion_version']}"
    if directory is not None:
        evaluation = read_evaluation(directory / EVALUATION, _CURE)
        values["benchmarks"] = benchmark_views(evaluation, config, champion)
        if promotion is not None:
            values["comparisons"] = comparisons(promotion, evaluation, champion)
        values["headline"] = headline(values["benchmarks"], config)
        if data is not None:
            values["galleries"] = failure_galleries(
                evaluation, directory / "samples" / "trained", data / "benchmarks", config
            )
    return values


def _promotion(directory: Path | None) -> tuple[Promotion | None, Evaluation | None]:
    """Return the decision, and the evaluation of the champion that the model met, as far as they are known."""
    if directory is None:
        return None, None
    champion = directory / "champion_evaluation.json"
    return read_promotion(directory, _CURE), read_evaluation(champion, _CURE) if champion.exists() else None


def _training(artifacts: Mapping[str, Path], config: RunConfig) -> dict[str, Any]:
    """Return what there is to say of the warm start and of training."""
    values: dict[str, Any] = {
        "curves": None,
        "not_logged": [],
        "selected_step": None,
        "warm_start_curve": None,
        "mixing": None,
        "rollouts": None,
        "rollouts_are_confidential": any(map(is_confidential, config.data.training_sets().values())),
    }
    if "sft_warm_start" in artifacts:
        values["warm_start_curve"] = warm_start_curve(read_history(artifacts["sft_warm_start"], _CURE))
    directory = artifacts.get("ngrpo_training")
    if directory is not None:
        history = read_history(directory, _CURE)
        values["curves"], values["not_logged"] = learning_curves(history, config)
        values["selected_step"] = read_metrics(directory, _CURE).get("selected_step")
        values["mixing"] = mixing_view(
            history,
            _read_json(directory / "anchor_cosine_histogram.json"),
            _read_json(directory / "example_neighbors.json"),
        )
        if not values["rollouts_are_confidential"]:
            values["rollouts"] = rollout_views(_read_json(directory / "rollout_samples.json"))
    return values


def _manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of an artifact; empty for one that was never published."""
    path = directory / "manifest.json"
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path, _CURE))
    except ValueError as error:
        raise DamagedStateError(f"{path}: damaged: it is no JSON ({error}); {_CURE}") from error
