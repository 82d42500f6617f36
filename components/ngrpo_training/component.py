"""Kubeflow component `ngrpo_training`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def ngrpo_training(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    dataset: dsl.Input[dsl.Dataset] = None,
    dataset_known: str = "",
    neighbor_index: dsl.Input[dsl.Artifact] = None,
    neighbor_index_known: str = "",
    warm_start: dsl.Input[dsl.Model] = None,
    warm_start_known: str = "",
):
    """Train the warm-started model with N-GRPO.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to the trained model.
        metrics: Metrics of the stage.
        dataset: Reference to the artifact of `prepare_data`.
        dataset_known: The same as JSON, if it was known before the run; then no task produces it.
        neighbor_index: Reference to the artifact of `neighbor_index`.
        neighbor_index_known: The same as JSON, if it was known before the run; then no task produces it.
        warm_start: Reference to the artifact of `sft_warm_start`.
        warm_start_known: The same as JSON, if it was known before the run; then no task produces it.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "ngrpo_training",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={
            "dataset": dataset_known or dataset.path,
            "neighbor_index": neighbor_index_known or neighbor_index.path,
            "warm_start": warm_start_known or warm_start.path,
        },
        output=artifact.path,
        metrics=metrics.path,
        attempt="ngrpo_kfp.components.launching.attempt",  # it may work on several nodes
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
