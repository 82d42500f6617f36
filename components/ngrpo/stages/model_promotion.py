"""Stage `model_promotion`: register the trained model, put it to the gate, and decide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from ngrpo.config import ModelPromotionConfig, PromotionConfig, RegisteredModel
from ngrpo.errors import DataError
from ngrpo.evaluation.gate import Measured, compare, kept
from ngrpo.evaluation.model_card import model_card
from ngrpo.storage.digest import model_digest
from ngrpo.tracking.promotions import BARRED, Promotions
from ngrpo.tracking.registry import BASE_MODEL, CHALLENGER, CHAMPION, EVALUATION

CONFIG = ModelPromotionConfig

_BY_HAND = "`ngrpo promote {version} --override REASON` makes this version champion all the same"


def run(config: ModelPromotionConfig, inputs: Mapping[str, Path], output: Path, work: Path) -> None:
    """Write `promotion.json`, `model_card.md` and `metrics.json`; set the aliases of the model registry.

    Where the candidate met a champion whose evaluation is known, `champion_evaluation.json` is a copy of it.

    Args:
        config: Settings of the stage.
        inputs: `trained` and `evaluation`, each with its `manifest.json`.
        output: Empty directory for the artifact.
        work: Not used: a decision is short.

    Raises:
        DataError: An input has no manifest, or the evaluation is of other weights or not on a benchmark of the gate.
        TrackingError: The registry cannot be reached, or gives back other weights than it was given.
        StoreError: The object store that holds the lock cannot be reached.
    """
    trained, evaluated = (_manifest(inputs[name]) for name in ("trained", "evaluation"))
    if evaluated["inputs"].get("trained") != trained["key"]:
        raise DataError(
            f"the evaluation {evaluated['key']} is of the model {evaluated['inputs'].get('trained')}, not of "
            f"{trained['key']}: name the evaluation of this model"
        )
    evaluation = _read(inputs["evaluation"] / "evaluation.json")
    require_benchmarks(config.promotion, evaluation)
    # The same key may have been trained twice: what counts is which bytes were evaluated.
    weights = model_digest(inputs["trained"] / "model")
    if evaluation["weights"]["trained"] != weights:
        raise DataError(
            f"the evaluation {evaluated['key']} is of other weights (sha256 {evaluation['weights']['trained']}) than those in "
            f"{trained['key']} ({weights}): evaluate again, with `ngrpo rerun benchmark_evaluation`"
        )

    promotions = Promotions.from_environment(config.promotion.model_name)
    registry = promotions.registry
    lineage = {f"ngrpo.input.{name}": key for name, key in trained["inputs"].items()}
    if isinstance(config.model.source, RegisteredModel):
        lineage[BASE_MODEL] = config.model.source.uri
    version = registry.register(
        inputs["trained"] / "model",
        inputs["trained"] / "manifest.json",
        digest=weights,
        tags={"ngrpo.key": trained["key"], "ngrpo.code_version": trained["code_version"], **lineage},
    )
    registry.add_evaluation(version, inputs["evaluation"] / "evaluation.json", evaluated["key"])
    decision = decide_and_crown(config.promotion, promotions, version, evaluation, config.seed)
    print(f"{decision['decision']}: {decision['reason']}", flush=True)
    card = model_card(
        config,
        version=decision["version"],
        evaluation=evaluation,
        decision=decision,
        lineage={
            "model": trained["key"],
            "weights": f"sha256 {weights}",
            "evaluation": evaluated["key"],
            **trained["inputs"],
        },
    )
    registry.add_card(version, card)
    if decision["champion_version"] not in (None, decision["version"]):
        champion = registry.version(str(decision["champion_version"]))
        theirs = None if champion is None else registry.evaluation(champion)
        if theirs is not None:
            (output / "champion_evaluation.json").write_text(theirs, encoding="utf-8")
    (output / "model_card.md").write_text(card, encoding="utf-8")
    (output / "promotion.json").write_text(json.dumps(decision), encoding="utf-8")
    (output / "metrics.json").write_text(json.dumps(_metrics(decision)), encoding="utf-8")


def require_benchmarks(config: PromotionConfig, evaluation: Mapping[str, Any]) -> None:
    """Make sure that an evaluation holds every benchmark of the gate.

    Raises:
        DataError: It does not.
    """
    for field, name in (
        ("promotion.benchmark", config.benchmark),
        *(("promotion.tolerated_regression", name) for name in config.tolerated_regression),
    ):
        if name not in evaluation["models"]["trained"]:
            raise DataError(f"{field}={name!r} was not evaluated: name one that was")


def decide_and_crown(
    config: PromotionConfig,
    promotions: Promotions,
    candidate: ModelVersion,
    evaluation: Mapping[str, Any],
    seed: int,
    *,
    override: str | None = None,
) -> dict[str, Any]:
    """Put a candidate to the gate, set the aliases and the candidate's tags, and return the decision.

    Everything between reading the champion and naming another happens here, in a turn of this process alone.

    Args:
        config: The gate.
        promotions: Promotions of the model.
        candidate: The candidate's version.
        evaluation: The candidate's `evaluation.json`.
        seed: Seed of the statistics.
        override: Why the candidate becomes champion whatever the gate says; none to ask the gate.

    Returns:
        What `promotion.json` holds; `champion_version` is the champion that the candidate met, none if there was none.
    """
    with promotions.turn() as turn:
        champion = promotions.registry.by_alias(CHAMPION)
        if champion is not None and champion.version == candidate.version:
            verdict = kept("it is the champion already") | {"decision": "unchanged"}
        else:
            turn.nominate(candidate)
            if override is not None:
                verdict = kept(f"by hand: {override}") | {"decision": "promoted"}
            else:
                verdict = _judge(config, promotions, candidate, evaluation, champion, seed)
            (turn.promote if verdict["decision"] == "promoted" else turn.challenge)(candidate, verdict)
    return verdict | {
        "model": config.model_name,
        "version": int(candidate.version),
        "alias": CHALLENGER if verdict["decision"] == "kept" else CHAMPION,
        "champion_version": None if champion is None else int(champion.version),
    }


def _judge(
    config: PromotionConfig,
    promotions: Promotions,
    candidate: ModelVersion,
    evaluation: Mapping[str, Any],
    champion: ModelVersion | None,
    seed: int,
) -> dict[str, Any]:
    """Decide between a candidate and the champion. Nobody is promoted for want of an opponent.

    Where there is no champion, or it was deleted, the opponent is the model that training started from. A champion that
    cannot be compared stays until a person decides.
    """
    registry = promotions.registry
    by_hand = _BY_HAND.format(version=candidate.version)
    current = registry.version(str(candidate.version))
    if current is not None and current.tags.get(BARRED):
        return kept(f"version {candidate.version} was rolled back; {by_hand}")
    ours = Measured.of(evaluation, "trained", "the candidate")
    if champion is None:
        return compare(config, ours, Measured.of(evaluation, "warm_start", "the warm start"), seed)
    missing = registry.missing(champion)
    if missing:
        return kept(
            f"the files of the champion, version {champion.version}, are gone ({missing[0]}); restore them; {by_hand}"
        )
    theirs = registry.evaluation(champion)
    if theirs is None:
        return kept(f"the champion, version {champion.version}, has no evaluation ({EVALUATION}); {by_hand}")
    return compare(config, ours, Measured.of(json.loads(theirs), "trained", "the champion"), seed)


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
