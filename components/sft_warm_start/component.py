"""Kubeflow component `sft_warm_start`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def sft_warm_start(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    dataset: dsl.Input[dsl.Dataset] = None,
    dataset_known: str = "",
):
    """Teach the base model the form of an answer by supervised fine-tuning.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to the warm-started model.
        metrics: Metrics of the stage.
        dataset: Reference to the artifact of `prepare_data`.
        dataset_known: The same as JSON, if it was known before the run; then no task produces it.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "sft_warm_start",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={"dataset": dataset_known or dataset.path},
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
