"""Kubeflow component `watch_champion`: no stage, but what a schedule runs to look at the served champion."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def watch_champion(config: str):
    """Measure the champion where it is served. The task fails where there is an alert, so that Kubeflow shows it.

    Args:
        config: Configuration of the run that made the champion, with `watch`, as JSON.
    """
    import json
    import sys

    from ngrpo.environment import adopt_s3_names
    from ngrpo_kfp.pipelines.kubeflow.scheduling.watch_task import watch_in_pod

    adopt_s3_names()
    sys.exit(watch_in_pod(json.loads(config)))
