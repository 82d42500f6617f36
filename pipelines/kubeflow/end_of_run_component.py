"""Kubeflow component `end_of_run`: no stage, but the exit task of a run that somebody wants to be told of."""

from kfp import dsl


@dsl.component(base_image="ngrpo/python:0.1.0", packages_to_install=[], install_kfp_package=False)
def end_of_run(told: str, run: str, status: dsl.PipelineTaskFinalStatus):
    """Tell the webhooks of a run how it ended.

    Args:
        told: What the run had to do, and who is told of its end, as JSON.
        run: Id of the run.
        status: Kubeflow's word on the tasks of the run.
    """
    from ngrpo.stages.end_of_run import tell

    tell(told, run, status.state)
