"""Kubeflow component `scheduled_run`: no stage, but what a schedule runs to plan and submit the run of the day."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def scheduled_run(config: str, images: str, base: str, key: str):
    """Plan a run, submit what is left to do, and wait for its end.

    Args:
        config: Configuration of the run as JSON.
        images: Text of `images.lock`.
        base: `champion` for a run that starts from the champion of the day; empty for the base model of the configuration.
        key: Id of the run that this is the task of.
    """
    import json
    import os
    import sys

    from ngrpo.config.cluster import RetryConfig
    from ngrpo.environment import addresses_without_users, adopt_s3_names
    from ngrpo.stages.supervision import supervise
    from ngrpo.stages.surroundings import TRIES, Surroundings

    adopt_s3_names()
    with addresses_without_users():
        surroundings = Surroundings.from_environment()
        supervise(
            [sys.executable, "-m", "ngrpo_kfp.pipelines.kubeflow.scheduling.planning_task"],
            stage="scheduled_run",
            key=key,
            stdin=json.dumps({"config_json": config, "images": images, "base": base, "parent": key}),
            retry=RetryConfig.model_validate_json(os.environ[TRIES]),
            store=surroundings.store,
            pipeline_run=key,
            scratch=surroundings.work,
        )
