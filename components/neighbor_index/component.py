"""Kubeflow component `neighbor_index`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def neighbor_index(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Find the nearest neighbors of every token in the base model's embedding matrix.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to the neighbor index.
        metrics: Metrics of the stage.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "neighbor_index",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={},
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
