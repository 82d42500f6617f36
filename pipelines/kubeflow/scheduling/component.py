"""Kubeflow components that are not stages: what a schedule, and a run form, run to plan and submit a run of its own."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def scheduled_run(config: str, images: str, base: str, key: str, cron: str = "", time_zone: str = "", seed: str = ""):
    """Plan a run, submit what is left to do, and wait for its end.

    Args:
        config: Configuration of the run as JSON.
        images: Text of `images.lock`.
        base: `champion` for a run that starts from the champion of the day; empty for the base model of the configuration.
        key: Id of the run that this is the task of.
        cron: Times of the schedule in time_zone; empty where they are in UTC.
        time_zone: Time zone of the schedule; empty where it is UTC.
        seed: each-run for another seed in each run; empty for the seed of the configuration.
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
            stdin=json.dumps(
                {
                    "config_json": config,
                    "images": images,
                    "base": base,
                    "parent": key,
                    "cron": cron,
                    "time_zone": time_zone,
                    "seed": seed,
                }
            ),
            retry=RetryConfig.model_validate_json(os.environ[TRIES]),
            store=surroundings.store,
            pipeline_run=key,
            scratch=surroundings.work,
        )


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def requested_run(
    preset: str,
    seed: int,
    overrides: list,  # type: ignore[type-arg]  # kfp wants it bare
    base: str,
    cluster: str,
    presets: str,
    images: str,
    key: str,
):
    """Plan the run that somebody asked for in Kubeflow's form, submit what is left to do, and wait for its end.

    Args:
        preset: Name of the preset.
        seed: Seed of the run.
        overrides: Settings that override the preset, SECTION.FIELD=VALUE.
        base: champion for a run that starts from the champion; empty for the base model of the preset.
        cluster: The section cluster as JSON.
        presets: Configurations of presets that the package does not have, by name, as JSON.
        images: Text of images.lock.
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
            stage="requested_run",
            key=key,
            stdin=json.dumps(
                {
                    "preset": preset,
                    "seed": seed,
                    "overrides": overrides,
                    "base": base,
                    "cluster": json.loads(cluster),
                    "presets": json.loads(presets),
                    "images": images,
                    "parent": key,
                }
            ),
            retry=RetryConfig.model_validate_json(os.environ[TRIES]),
            store=surroundings.store,
            pipeline_run=key,
            scratch=surroundings.work,
        )
