"""The exit task of a run on a cluster, which notifies webhooks of its end. Only pipelines of runs with notifications have it.

The backend makes an exit task a lifecycle hook of the tasks before it, so that it runs however they end, and puts these tasks into a DAG
within the root DAG (KFP 2.17, `argocompiler/dag.go`). After `ngrpo cancel` there is no time left for hooks.
"""

from __future__ import annotations

from collections.abc import Callable

from kfp import dsl
from pydantic import TypeAdapter

from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.end_of_run import Node, Told
from ngrpo_kfp.pipelines.graph import without_templates
from ngrpo_kfp.pipelines.kubeflow.end_of_run_component import end_of_run
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.pods import configure_end_of_run
from ngrpo_kfp.pipelines.planning.nodes import Plan


def exit_task(config: RunConfig, plan: Plan, images: Images, what: str) -> Callable[[], dsl.PipelineTask] | None:
    """Return a function that creates the exit task of a pipeline; None if nobody is notified.

    Args:
        config: Configuration of the run.
        plan: Its plan.
        images: Where the image is looked up.
        what: Description of the run for people.

    Raises:
        ConfigError: No secret of the cluster has the address of a webhook.
    """
    if not config.notifications:
        return None
    _require_addresses(config)
    nodes = [
        Node(name=node.name, stage=node.stage, key=node.key if DECLARED[node.stage].cacheable else "")
        for node in plan.to_run
    ]
    told = Told(what=what, model=config.promotion.model_name, nodes=nodes, notifications=dict(config.notifications))
    text = TypeAdapter(Told).dump_json(told).decode()

    def make() -> dsl.PipelineTask:
        task = end_of_run(told=without_templates(text), run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        configure_end_of_run(task, config, images)
        return task.set_caching_options(False)

    return make


def _require_addresses(config: RunConfig) -> None:
    known = {name for keys in config.cluster.secrets.values() for name in keys}
    missing = [
        f"notifications.{name}.url_from={each.url_from!r}: no secret of the cluster has it: name the key that does in "
        f"cluster.secrets.<secret>.{each.url_from}"
        for name, each in config.notifications.items()
        if each.url_from not in known
    ]
    if missing:
        raise ConfigError("\n".join(missing))
