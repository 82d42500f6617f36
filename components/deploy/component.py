"""Kubeflow component `deploy`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def deploy(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    dataset: dsl.Input[dsl.Dataset] = None,
    dataset_known: str = "",
    trained: dsl.Input[dsl.Model] = None,
    trained_known: str = "",
    evaluation: dsl.Input[dsl.Artifact] = None,
    evaluation_known: str = "",
    promotion: dsl.Input[dsl.Artifact] = None,
    promotion_known: str = "",
):
    """Serve the promoted model, measure it through its endpoint, and keep the service or go back.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to what became of the deployment, and to the evaluation through the endpoint.
        metrics: Metrics of the stage.
        dataset: Reference to the artifact of `prepare_data`.
        dataset_known: The same as JSON, if it was known before the run; then no task produces it.
        trained: Reference to the artifact of `ngrpo_training`.
        trained_known: The same as JSON, if it was known before the run; then no task produces it.
        evaluation: Reference to the artifact of `benchmark_evaluation`.
        evaluation_known: The same as JSON, if it was known before the run; then no task produces it.
        promotion: Reference to the artifact of `model_promotion`.
        promotion_known: The same as JSON, if it was known before the run; then no task produces it.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "deploy",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={
            "dataset": dataset_known or dataset.path,
            "trained": trained_known or trained.path,
            "evaluation": evaluation_known or evaluation.path,
            "promotion": promotion_known or promotion.path,
        },
        output=artifact.path,
        metrics=metrics.path,
        attempt="ngrpo_kfp.components.serving.attempt",  # it changes services on the cluster
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
