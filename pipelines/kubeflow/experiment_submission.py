"""An experiment as one pipeline on a cluster: all runs in parallel, or in as many lanes as runs are allowed at the same time.

Kubeflow Pipelines 2.17 can limit only the parallel iterations of a loop (`ParallelFor`), and the iterations of a task share its pods'
resources, its labels and its name in MLflow. So every run has tasks of its own, and under a limit each run waits for the end of the one
before it in its lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kfp import dsl
from rich.console import Console

from ngrpo.checking.examination import require_possible
from ngrpo.errors import ConfigError
from ngrpo.report.phases import phase
from ngrpo.stages.keys import config_json
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.graph import kubeflow_pipeline, without_templates
from ngrpo_kfp.pipelines.kubeflow.client import connect
from ngrpo_kfp.pipelines.kubeflow.compilation import compiled
from ngrpo_kfp.pipelines.kubeflow.end_of_run import exit_task
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.pods import configure_pod
from ngrpo_kfp.pipelines.kubeflow.preflight import require
from ngrpo_kfp.pipelines.kubeflow.submission import EXPERIMENT, require_pods, rerun_tokens, show_started, start
from ngrpo_kfp.pipelines.planning.content import reader, require_in_pods
from ngrpo_kfp.pipelines.planning.experiment import Experiment, experiment_pipeline
from ngrpo_kfp.pipelines.planning.experiment_plan import ExperimentPlan, planned_experiment, show_experiment
from ngrpo_kfp.pipelines.planning.nodes import History, PlannedStage
from ngrpo_kfp.pipelines.planning.plan import make_plan
from ngrpo_kfp.pipelines.planning.signatures import require_key_in_pods, require_verified_base

_MOST_BYTES = 1_000_000
"""Size limit of a compiled pipeline: Argo keeps its Workflow in one Kubernetes object, and the database of Kubernetes takes 1.5 MiB."""


def submit_experiment(
    experiment: Experiment, images: Images, console: Console, *, cache: Path, name: str
) -> str | None:
    """Submit the missing parts of an experiment as one pipeline, and return the run's id; None if nothing is missing.

    Args:
        experiment: The experiment.
        images: Where the images of the stages are looked up.
        console: Where plan and run are shown.
        cache: Directory of verified downloads, in which the planner stores what it reads.
        name: Name of the run.

    Raises:
        NGRPOError: The user can fix it. Nothing was submitted, unless the message says that this is unknown.
    """
    experiment.require(lambda arm, config: require_possible(config))
    experiment.require(lambda arm, config: require_in_pods(config))
    experiment.require(lambda arm, config: require_key_in_pods(config))
    experiment.require(lambda arm, config: require_verified_base(config, config.cluster.store))
    with phase(console, "looking at the store"):
        planned, _ = planned_there(experiment, images, cache)
    show_experiment(planned, console, {})
    if not planned.plan.to_run:
        return None
    experiment.require(lambda arm, config: require_pods(config, images, planned.of_arm(arm).stages_to_run))
    with phase(console, "compiling, looking at the cluster, submitting"):
        text = compile_experiment(planned, images)
        client = connect()
        for arm, stages in _different(planned).items():
            require(experiment.arms[arm], images, console, stages)
        run = start(client, experiment.baseline, text, name)
    return show_started(run, console)


def planned_there(experiment: Experiment, images: Images, cache: Path) -> tuple[ExperimentPlan, ArtifactStore]:
    """Plan an experiment on a cluster, and return the plan and the store that it was made with.

    The plan goes arm by arm, so that parallel runs have different seeds and none generates samples that another is generating.

    Raises:
        StoreError: The object store of the cluster cannot be reached.
        ConfigError: The libraries of the images are not known.
    """
    config = experiment.baseline
    objects = ObjectStore(config.cluster.store)
    objects.check()
    store = ArtifactStore(objects, cache)
    runs = experiment.by_arm
    plan = make_plan(
        config,
        run="",
        store=store,
        rerun_tokens=rerun_tokens(objects),
        history=History(),
        versions=images.versions(config),
        pipeline=experiment_pipeline(experiment, runs),
        contents={},
        read=reader(),
    )
    return planned_experiment(experiment, runs, plan), store


def compile_experiment(planned: ExperimentPlan, images: Images) -> str:
    """Compile the stages that the plan of an experiment has to run, and check the result; see `compile_pipeline`.

    Raises:
        ConfigError: A stage asks for more than the cluster gives or has no image, or the pipeline is too large for Kubernetes.
        GraphError: The compiled graph is broken.
    """
    experiment = planned.experiment
    configs = {name: experiment.config(run) for run, names in planned.nodes.items() for name in names}
    waits = lanes(planned)
    made: dict[str, dsl.PipelineTask] = {}

    def configure(task: dsl.PipelineTask, node: PlannedStage) -> None:
        configure_pod(task, node, configs[node.name], images)
        task.set_caching_options(False)
        made[node.name] = task
        if node.name in waits:
            task.after(made[waits[node.name]])

    description = without_templates(config_json(experiment.baseline))
    at_exit = exit_task(experiment.baseline, planned.plan, images, f"experiment {experiment.name}")
    pipeline = kubeflow_pipeline(planned.plan, configure, description=description, name=EXPERIMENT, at_exit=at_exit)
    text = compiled(pipeline)
    if len(text.encode()) > _MOST_BYTES:
        raise ConfigError(
            f"experiment {experiment.name}: its pipeline of {len(planned.plan.to_run)} stages has {len(text.encode()) / 1e6:.1f} MB, and "
            f"Kubernetes takes about {_MOST_BYTES / 1e6:.0f}: submit a copy of the file with fewer seeds first, then this one: what was "
            "made is kept"
        )
    return text


def lanes(planned: ExperimentPlan) -> dict[str, str]:
    """Return which node waits for which, so that no more runs are active at a time than the experiment allows."""
    limit = planned.experiment.file.parallel
    own = [
        [name for name in names if planned.plan[name].same_as is None and not planned.plan[name].cached]
        for names in planned.nodes.values()
    ]
    runs = [names for names in own if names]
    if limit is None:
        return {}
    return {
        name: earlier[-1]
        for earlier, later in zip(runs, runs[limit:], strict=False)
        for name in later
        if not any(source.name in later for source in planned.plan[name].inputs.values())
    }


def _different(planned: ExperimentPlan) -> Mapping[str, list[str]]:
    """Return arms with different requests of their pods, one for each, with the stages that have to run."""
    found: dict[str, tuple[str, list[str]]] = {}
    for arm, config in planned.experiment.arms.items():
        stages = planned.of_arm(arm).stages_to_run
        asked = str({stage: config.needs(stage) for stage in stages})
        if stages:
            found.setdefault(asked, (arm, stages))
    return dict(found.values())
