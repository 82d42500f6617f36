"""Kubeflow component `model_promotion`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def model_promotion(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    trained: dsl.Input[dsl.Model] = None,
    trained_known: str = "",
    evaluation: dsl.Input[dsl.Artifact] = None,
    evaluation_known: str = "",
):
    """Register the trained model and make it the champion if it is better.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to the decision.
        metrics: Metrics of the stage.
        trained: Reference to the artifact of `ngrpo_training`.
        trained_known: The same as JSON, if it was known before the run; then no task produces it.
        evaluation: Reference to the artifact of `benchmark_evaluation`.
        evaluation_known: The same as JSON, if it was known before the run; then no task produces it.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "model_promotion",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={"trained": trained_known or trained.path, "evaluation": evaluation_known or evaluation.path},
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
