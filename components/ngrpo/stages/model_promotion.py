"""Stage `model_promotion`: register the trained model, compare it with the champion, and decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersion

from ngrpo.config import ModelPromotionConfig, PromotionConfig
from ngrpo.errors import DataError
from ngrpo.evaluation.statistics import mean_at_n, paired_difference
from ngrpo.tracking.registry import CHALLENGER, CHAMPION, ModelRegistry

CONFIG = ModelPromotionConfig

_DRAWS = 10_000
_EVALUATE_CHAMPION = "run the pipeline that made it with these evaluation settings, then this one again"


def run(config: ModelPromotionConfig, inputs: Mapping[str, Path], output: Path, work: Path) -> None:
    """Write `promotion.json` and `metrics.json`; set the aliases of the model registry.

    Args:
        config: Settings of the stage.
        inputs: `trained` and `evaluation`, each with its `manifest.json`.
        output: Empty directory for the artifact.
        work: Not used: a decision is short.

    Raises:
        DataError: An input has no manifest, or the evaluation is of another model or not on the benchmark that decides.
        TrackingError: The registry cannot be reached.
    """
    trained, evaluated = (_manifest(inputs[name]) for name in ("trained", "evaluation"))
    if evaluated["inputs"].get("trained") != trained["key"]:
        raise DataError(
            f"the evaluation {evaluated['key']} is of the model {evaluated['inputs'].get('trained')}, not of "
            f"{trained['key']}: name the evaluation of this model"
        )
    evaluation = inputs["evaluation"] / "evaluation.json"
    result = _result(_read(evaluation), config.promotion.benchmark)
    if result is None:
        raise DataError(f"promotion.benchmark={config.promotion.benchmark!r} was not evaluated: name one that was")

    registry = ModelRegistry(config.promotion.model_name)
    lineage = {f"ngrpo.input.{name}": key for name, key in trained["inputs"].items()}
    version = registry.register(
        inputs["trained"] / "model",
        inputs["trained"] / "manifest.json",
        digest=model_digest(trained["files"]),
        tags={"ngrpo.key": trained["key"], "ngrpo.code_version": trained["code_version"], **lineage},
    )
    registry.add_evaluation(version, evaluation, evaluated["key"])
    decision = decide_and_crown(config.promotion, registry, version, result, config.seed)
    print(f"{decision['decision']}: {decision['reason']}", flush=True)
    (output / "promotion.json").write_text(json.dumps(decision), encoding="utf-8")
    (output / "metrics.json").write_text(json.dumps(_metrics(decision)), encoding="utf-8")


def model_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of a model: sha256 over path and sha256 of each file in `model/`, from an artifact's manifest."""
    entries = [[path, entry["sha256"]] for path, entry in sorted(files.items()) if path.startswith("model/")]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def decide_and_crown(
    config: PromotionConfig, registry: ModelRegistry, candidate: ModelVersion, result: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Compare a candidate with the champion, set the aliases and the candidate's tags, and return the decision.

    Everything between reading the champion and setting its alias happens here.

    Args:
        config: The gate.
        registry: Registry of the model.
        candidate: The candidate's version.
        result: The candidate's result on the benchmark.
        seed: Seed of the bootstrap.

    Returns:
        What `promotion.json` holds; `champion_version` is the champion that the candidate met, none if there was none.
    """
    champion = registry.by_alias(CHAMPION)
    if champion is None:
        last = registry.last_champion()
        verdict = _verdict("promoted", f"version {last}, the last champion, was deleted" if last else "it is the first")
    elif champion.version == candidate.version:
        verdict = _verdict("unchanged", "it is the champion already")
    elif missing := registry.missing(champion):
        verdict = _verdict(
            "promoted", f"the files of the champion, version {champion.version}, are gone ({missing[0]})"
        )
    else:
        evaluation = registry.evaluation(champion)
        theirs = None if evaluation is None else _result(json.loads(evaluation), config.benchmark)
        verdict = compare(config, result, theirs, seed)
    if verdict["decision"] == "promoted":
        registry.crown(candidate)
    elif verdict["decision"] == "kept":
        registry.challenge(candidate)
    registry.set_tags(
        candidate,
        {
            "ngrpo.decision": verdict["decision"],
            "ngrpo.reason": verdict["reason"],
            "ngrpo.comparison": json.dumps(verdict["comparison"]),
        },
    )
    return verdict | {
        "model": config.model_name,
        "version": int(candidate.version),
        "alias": CHALLENGER if verdict["decision"] == "kept" else CHAMPION,
        "champion_version": None if champion is None else int(champion.version),
    }


def compare(
    config: PromotionConfig, candidate: Mapping[str, Any], champion: Mapping[str, Any] | None, seed: int
) -> dict[str, Any]:
    """Apply the gate to two results on the same benchmark.

    The candidate is promoted when the one-sided lower bound of its gain over the champion, the paired difference of mean@n in
    points of percent under a bootstrap over problems, exceeds `min_gain`. To reach it is not enough: of two models that
    differ on a single problem the bound is 0, for most draws do not hold that problem.

    Returns:
        `decision`, `reason` and, where the two could be compared, `comparison`.
    """
    if champion is None:
        return _verdict("kept", f"the champion was not evaluated on {config.benchmark}: {_EVALUATE_CHAMPION}")
    if set(candidate["per_problem"]) != set(champion["per_problem"]):
        return _verdict(
            "kept", f"the champion was evaluated on other problems of {config.benchmark}: {_EVALUATE_CHAMPION}"
        )
    samples = candidate["n_samples"]
    if samples != champion["n_samples"]:
        return _verdict(
            "kept",
            f"the champion was evaluated with {champion['n_samples']} samples a problem, not {samples}: {_EVALUATE_CHAMPION}",
        )
    problems = sorted(candidate["per_problem"])
    ours, theirs = (
        100.0 * mean_at_n(np.array([result["per_problem"][problem] for problem in problems]), samples)
        for result in (candidate, champion)
    )
    # The lower end of a two-sided interval of level 2c - 1 is that of a one-sided one of level c.
    gain, low, high = paired_difference(ours, theirs, confidence=2 * config.confidence - 1, draws=_DRAWS, seed=seed)
    promoted = low > config.min_gain
    comparison = {
        "benchmark": config.benchmark,
        "candidate": float(ours.mean()),
        "champion": float(theirs.mean()),
        "gain": gain,
        "interval": [low, high],
        "confidence": config.confidence,
        "min_gain": config.min_gain,
        "n_problems": len(problems),
        "n_samples": samples,
    }
    reason = (
        f"mean@{samples} on {config.benchmark} is {comparison['candidate']:.2f} against the champion's "
        f"{comparison['champion']:.2f}; at {config.confidence:.0%} confidence the gain is above {low:+.2f} points, "
        f"{'more' if promoted else 'not more'} than the {config.min_gain:+.2f} asked for"
    )
    return _verdict("promoted" if promoted else "kept", reason, comparison)


def _verdict(decision: str, reason: str, comparison: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"decision": decision, "reason": reason, "comparison": comparison}


def _result(evaluation: Mapping[str, Any], benchmark: str) -> Mapping[str, Any] | None:
    """Return the trained model's result on a benchmark, or none if there is none."""
    result: Mapping[str, Any] | None = evaluation["models"]["trained"].get(benchmark)
    return result


def _metrics(decision: Mapping[str, Any]) -> dict[str, float]:
    metrics = {"promoted": float(decision["decision"] == "promoted"), "version": float(decision["version"])}
    if decision["comparison"] is not None:
        metrics |= {"gain": decision["comparison"]["gain"], "gain_lower_bound": decision["comparison"]["interval"][0]}
    return metrics


def _manifest(artifact: Path) -> dict[str, Any]:
    path = artifact / "manifest.json"
    if not path.is_file():
        raise DataError(f"{artifact}: no manifest.json, so it is not known what this is: name an artifact of the store")
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("model_promotion")
