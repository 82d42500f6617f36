"""Kubeflow component `benchmark_evaluation`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def benchmark_evaluation(
    config: str,
    key: str,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    warm_start: dsl.Input[dsl.Model],
    trained: dsl.Input[dsl.Model],
    artifact: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure base model, warm start and trained model on held-out problems.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        dataset: Reference to the artifact of `prepare_data`.
        warm_start: Reference to the artifact of `sft_warm_start`.
        trained: Reference to the artifact of `ngrpo_training`.
        artifact: Reference to samples, grades and statistics.
        metrics: Metrics of the stage.
    """
    from ngrpo.stages.execution import execute

    values = execute(
        "benchmark_evaluation",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={"dataset": dataset.path, "warm_start": warm_start.path, "trained": trained.path},
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
