"""Kubeflow component `champion_run`: no stage, but what a schedule runs to start a run from the champion of the day."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def champion_run(config: str, images: str):
    """Submit a run that starts from the champion, and wait for its end.

    Args:
        config: Configuration of the run as JSON, with the base model to replace.
        images: Text of `images.lock`.
    """
    from ngrpo_kfp.pipelines.champion_run import submit_and_wait

    submit_and_wait(config, images)
