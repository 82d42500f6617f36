"""Compile the pipeline of a plan to Kubeflow's intermediate representation, which a cluster runs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, dsl

from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.keys import config_json
from ngrpo_kfp.pipelines.graph import kubeflow_pipeline, without_templates
from ngrpo_kfp.pipelines.kubeflow.end_of_run import exit_task
from ngrpo_kfp.pipelines.kubeflow.graph_check import check_graph
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.pods import configure_pod
from ngrpo_kfp.pipelines.planning.content import require_in_pods
from ngrpo_kfp.pipelines.planning.nodes import History, Plan, PlannedStage
from ngrpo_kfp.pipelines.planning.plan import make_plan
from ngrpo_kfp.pipelines.planning.signatures import require_key_in_pods

IR = dict[str, Any]


def compile_pipeline(config: RunConfig, plan: Plan, images: Images, *, caching: bool) -> str:
    """Compile the stages that a plan has to run for a cluster, and check the result.

    The description of the pipeline is the configuration of the run, so that a run on the cluster can be planned again
    (`recorded_config`).

    Args:
        config: Configuration of the run.
        plan: The plan of the run.
        images: Where the images of the stages are looked up.
        caching: Whether Kubeflow may use its own cache for a stage. Set it for a pipeline that was compiled without a look at the
            artifacts; a plan for one run already knows which exist.

    Returns:
        YAML: the pipeline, and the platform specification.

    Raises:
        ConfigError: A stage asks for more than the cluster gives or has no image, or several nodes run a stage that is never cached.
        GraphError: The compiled graph is broken.
    """

    def configure(task: dsl.PipelineTask, node: PlannedStage) -> None:
        configure_pod(task, node, config, images)
        task.set_caching_options(caching and DECLARED[node.stage].cacheable)

    keyed = _keyed_by_run(plan)
    at_exit = exit_task(config, keyed, images, f"preset {config.preset}")
    description = without_templates(config_json(config))
    return compiled(kubeflow_pipeline(keyed, configure, description=description, at_exit=at_exit))


def compile_whole(config: RunConfig, images: Images) -> str:
    """Compile the pipeline with all stages, without a look at the store; see `compile_pipeline`.

    It is for users who upload the pipeline themselves. Schedules use `ngrpo_kfp.pipelines.kubeflow.scheduling.compilation`.
    """
    require_in_pods(config)
    require_key_in_pods(config)
    plan = make_plan(config, run="", store=None, rerun_tokens={}, history=History(), versions=images.versions(config))
    return compile_pipeline(config, plan, images, caching=True)


def compiled(pipeline: Any) -> str:
    """Compile a `dsl.pipeline`, and check the result; see `compile_pipeline`.

    Raises:
        GraphError: The compiled graph is broken.
    """
    with tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        path = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        text = path.read_text(encoding="utf-8")
    check_graph(*load_ir(text))
    return text


def load_ir(text: str) -> tuple[IR, IR]:
    """Return the two documents of a compiled pipeline: the pipeline, and the platform specification."""
    spec, *platform = yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return spec, platform[0] if platform else {}


def _keyed_by_run(plan: Plan) -> Plan:
    """Use the run's id as the key of a stage that is never cached, because the same pipeline may run many times.

    Raises:
        ConfigError: Several nodes run such a stage: Kubeflow replaces the placeholder of the run's id only if it is a whole parameter.
    """
    nodes: dict[str, PlannedStage] = {}
    keyed: dict[str, str] = {}
    for node in plan:
        if not DECLARED[node.stage].cacheable and node.same_as is None:
            if node.stage in keyed:
                raise ConfigError(
                    f"nodes {keyed[node.stage]} and {node.name}: on a cluster {node.stage} can run only once in a pipeline, because "
                    "the key of its result is the id of the run: leave one"
                )
            keyed[node.stage] = node.name
            node = replace(node, key=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        nodes[node.name] = node
    return Plan(nodes)
