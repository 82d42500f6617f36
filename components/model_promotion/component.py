"""Kubeflow component `model_promotion`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def model_promotion(
    config: str,
    key: str,
    code_version: str,
    trained: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    artifact: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Register the trained model and make it the champion if it is better.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        trained: Reference to the artifact of `ngrpo_training`.
        evaluation: Reference to the artifact of `benchmark_evaluation`.
        artifact: Reference to the decision.
        metrics: Metrics of the stage.
    """
    from ngrpo.stages.execution import execute

    values = execute(
        "model_promotion",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={"trained": trained.path, "evaluation": evaluation.path},
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
