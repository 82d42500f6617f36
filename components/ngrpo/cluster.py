"""How stages run on a Kubernetes cluster: the section `cluster` of the configuration.

No setting here changes a result, and so none is part of a stage's key: what a laptop has made, a cluster finds, and the other
way round.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ngrpo.environment import CREDENTIAL, holds_credential
from ngrpo.errors import ConfigError
from ngrpo.section import NonNegative, Positive, Section, StageName

KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
LabelName = Annotated[str, Field(pattern=r"^([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

SCRATCH = "/scratch"
"""Directory of a pod that may be written to."""
TRAINING_TOKEN = "/var/run/secrets/ngrpo-training"
"""Directory with the token, the authority and the namespace by which a step makes a job (`ClusterConfig.training_token`)."""
STAGE_LABEL = "ngrpo/stage"
"""Label of a pod: the stage it runs."""

_QUEUE_LABELS = "kueue.x-k8s.io/"


class ResourcesConfig(Section):
    """What one stage's pod asks for on a cluster."""

    gpus: NonNegative = 0
    """GPUs."""
    gpu_memory_gib: NonNegative = 0
    """Memory that each GPU must have."""
    cpus: Positive = 2
    """Processor cores."""
    memory_gib: Positive = 8
    """Memory."""


class Toleration(Section):
    """A taint that pods tolerate."""

    key: str
    """Key of the taint."""
    operator: Literal["Equal", "Exists"] = "Exists"
    """Whether the taint's value matters."""
    value: str | None = None
    """Value of the taint; `Equal` only."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect that is tolerated; none tolerates all."""

    @model_validator(mode="after")
    def _value_goes_with_equal(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(
                f"toleration of {self.key}: operator={self.operator} with value={self.value}: `Equal` needs a value, "
                "`Exists` takes none"
            )
        return self


class GPUConfig(Section):
    """The nodes with GPUs, and what pods that ask for GPUs get beside them."""

    resource: str = "nvidia.com/gpu"
    """Name of the resource that the device plugin offers."""
    per_pod: Positive = 8
    """Most GPUs that one pod can get: those of a node."""
    memory_gib: Positive = 80
    """Memory of each GPU."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes to choose, for example the type of the GPU."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of these nodes."""
    shared_memory_gib: Positive = 16
    """Size of `/dev/shm`, which NCCL and vLLM need; it counts as memory of the pod."""


class RetryConfig(Section):
    """How often a stage that failed is tried again. Stages with effects outside the store never are."""

    times: NonNegative = 2
    """Tries after the first."""
    backoff_seconds: Positive = 60
    """Seconds before the first of them."""
    backoff_factor: Annotated[float, Field(ge=1.0)] = 2.0
    """How much longer each wait is than the one before."""
    backoff_max_seconds: Positive = 3600
    """Longest time over which a stage is tried again."""


class ClusterConfig(Section):
    """Where and how pods run."""

    store: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/.*)?$")] = "s3://ngrpo/artifacts"
    """Artifact store, as pods and planner both know it."""
    environment: dict[VariableName, str] = {}
    """Environment of every pod: addresses (`AWS_ENDPOINT_URL`, `MLFLOW_TRACKING_URI`), no credentials."""
    secrets: dict[KubernetesName, dict[VariableName, str]] = {}
    """By Kubernetes secret: environment variable and the secret's key that it takes its value from."""
    service_account: KubernetesName | None = None
    """Service account of the pods; none takes that of the installation."""
    labels: dict[LabelName, LabelValue] = {}
    """Labels of every pod, for what acts on pods by label: `sidecar.istio.io/inject`, Kubeflow's `access-ml-pipeline`."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes to choose, for every pod."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that every pod tolerates."""
    gpu: GPUConfig = GPUConfig()
    cpus_per_pod: Positive = 64
    """Most processor cores that one pod can get."""
    memory_gib_per_pod: Positive = 512
    """Most memory that one pod can get."""
    scratch_gib: Positive = 50
    """Disk of a pod for downloads, caches and unfinished work."""
    queue: KubernetesName | None = None
    """Kueue local queue; none leaves pods to the scheduler."""
    priority_class: KubernetesName | None = None
    """Kueue workload priority class."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When images are pulled; they are named by digest, so that what is present is right. A `TrainJob` keeps its runtime's policy."""
    image_pull_secrets: tuple[KubernetesName, ...] = ()
    """Secrets with the credentials of the image registry."""
    run_as_user: Positive = 1000
    """User of the processes; root is refused."""
    run_as_group: Positive = 1000
    """Group of the processes."""
    timeout_hours: Positive = 24
    """Longest time a stage's pod may take."""
    stage_timeout_hours: dict[StageName, Positive] = {}
    """The same, for the stages that are named."""
    retry: RetryConfig = RetryConfig()
    nodes: Positive = 1
    """Nodes that train together, each with `resources.ngrpo_training`; more than one are a `TrainJob` of Kubeflow Trainer."""
    training_runtime: KubernetesName = "ngrpo-training"
    """Runtime (torch) of that job, `k8s/overlays/gpu` has one; a runtime of the namespace goes before one of the cluster."""
    training_token: KubernetesName | None = None
    """Secret with the token of the account that makes that job; none takes the account of the pods, which then needs its rights."""
    nodes_start_minutes: Annotated[float, Field(gt=0.0)] = 120.0
    """Longest time until all its nodes run, a queue's included; then the job is given up."""

    @model_validator(mode="after")
    def _variables(self) -> Self:
        open_secrets = sorted(
            name for name, value in self.environment.items() if CREDENTIAL.search(name) or holds_credential(value)
        )
        if open_secrets:
            raise ValueError(
                f"environment.{open_secrets[0]} is or holds what looks like a credential, and the pipeline would hold it in clear: "
                f"put it into a Kubernetes secret and name that in secrets.<secret>.{open_secrets[0]}"
            )
        shown = sorted(secret for secret, keys in self.secrets.items() if any(map(holds_credential, keys.values())))
        if shown:
            raise ValueError(f"secrets.{shown[0]} holds a credential itself: name the key of the secret that has it")
        names = [*self.environment, *(name for variables in self.secrets.values() for name in variables)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is set twice in environment and secrets: leave one")
        return self

    @model_validator(mode="after")
    def _labelled_once(self) -> Self:
        own = sorted(name for name in self.labels if name == STAGE_LABEL or name.startswith(_QUEUE_LABELS))
        if own:
            raise ValueError(
                f"labels.{own[0]} is set by ngrpo itself: leave it out; queue and priority_class are Kueue's"
            )
        return self

    @model_validator(mode="after")
    def _queued(self) -> Self:
        if self.priority_class is not None and self.queue is None:
            raise ValueError(
                f"priority_class={self.priority_class!r} is Kueue's and needs a queue: set queue, or leave it out"
            )
        return self

    def require_room(self, stage: str, needs: ResourcesConfig) -> None:
        """Refuse what no pod of this cluster can get.

        Raises:
            ConfigError: Names the setting of the stage and the limit it exceeds.
        """
        limits = {
            "gpus": (needs.gpus, "gpu.per_pod", self.gpu.per_pod),
            "gpu_memory_gib": (needs.gpu_memory_gib, "gpu.memory_gib", self.gpu.memory_gib),
            "cpus": (needs.cpus, "cpus_per_pod", self.cpus_per_pod),
            "memory_gib": (needs.memory_gib, "memory_gib_per_pod", self.memory_gib_per_pod),
        }
        for name, (wanted, limit, most) in limits.items():
            if wanted > most:
                raise ConfigError(
                    f"resources.{stage}.{name}={wanted} exceeds cluster.{limit}={most}: lower the one, or raise the other if "
                    "the cluster has more"
                )
        if needs.gpus and self.gpu.shared_memory_gib >= needs.memory_gib:
            raise ConfigError(
                f"cluster.gpu.shared_memory_gib={self.gpu.shared_memory_gib} is taken from resources.{stage}.memory_gib="
                f"{needs.memory_gib} and leaves nothing: raise the latter"
            )

    def pod_environment(self) -> dict[str, str]:
        """Return the environment of every pod, less what comes from secrets."""
        own = {
            "NGRPO_STORE": self.store,
            "NGRPO_CACHE_DIR": f"{SCRATCH}/cache",
            "NGRPO_WORK_DIR": f"{SCRATCH}/work",
            "HOME": SCRATCH,  # a user without a home directory: libraries keep their caches there
        }
        return own | self.environment

    def queue_labels(self) -> dict[str, str]:
        """Return the labels by which Kueue knows what is to wait in the queue."""
        labels = {f"{_QUEUE_LABELS}queue-name": self.queue, f"{_QUEUE_LABELS}priority-class": self.priority_class}
        return {name: value for name, value in labels.items() if value is not None}

    def timeout_seconds(self, stage: str) -> int:
        """Return the longest time that a stage's pod may take."""
        own = (hours for name, hours in self.stage_timeout_hours.items() if name == stage)
        return 3600 * next(own, self.timeout_hours)
