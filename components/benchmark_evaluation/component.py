"""Kubeflow component `benchmark_evaluation`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def benchmark_evaluation(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    dataset: dsl.Input[dsl.Dataset] = None,
    dataset_known: str = "",
    warm_start: dsl.Input[dsl.Model] = None,
    warm_start_known: str = "",
    trained: dsl.Input[dsl.Model] = None,
    trained_known: str = "",
):
    """Measure base model, warm start and trained model on held-out problems.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to samples, grades and statistics.
        metrics: Metrics of the stage.
        dataset: Reference to the artifact of `prepare_data`.
        dataset_known: The same as JSON, if it was known before the run; then no task produces it.
        warm_start: Reference to the artifact of `sft_warm_start`.
        warm_start_known: The same as JSON, if it was known before the run; then no task produces it.
        trained: Reference to the artifact of `ngrpo_training`.
        trained_known: The same as JSON, if it was known before the run; then no task produces it.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "benchmark_evaluation",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={
            "dataset": dataset_known or dataset.path,
            "warm_start": warm_start_known or warm_start.path,
            "trained": trained_known or trained.path,
        },
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
