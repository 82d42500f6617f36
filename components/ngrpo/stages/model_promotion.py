"""Stage `model_promotion`: register the trained model, apply the promotion gate, and decide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.config import ModelPromotionConfig, PromotionConfig, RegisteredModel
from ngrpo.contracts.evaluation import EVALUATION as EVALUATION_FILE
from ngrpo.contracts.evaluation import Evaluation, Result, parse_evaluation, write_evaluation
from ngrpo.contracts.layout import LAYOUT
from ngrpo.contracts.metrics import write_metrics
from ngrpo.contracts.promotion import Promotion, Verdict, write_promotion
from ngrpo.errors import DataError
from ngrpo.evaluation.gate import kept
from ngrpo.evaluation.stored_evaluation import MODEL, protocol_of
from ngrpo.ledger.prices import read_prices
from ngrpo.report.costs import cost_lines
from ngrpo.report.model_card import model_card
from ngrpo.report.model_use import model_use
from ngrpo.signing.keys import private_key
from ngrpo.stages.context import Context
from ngrpo.stages.declarations import STAGES
from ngrpo.stages.opponent import BY_HAND, Judgement, judge
from ngrpo.stages.promotion_seal import Provenance, predicate, sign
from ngrpo.stages.surroundings import IMAGES
from ngrpo.storage.digest import model_digest
from ngrpo.storage.state import read_state
from ngrpo.tracking.model_registry import BASE_MODEL, CHALLENGER, CHAMPION, EVALUATION, KEY
from ngrpo.tracking.promotions import BARRED, Promotions
from ngrpo.tracking.reasons import checked_reason


class _Origin(TypedDict):
    """The part of a manifest that promotion needs."""

    key: str
    code_version: str
    inputs: dict[str, str]


def run(config: ModelPromotionConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `promotion.json`, `model_card.md` and `metrics.json`; set the aliases of the model registry.

    If the candidate was compared with a champion, `champion_evaluation.json` is the champion's evaluation as it was compared.

    Args:
        config: Settings of the stage.
        inputs: `trained` and `evaluation`, each with its `manifest.json`.
        output: Empty directory for the artifact.
        context: Its store holds the lock of promotions and the samples of evaluations.

    Raises:
        ConfigError: The signing key that the settings name cannot be used.
        DataError: An input has no manifest, or the evaluation is of other weights or not on a benchmark of the gate.
        DamagedStateError: An input, or the journal of promotions, is damaged; an evaluation with numbers that are not finite is.
        TrackingError: The registry cannot be reached, or returns other weights than were stored.
        StoreError: The object store that holds the lock cannot be reached, or can hold none.
    """
    key = private_key(config.signing, context.variable)
    trained, evaluated = (_origin(inputs[name]) for name in ("trained", "evaluation"))
    if evaluated["inputs"].get("trained") != trained["key"]:
        raise DataError(
            f"the evaluation {evaluated['key']} is of the model {evaluated['inputs'].get('trained')}, not of "
            f"{trained['key']}: name the evaluation of this model"
        )
    stored = _read(inputs["evaluation"] / EVALUATION_FILE)
    evaluation = _evaluation(inputs["evaluation"] / EVALUATION_FILE, stored)
    require_benchmarks(config.promotion, evaluation)
    # The same key may have been trained twice, so compare the evaluated bytes.
    weights = model_digest(inputs["trained"] / "model")
    measured = evaluation.get("weights", {}).get("trained")
    if measured != weights:
        raise DataError(
            f"the evaluation {evaluated['key']} is of other weights (sha256 {measured}) than those in "
            f"{trained['key']} ({weights}): evaluate again, with `ngrpo rerun benchmark_evaluation`"
        )

    promotions = Promotions.in_store(context.store, config.promotion.model_name)
    registry = promotions.registry
    lineage = {f"ngrpo.input.{name}": key for name, key in trained["inputs"].items()}
    if isinstance(config.model.source, RegisteredModel):
        lineage[BASE_MODEL] = config.model.source.uri
    version = registry.register(
        inputs["trained"] / "model",
        inputs["trained"] / "manifest.json",
        digest=weights,
        tags={KEY: trained["key"], "ngrpo.code_version": trained["code_version"], **lineage},
    )
    registry.add_flavor(version, inputs["trained"] / "model", max_new_tokens=config.rollout.max_tokens)
    registry.describe(version, model_use(registry.name, int(version.version), registry.location(version), weights))
    registry.add_evaluation(version, inputs["evaluation"] / EVALUATION_FILE, evaluated["key"])
    for name, result in evaluation["models"][MODEL].items():
        problems = (protocol_of(evaluation, MODEL, name) or {}).get("problems")
        registry.add_metrics(version, name, problems, _figures(result))
    decision, champion = _decide(config.promotion, promotions, version, evaluation, config.seed, None)
    context.progress(f"{decision['decision']}: {decision['reason']}")
    if key is None:
        context.progress(f"version {decision['version']} is unsigned: signing.private_key names no key")
    else:
        images = context.variable(IMAGES)
        said = predicate(
            decision,
            digest=weights,
            history=[entry for entry in promotions.history() if entry["version"] == str(version.version)],
            evaluation=(evaluated["key"], stored, evaluation),
            provenance=Provenance.of(
                config,
                lineage={"trained": trained["key"], "evaluation": evaluated["key"], **trained["inputs"]},
                code={"ngrpo_training": trained["code_version"], "benchmark_evaluation": evaluated["code_version"]},
            ),
            images=json.loads(images) if images else {},
        )
        signed = sign(registry, version, inputs["trained"] / "model", said, key)
        decision["signed"] = signed
        context.progress(f"version {decision['version']} is signed by the key sha256 {signed['key']}")
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
        spent=cost_lines(
            context.store,
            _keys(trained, evaluated),
            read_prices(context.prices),
            evaluation,
            benchmark=config.promotion.benchmark,
            seed=config.seed,
        ),
    )
    registry.add_card(version, card)
    if champion is not None:
        write_evaluation(output / "champion_evaluation.json", champion)
    (output / "model_card.md").write_text(card, encoding="utf-8")
    write_promotion(output, decision)
    write_metrics(output, _metrics(decision))


def require_benchmarks(config: PromotionConfig, evaluation: Evaluation) -> None:
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
    evaluation: Evaluation,
    seed: int,
    *,
    override: str | None = None,
) -> Promotion:
    """Apply the gate to a candidate, set the aliases and the candidate's tags, and return the decision.

    Comparing two models may take minutes, so it is done before taking the lock, and repeated if the champion has changed in the
    meantime. The final check of the champion and the change of aliases happen under the lock.

    Args:
        config: The gate.
        promotions: Promotions of the model.
        candidate: The candidate's version.
        evaluation: The candidate's evaluation.
        seed: Seed of the statistics.
        override: Reason to make the candidate champion whatever the gate says; none to apply the gate.

    Returns:
        What `promotion.json` holds; `champion_version` is the champion that the candidate met, none if there was none.

    Raises:
        ConfigError: The reason to override is empty or no plain text.
        DamagedStateError: The journal is damaged.
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached, or can hold no lock.
    """
    return _decide(config, promotions, candidate, evaluation, seed, override)[0]


def _decide(
    config: PromotionConfig,
    promotions: Promotions,
    candidate: ModelVersion,
    evaluation: Evaluation,
    seed: int,
    override: str | None,
) -> tuple[Promotion, Evaluation | None]:
    """Return the decision (see `decide_and_crown`), and the evaluation of the champion that the candidate was compared with."""
    registry = promotions.registry
    reason = None if override is None else checked_reason(override, "--override")
    while True:
        champion = registry.by_alias(CHAMPION)
        is_champion = champion is not None and champion.version == candidate.version
        if is_champion:
            judgement = Judgement(_without_comparison("unchanged", "it is the champion already"))
        elif reason is not None:
            judgement = Judgement(_without_comparison("promoted", f"by hand: {reason}"))
        else:
            judgement = judge(config, registry, promotions.artifacts, candidate, evaluation, champion, seed)
        with promotions.turn() as turn:
            if _identity(registry.by_alias(CHAMPION)) != _identity(champion):
                continue
            verdict = judgement.verdict
            if not is_champion:
                turn.nominate(candidate)
                current = registry.version(str(candidate.version))
                if reason is None and current is not None and current.tags.get(BARRED):
                    number = candidate.version
                    verdict = kept(f"version {number} was rolled back; {BY_HAND.format(version=number)}")
                (turn.promote if verdict["decision"] == "promoted" else turn.challenge)(candidate, verdict)
        return {
            **verdict,
            "layout": LAYOUT,
            "model": config.model_name,
            "version": int(candidate.version),
            "alias": CHALLENGER if verdict["decision"] == "kept" else CHAMPION,
            "champion_version": None if champion is None else int(champion.version),
            "signed": None,
        }, judgement.champion


def _identity(version: ModelVersion | None) -> tuple[str, str | None] | None:
    """Return everything that a comparison with a version depends on."""
    return None if version is None else (str(version.version), version.tags.get(EVALUATION))


def _without_comparison(decision: Literal["promoted", "unchanged"], reason: str) -> Verdict:
    return {"decision": decision, "reason": reason, "comparison": None}


def _figures(result: Result) -> dict[str, float]:
    """Return the figures of a benchmark that the page of a model shows, as fractions."""
    return {
        "mean": result["mean"],
        **({"maj": result["maj"]} if "maj" in result else {}),
        **{f"pass_at_{k}": value for k, value in result["pass_at_k"].items()},
        **{f"best_at_{k}": value for k, value in result.get("best_at_k", {}).items()},
    }


def _metrics(decision: Promotion) -> dict[str, float]:
    metrics = {"promoted": float(decision["decision"] == "promoted"), "version": float(decision["version"])}
    if decision["comparison"] is not None:
        metrics |= {"gain": decision["comparison"]["gain"], "gain_lower_bound": decision["comparison"]["interval"][0]}
    return metrics


def _keys(trained: _Origin, evaluated: _Origin) -> dict[str, str]:
    """Return the keys of the results behind the model, by stage."""
    known = STAGES["ngrpo_training"].inputs
    sources = {known[name]: key for name, key in trained["inputs"].items() if name in known}
    return {**sources, "ngrpo_training": trained["key"], "benchmark_evaluation": evaluated["key"]}


def _origin(artifact: Path) -> _Origin:
    origin = read_state(artifact / "manifest.json", _Origin, cure="run the stage that made it again")
    if origin is None:
        raise DataError(f"{artifact}: no manifest.json, so it is not known what this is: name an artifact of the store")
    return origin


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name the artifact of an evaluation") from error


def _evaluation(path: Path, data: bytes) -> Evaluation:
    return parse_evaluation(data, where=path, cure="evaluate again, with `ngrpo rerun benchmark_evaluation`")


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("model_promotion")
