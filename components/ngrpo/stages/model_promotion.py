"""Stage `model_promotion`: register the trained model, compare it with the champion, and decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ngrpo.config import ModelPromotionConfig, PromotionConfig
from ngrpo.evaluation.statistics import paired_difference
from ngrpo.tracking.registry import CHALLENGER, CHAMPION, DIGEST, ModelRegistry

CONFIG = ModelPromotionConfig

EVALUATION = "evaluation.json"
_DRAWS = 10_000


def run(config: ModelPromotionConfig, inputs: Mapping[str, Path], output: Path, work: Path) -> None:
    """Write `promotion.json` and `metrics.json`; set the aliases of the model registry.

    Args:
        config: Settings of the stage.
        inputs: `trained` and `evaluation`, each with its `manifest.json`.
        output: Empty directory for the artifact.
        work: Not used: a decision is short.

    Raises:
        TrackingError: The registry cannot be reached, or the champion's evidence is gone.
    """
    trained = json.loads((inputs["trained"] / "manifest.json").read_text(encoding="utf-8"))
    evaluation = inputs["evaluation"] / EVALUATION
    registry = ModelRegistry(config.promotion.model_name)
    lineage = {f"ngrpo.{name}_key": key for name, key in trained["inputs"].items()}
    version = registry.register(
        inputs["trained"] / "model",
        evaluation,
        digest=model_digest(trained["files"]),
        tags={"ngrpo.key": trained["key"], "ngrpo.code_version": trained["code_version"], **lineage},
    )
    decision = decide_and_crown(config.promotion, registry, version, evaluation, config.seed)
    print(f"{decision['decision']}: {decision['reason']}", flush=True)
    (output / "promotion.json").write_text(json.dumps(decision), encoding="utf-8")
    metrics = {"promoted": float(decision["decision"] == "promoted"), "version": float(version.version)}
    (output / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def model_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of a model: sha256 over path and sha256 of each file in `model/`, from an artifact's manifest."""
    entries = [[path, entry["sha256"]] for path, entry in sorted(files.items()) if path.startswith("model/")]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def decide_and_crown(
    config: PromotionConfig, registry: ModelRegistry, candidate: Any, evaluation: Path, seed: int
) -> dict[str, Any]:
    """Compare a candidate with the champion and set the aliases; return the decision with its evidence.

    Args:
        config: The gate.
        registry: Registry of the model.
        candidate: The candidate's version.
        evaluation: The candidate's `evaluation.json`.
        seed: Seed of the bootstrap.
    """
    champion = registry.by_alias(CHAMPION)
    decision: dict[str, Any] = {"model": config.model_name, "version": int(candidate.version), "comparison": None}
    decision["champion_version"] = None if champion is None else int(champion.version)
    if champion is None:
        decision |= {"decision": "promoted", "reason": "there is no champion yet"}
    elif champion.tags.get(DIGEST) == candidate.tags.get(DIGEST):
        decision |= {"decision": "unchanged", "reason": "the candidate is the champion"}
    else:
        ours = json.loads(evaluation.read_text(encoding="utf-8"))
        theirs = json.loads(registry.evidence(champion, EVALUATION).read_text(encoding="utf-8"))
        decision |= compare(config, _trained(ours, config), _trained(theirs, config), seed)
    if decision["decision"] == "promoted":
        registry.crown(candidate)
    elif decision["decision"] == "kept":
        registry.challenge(candidate)
    decision["alias"] = CHALLENGER if decision["decision"] == "kept" else CHAMPION
    tags = {"ngrpo.decision": decision["decision"], "ngrpo.reason": decision["reason"]}
    registry.set_tags(candidate, tags | {"ngrpo.comparison": json.dumps(decision["comparison"])})
    return decision


def compare(
    config: PromotionConfig, candidate: Mapping[str, Any] | None, champion: Mapping[str, Any] | None, seed: int
) -> dict[str, Any]:
    """Apply the gate to two evaluations on the same benchmark.

    The candidate is promoted when the lower end of the one-sided bootstrap interval of the paired difference of mean@n, in
    points of percent, reaches `min_gain`.

    Returns:
        `decision`, `reason` and, where the two could be compared, `comparison`.
    """
    if candidate is None or champion is None:
        who = "candidate" if candidate is None else "champion"
        return _kept(f"the {who} was not measured on {config.benchmark}")
    if set(candidate["per_problem"]) != set(champion["per_problem"]):
        return _kept(f"the two were measured on different problems of {config.benchmark}: evaluate the champion again")
    if candidate["n_samples"] != champion["n_samples"]:
        return _kept(f"{candidate['n_samples']} samples a problem for the candidate, {champion['n_samples']} for the champion")
    problems = sorted(candidate["per_problem"])
    scores = [
        np.array([result["per_problem"][problem] for problem in problems]) / result["n_samples"] * 100
        for result in (candidate, champion)
    ]
    # The lower end of a two-sided interval of level 2c - 1 is that of a one-sided one of level c.
    mean, low, high = paired_difference(*scores, confidence=2 * config.confidence - 1, draws=_DRAWS, seed=seed)
    comparison = {
        "benchmark": config.benchmark,
        "difference": mean,
        "interval": [low, high],
        "confidence": config.confidence,
        "min_gain": config.min_gain,
        "n_problems": len(problems),
    }
    better = low >= config.min_gain and mean > config.min_gain
    return {
        "decision": "promoted" if better else "kept",
        "reason": (
            f"mean@{candidate['n_samples']} on {config.benchmark} differs from the champion's by {mean:+.2f} points; at "
            f"{config.confidence:.0%} confidence it is {'at least' if better else 'not shown to be above'} "
            f"{low if better else config.min_gain:+.2f}"
        ),
        "comparison": comparison,
    }


def _kept(reason: str) -> dict[str, Any]:
    return {"decision": "kept", "reason": reason, "comparison": None}


def _trained(evaluation: Mapping[str, Any], config: PromotionConfig) -> Mapping[str, Any] | None:
    result: Mapping[str, Any] | None = evaluation["models"]["trained"].get(config.benchmark)
    return result
