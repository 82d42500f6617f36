"""Stage `deploy`: serve the model that was promoted, measure it through its endpoint, and keep it or go back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ngrpo.config import BenchmarkEvaluationConfig, DeployConfig, EvaluationConfig, RegisteredModel, validate
from ngrpo.config.stages import WarmStartLength
from ngrpo.contracts.deployment import Deployment, Difference, write_deployment
from ngrpo.contracts.evaluation import Evaluation, read_evaluation
from ngrpo.contracts.layout import LAYOUT
from ngrpo.contracts.metrics import write_metrics
from ngrpo.contracts.promotion import Promotion, read_promotion
from ngrpo.errors import ConfigError, DeploymentError
from ngrpo.evaluation.equivalence import Equivalence, equivalent
from ngrpo.signing.required import require_verified_version
from ngrpo.stages import benchmark_evaluation
from ngrpo.stages.context import Context
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
from ngrpo.tracking.registered_source import registered_source

EVALUATION = "evaluation"
"""Folder of the artifact: the evaluation through the endpoint, as the stage `benchmark_evaluation` writes one."""
_CURE = "run the stage that made it again"


def run(config: DeployConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `deployment.json`, `metrics.json` and, of a model that was deployed, `evaluation/`.

    A model that was not promoted is not deployed, nor is one that is champion no more: a run that was faster has deployed another.

    Args:
        config: Settings of the stage.
        inputs: `dataset`, `trained`, `evaluation`, `promotion`.
        output: Empty directory for the artifact.
        context: Deploys.

    Raises:
        ConfigError: There is no cluster, or a model cannot be deployed there as the settings say.
        DeploymentError: The served model does not do as it was evaluated; what was served before is served again.
        ClusterError: The cluster refuses, or the service does not get ready.
        EngineError: The endpoint cannot be reached or fails.
        NGRPOError: An input is damaged, or registry or object store cannot be reached, or a signature that is asked for is missing.
    """
    deploy = context.deploy
    if deploy is None:
        raise ConfigError("deploy: a model is deployed by a run on a cluster; `ngrpo serve` serves one on this machine")
    promotion = read_promotion(inputs["promotion"], _CURE)
    promoted = read_evaluation(inputs["evaluation"] / "evaluation.json", _CURE)
    registry = ModelRegistry(promotion["model"])
    champion = registry.by_alias(CHAMPION)
    if champion is None or int(champion.version) != promotion["version"]:
        now = "there is none" if champion is None else f"that is version {champion.version}"
        _write(output, context, promotion, f"version {promotion['version']} is not the champion: {now}", None)
        return
    model = validate(RegisteredModel, registered_source(registry, champion))
    require_verified_version(model, config.signing, context.store or "", "which is to be deployed")

    def evaluate(url: str) -> Evaluation:
        directory = context.work / EVALUATION
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        given = {"dataset": inputs["dataset"], "warm_start": inputs["trained"], "trained": inputs["trained"]}
        benchmark_evaluation.run(_measuring(config, url), given, directory, context)
        return read_evaluation(directory / "evaluation.json", _CURE)

    def decide(served: Evaluation) -> Equivalence:
        confidence = config.evaluation.confidence
        return equivalent(promoted, served, margin=config.deployment.margin, confidence=confidence, seed=config.seed)

    verdict = deploy(model, config, evaluate=evaluate, decide=decide, say=context.progress)
    if verdict.decision == "refused":
        raise DeploymentError(f"model {model.name}: version {model.version} is not deployed: {verdict.reason}")
    shutil.move(context.work / EVALUATION, output / EVALUATION)
    _write(output, context, promotion, verdict.reason, verdict)


def _measuring(config: DeployConfig, url: str) -> BenchmarkEvaluationConfig:
    """Return the settings of the evaluation stage for a model that is served, which stands for the start of the training too."""
    evaluation = config.evaluation.model_dump(mode="json") | {"endpoint": {"url": url}}
    return BenchmarkEvaluationConfig(
        seed=config.seed,
        model=config.model,
        neighbors=config.neighbors,
        warm_start=WarmStartLength(steps=0),
        evaluation=validate(EvaluationConfig, evaluation),
        benchmark_gradings=config.benchmark_gradings,
    )


def differences_of(verdict: Equivalence) -> dict[str, Difference]:
    """Return the differences between endpoint and stage by benchmark, as `deployment.json` has them."""
    return {each.benchmark: {"value": each.value, "interval": [each.low, each.high]} for each in verdict.differences}


def _write(output: Path, context: Context, promotion: Promotion, reason: str, kept: Equivalence | None) -> None:
    deployment: Deployment = {
        "layout": LAYOUT,
        "decision": "skipped" if kept is None else "deployed",
        "reason": reason,
        "model": promotion["model"],
        "version": promotion["version"],
        "differences": {} if kept is None else differences_of(kept),
    }
    context.progress(f"{deployment['decision']}: {reason}")
    write_deployment(output, deployment)
    write_metrics(output, {"deployed": float(kept is not None), "version": float(promotion["version"])})


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("deploy")
