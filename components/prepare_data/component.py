"""Kubeflow component `prepare_data`."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def prepare_data(
    config: str,
    key: str,
    code_version: str,
    artifact: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Read, check and filter training and held-out problems.

    Args:
        config: Settings of the stage as JSON.
        key: Key of the result.
        code_version: Hash of the stage's source.
        artifact: Reference to the tables and their sources.
        metrics: Metrics of the stage.
    """
    from ngrpo.stages.step import execute

    values = execute(
        "prepare_data",
        config_json=config,
        key=key,
        code_version=code_version,
        inputs={},
        output=artifact.path,
        metrics=metrics.path,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
