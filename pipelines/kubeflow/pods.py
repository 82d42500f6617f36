"""Settings of a stage's pod on a cluster: image, resources, placement, environment, limits and retries.

A failed stage is retried inside its pod (`NGRPO_TRIES`). Argo's retries only replace lost pods: KFP's installation merges
`retryPolicy: OnError` into every template, and a pipeline cannot choose the policy. These retries are nested: Argo repeats the stage's
pod, the stage's DAG, `root` and the whole Workflow, the last three twice each whatever the pipeline says. So every stage must tolerate
being run again, even after success: artifacts are published once under their key, and a promotion is recorded in its journal before it
is carried out.

kfp-kubernetes 2.17 cannot set a priority class, limits on a container's disk, or an fsGroup. The priority is therefore Kueue's, which is
a label, and data below `SCRATCH` is limited by the volume. The backend drops capabilities, forbids privilege escalation and sets the
default seccomp profile.
"""

from __future__ import annotations

import json

from kfp import dsl, kubernetes

from ngrpo.config import RunConfig
from ngrpo.config.cluster import (
    CERTIFICATES,
    DEPLOYMENT_TOKEN,
    SCRATCH,
    STAGE_LABEL,
    TRAINING_TOKEN,
    ClusterConfig,
    ResourcesConfig,
    Toleration,
)
from ngrpo.config.costs import CostsConfig
from ngrpo.config.signing import PASSWORD
from ngrpo.config.stages import stages_of
from ngrpo.environment import METRICS_HOST, METRICS_PORT, PRICES
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import DECLARED, STAGES, TRAININGS
from ngrpo.stages.surroundings import IMAGES, PIPELINE_RUN, PROCESSES, TRIES
from ngrpo_kfp.components.launching.train_job_manifest import TRAIN_JOB, JobSettings
from ngrpo_kfp.components.serving.inference_service import require_servable
from ngrpo_kfp.pipelines.kubeflow.client import ENDPOINT, NAMESPACE
from ngrpo_kfp.pipelines.kubeflow.images import Images, image_name
from ngrpo_kfp.pipelines.planning.nodes import PlannedStage

RUN_LABEL = "pipeline/runid"
"""Label that Kubeflow sets on every pod of a run: the run's id."""
_SIGNING_STAGE = "model_promotion"
_DEPLOYING_STAGE = "deploy"
_ANNOUNCING = ("end_of_run", "watch_champion")
_LAUNCHER = ResourcesConfig(cpus=1, memory_gib=2)
"""Resources of the launcher pod, which creates and watches the TrainJob."""
_SLACK_MINUTES = 10
"""Extra lifetime of the launcher pod, so that it can report the outcome of its TrainJob."""
_END_OF_RUN_SECONDS = 900
"""Time limit of the exit task, enough for an unreachable store and the slowest webhooks."""
_LOST_POD_WAIT = "10s"
_YEAR = "31536000s"
"""Argo's time limit of retries starts when the first pod is created, includes queueing, and also ends the replacement pod."""


def configure_pod(task: dsl.PipelineTask, node: PlannedStage, config: RunConfig, images: Images) -> None:
    """Configure a task for its stage's pod.

    Args:
        task: The task of the node.
        node: The node; its pod requests the resources of its stage.
        config: Configuration of the run: `resources` and `cluster`.
        images: Where the image is looked up: `gpu` for a stage that requests GPUs, `cpu` for the others.

    Raises:
        ConfigError: The stage requests more than a pod can get, or there is no such image.
    """
    stage, cluster, needs = node.stage, _cluster_of(config, node.stage), config.needs(node.stage)
    cluster.require_room(stage, needs)
    timeout = cluster.timeout_seconds(stage)
    if cluster.nodes > 1 and DECLARED[stage].parallel:
        reference = images.reference(_image(needs))
        settings = JobSettings(image=reference, needs=needs, cluster=cluster, generating=config.rollout.gpus)
        task.set_env_variable(TRAIN_JOB, settings.model_dump_json(exclude_defaults=True))
        if cluster.training_token is not None:
            # A step cannot have its own service account: all pods of a run share one.
            kubernetes.use_secret_as_volume(task, cluster.training_token, TRAINING_TOKEN)
        needs = _LAUNCHER
        # In each try the nodes may have to wait before they start.
        timeout += int(60 * ((cluster.retry.times + 1) * cluster.nodes_start_minutes + _SLACK_MINUTES))
    elif stage in TRAININGS:
        _expose(task, cluster)
    _prepare(task, node.name, needs, cluster, images)
    if config.costs != CostsConfig():
        task.set_env_variable(PRICES, config.costs.model_dump_json())
    if needs.gpus:
        task.set_accelerator_type(cluster.gpu.resource).set_accelerator_limit(needs.gpus)
        _place(task, cluster.gpu.node_selector, cluster.gpu.tolerations)
        shared = f"{cluster.gpu.shared_memory_gib}Gi"
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=shared)
    for name, value in cluster.queue_labels().items():
        kubernetes.add_pod_label(task, name, value)
    if (processes := config.processes(stage)) > 1 and DECLARED[stage].parallel:
        task.set_env_variable(PROCESSES, str(processes))
    kubernetes.set_timeout(task, timeout)
    task.set_env_variable(TRIES, cluster.retry.model_dump_json(exclude={"lost_pods"}))
    if stage == _DEPLOYING_STAGE:
        require_servable(config)
        if config.deployment.token is not None:
            kubernetes.use_secret_as_volume(task, config.deployment.token, DEPLOYMENT_TOKEN)
    if stage == _DEPLOYING_STAGE or (stage == _SIGNING_STAGE and config.signing.private_key is not None):
        held = {name: images.reference(image_name(config, name)) for name in STAGES}
        task.set_env_variable(IMAGES, json.dumps(held))


def configure_planner(task: dsl.PipelineTask, name: str, config: RunConfig, images: Images) -> None:
    """Configure a task that plans and submits a run.

    It waits for pods that may be queued, so it must not be queued itself.

    Args:
        task: The task.
        name: Its name: `scheduled_run` or `requested_run`.
        config: Configuration of that run, or a similar one: `cluster`.
        images: Where the image is looked up.

    Raises:
        ConfigError: There is no such image, or the address of Kubeflow's API is not set for pods.
    """
    cluster = _cluster_of(config, "scheduled_run")
    if ENDPOINT not in cluster.environment:
        raise ConfigError(
            f"cluster.environment.{ENDPOINT}: missing; schedules and forms submit runs from a pod: name the API as pods reach it, for "
            "example http://ml-pipeline.kubeflow.svc:8888"
        )
    _prepare(task, name, _LAUNCHER, cluster, images)
    task.set_env_variable(TRIES, cluster.retry.model_dump_json())
    if NAMESPACE not in cluster.environment:
        kubernetes.use_field_path_as_env(task, NAMESPACE, "metadata.namespace")
    if cluster.training_token is not None:
        # This account may list pods, and so detect an image that cannot be pulled; without it the run is not watched for that.
        kubernetes.use_secret_as_volume(task, cluster.training_token, TRAINING_TOKEN, optional=True)
    kubernetes.set_timeout(task, sum(cluster.timeout_seconds(stage) for stage in stages_of(config)))


def configure_watch(task: dsl.PipelineTask, config: RunConfig, images: Images) -> None:
    """Configure the task `watch_champion`: its pod downloads the champion's weights but needs no GPU, which the endpoint has.

    Raises:
        ConfigError: It requests more than a pod can get, or there is no such image.
    """
    cluster = _cluster_of(config, "watch_champion")
    needs = config.needs("benchmark_evaluation").model_copy(update={"gpus": 0, "gpu_memory_gib": 0})
    cluster.require_room("benchmark_evaluation", needs)
    _prepare(task, "watch_champion", needs, cluster, images)
    for name, value in cluster.queue_labels().items():
        kubernetes.add_pod_label(task, name, value)
    kubernetes.set_timeout(task, cluster.timeout_seconds("benchmark_evaluation"))


def configure_end_of_run(task: dsl.PipelineTask, config: RunConfig, images: Images) -> None:
    """Configure the exit task of a run: it is not queued, and only it has the addresses of webhooks.

    Raises:
        ConfigError: There is no such image.
    """
    _prepare(task, "end_of_run", _LAUNCHER, _cluster_of(config, "end_of_run"), images)
    kubernetes.set_timeout(task, _END_OF_RUN_SECONDS)


def _cluster_of(config: RunConfig, task: str) -> ClusterConfig:
    """Return the cluster settings of a task, with only the secrets that it may have.

    Only the pod that signs gets the signing key, and only pods that notify get the addresses of webhooks, because others run users' code.
    """
    kept_back: set[str] = set()
    rolls_back = task == "watch_champion" and config.watch is not None and config.watch.action == "rollback"
    if config.signing.key_variable is not None and task != _SIGNING_STAGE and not rolls_back:
        kept_back |= {config.signing.key_variable, PASSWORD}
    if task not in _ANNOUNCING:
        kept_back |= {each.url_from for each in config.notifications.values()}
    given = {
        secret: {variable: key for variable, key in variables.items() if variable not in kept_back}
        for secret, variables in config.cluster.secrets.items()
    }
    return config.cluster.model_copy(
        update={"secrets": {secret: variables for secret, variables in given.items() if variables}}
    )


def _expose(task: dsl.PipelineTask, cluster: ClusterConfig) -> None:
    """Let Prometheus scrape the training in a pod, if the cluster opens a port for it."""
    if cluster.metrics_port is None:
        return
    task.set_env_variable(METRICS_PORT, str(cluster.metrics_port))
    kubernetes.use_field_path_as_env(task, METRICS_HOST, "status.podIP")
    for name, value in cluster.scrape_annotations().items():
        kubernetes.add_pod_annotation(task, name, value)


def _prepare(task: dsl.PipelineTask, name: str, needs: ResourcesConfig, cluster: ClusterConfig, images: Images) -> None:
    task.set_container_image(images.reference(_image(needs)))
    # Requests equal limits: pods without guaranteed memory are evicted first.
    task.set_cpu_request(str(needs.cpus)).set_cpu_limit(str(needs.cpus))
    task.set_memory_request(f"{needs.memory_gib}Gi").set_memory_limit(f"{needs.memory_gib}Gi")
    _place(task, cluster.node_selector, cluster.tolerations)
    for label, value in {**cluster.labels, STAGE_LABEL: name}.items():
        kubernetes.add_pod_label(task, label, value)
    _set_environment(task, needs, cluster)
    _restrict(task, cluster)
    # Constant waits: with growing ones, a pod that is preempted repeatedly would wait longer and longer.
    task.set_retry(
        cluster.retry.lost_pods, backoff_duration=_LOST_POD_WAIT, backoff_factor=1, backoff_max_duration=_YEAR
    )


def _image(needs: ResourcesConfig) -> str:
    return "gpu" if needs.gpus else "cpu"


def _place(task: dsl.PipelineTask, labels: dict[str, str], tolerations: tuple[Toleration, ...]) -> None:
    for key, value in labels.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())


def _set_environment(task: dsl.PipelineTask, needs: ResourcesConfig, cluster: ClusterConfig) -> None:
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=f"{cluster.scratch_of(needs)}Gi")
    for name, value in cluster.pod_environment().items():
        task.set_env_variable(name, value)
    kubernetes.use_field_path_as_env(task, PIPELINE_RUN, f"metadata.labels['{RUN_LABEL}']")
    if cluster.certificate_authority is not None:
        kubernetes.use_config_map_as_volume(task, cluster.certificate_authority, CERTIFICATES)
    for secret, variables in cluster.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {key: name for name, key in variables.items()})


def _restrict(task: dsl.PipelineTask, cluster: ClusterConfig) -> None:
    kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))
    kubernetes.set_security_context(
        task, run_as_user=cluster.run_as_user, run_as_group=cluster.run_as_group, run_as_non_root=True
    )
