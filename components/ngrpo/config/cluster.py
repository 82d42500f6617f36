"""How stages run on a Kubernetes cluster: the section `cluster` of the configuration.

No setting here changes a result, and so none is part of a stage's key: what a laptop has made, a cluster finds, and the other
way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ngrpo.config.declared import StageName
from ngrpo.environment import CREDENTIAL, SAVE_MINUTES, holds_credential
from ngrpo.errors import ConfigError
from ngrpo.section import GiB, Section, StoreURI, Text, count, number, refuse, unless_set

KubernetesName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)
]
QueueName = Annotated[KubernetesName, Field(max_length=63)]
"""Becomes the value of a label."""
LabelName = Annotated[
    str, Field(pattern=r"^([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)]
SecretKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,253}$")]
Cores = Annotated[int, count(1, 10_000)]
UserId = Annotated[int, count(1, 2**31 - 1)]
Seconds = Annotated[int, count(1, 31_536_000)]
Hours = Annotated[int, count(1, 8760)]
"""A year at most."""

SCRATCH = "/scratch"
"""Directory of a pod that may be written to."""
TRAINING_TOKEN = "/var/run/secrets/ngrpo-training"
"""Directory with the token, the authority and the namespace by which a step makes a job (`ClusterConfig.training_token`)."""
DEPLOYMENT_TOKEN = "/var/run/secrets/ngrpo-deployment"
"""The same of the account by which a step changes services (`DeploymentConfig.token`)."""
CERTIFICATES = "/var/run/ngrpo/certificates"
"""Directory with the certificates that pods trust (`ClusterConfig.certificate_authority`)."""
STAGE_LABEL = "ngrpo/stage"
"""Label of a pod: the node of the pipeline that it is, which is called like the stage that it runs, or `<stage>.<label>`."""

_QUEUE_LABELS = "kueue.x-k8s.io/"
# Read by boto3, by requests (MLflow, the hub) and by OpenSSL.
_CERTIFICATE_VARIABLES = ("NGRPO_S3_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_AWS = "AWS_"
_S3 = "NGRPO_S3_"


class ResourcesConfig(Section):
    """Resources that a stage's pod requests on a cluster."""

    gpus: Annotated[int, count(0, 1024)] = 0
    """GPUs."""
    gpu_memory_gib: Annotated[int, count(0, 100_000)] = 0
    """Memory that each GPU must have."""
    cpus: Cores = 2
    """Processor cores."""
    memory_gib: GiB = 8
    """Memory."""
    scratch_gib: GiB | None = None
    """Disk for downloads, caches and unfinished work; none takes `cluster.scratch_gib`."""


class Toleration(Section):
    """A taint that pods tolerate."""

    key: LabelName
    """Key of the taint."""
    operator: Literal["Equal", "Exists"] = "Exists"
    """Whether the taint's value matters."""
    value: LabelValue | None = None
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
    """The nodes with GPUs, and further settings of pods that request GPUs."""

    resource: LabelName = "nvidia.com/gpu"
    """Name of the resource that the device plugin offers."""
    per_pod: Annotated[int, count(1, 1024)] = 8
    """Most GPUs that one pod can get: those of a node."""
    memory_gib: GiB = 80
    """Memory of each GPU."""
    node_selector: dict[LabelName, LabelValue] = {}
    """Labels of the nodes to choose, for example the type of the GPU."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of these nodes."""
    shared_memory_gib: GiB = 16
    """Size of `/dev/shm`, which NCCL and vLLM need; it counts as memory of the pod."""


class RetryConfig(Section):
    """How often a stage is retried.

    A failed stage is retried inside its pod, because whether Argo would retry it depends on the
    installation, and KFP's do not. A pod that
    is lost (deleted, preempted, its node gone) is replaced by Argo.
    """

    times: Annotated[int, count(0, 100)] = 2
    """Tries after the first, inside the pod."""
    backoff_seconds: Seconds = 60
    """Seconds before the first of them."""
    backoff_factor: Annotated[int, count(1, 100)] = 2
    """Factor by which each wait is longer than the previous one."""
    lost_pods: Annotated[int, count(0, 100)] = 5
    """Pods that replace lost ones, each after 10 seconds. Argo also repeats the DAGs around a stage, so there may be more."""


class ClusterConfig(Section):
    """Where and how pods run."""

    store: StoreURI = "s3://ngrpo/artifacts"
    """Artifact store, under an address that both pods and planner use."""
    environment: dict[VariableName, Text] = {}
    """Environment of every pod: addresses (`NGRPO_S3_ENDPOINT_URL`, `MLFLOW_TRACKING_URI`), proxies, no credentials. Stages read
    `NGRPO_S3_<NAME>` as `AWS_<NAME>` (`NGRPO_S3_REGION` as `AWS_DEFAULT_REGION`)."""
    secrets: dict[KubernetesName, dict[VariableName, SecretKey]] = {}
    """By Kubernetes secret: environment variable and the secret's key that it takes its value from."""
    certificate_authority: KubernetesName | None = None
    """ConfigMap whose key `ca.crt` holds every authority that pods trust, as PEM, in place of the system's: a private one beside the
    public ones that are needed."""
    service_account: KubernetesName | None = None
    """Service account of the pods; none uses that of the installation."""
    labels: dict[LabelName, LabelValue] = {}
    """Labels of every pod, for what acts on pods by label: `sidecar.istio.io/inject`, Kubeflow's `access-ml-pipeline`."""
    node_selector: dict[LabelName, LabelValue] = {}
    """Labels of the nodes to choose, for every pod."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that every pod tolerates."""
    gpu: GPUConfig = GPUConfig()
    cpus_per_pod: Cores = 64
    """Most processor cores that one pod can get."""
    memory_gib_per_pod: GiB = 512
    """Most memory that one pod can get."""
    scratch_gib: GiB = 50
    """Disk of a pod for downloads, caches and unfinished work, unless its stage requests another amount
    (`resources.STAGE.scratch_gib`)."""
    queue: QueueName | None = None
    """Kueue local queue; none leaves pods to the scheduler."""
    priority_class: QueueName | None = None
    """Kueue workload priority class."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When images are pulled. They are named by digest, so a local copy is never outdated. A `TrainJob` keeps its runtime's policy."""
    image_pull_secrets: tuple[KubernetesName, ...] = ()
    """Secrets with the credentials of the image registry."""
    run_as_user: UserId = 1000
    """User of the processes; root is refused."""
    run_as_group: UserId = 1000
    """Group of the processes."""
    timeout_hours: Hours = 24
    """Longest time of a stage's pod, with all its tries and the waits between them. Time in a queue does not count."""
    stage_timeout_hours: dict[StageName, Hours] = {}
    """The same, for the stages that are named."""
    retry: RetryConfig = RetryConfig()
    save_minutes: Annotated[float, number(above=0.0, most=525_600.0)] = 10.0
    """Most minutes of training that a lost pod may cost: training saves at least that often, in addition to `training.save_steps`."""
    metrics_port: Annotated[int, count(1024, 65535)] | None = unless_set(None)
    """Port of training pods on which Prometheus can scrape the progress; none keeps it closed (`docs/costs.md`)."""
    nodes: Annotated[int, count(1, 10_000)] = 1
    """Nodes that train together, each with `resources.ngrpo_training`, on CPUs if it has no GPUs; more than one run as a `TrainJob` of
    Kubeflow Trainer."""
    training_runtime: KubernetesName = "ngrpo-training"
    """Runtime (torch) of that job; `k8s/overlays/gpu` has one. A runtime of the namespace takes precedence over one of the cluster."""
    training_token: KubernetesName | None = None
    """Secret with the token of the account that creates that job, and that a scheduled run uses to read the pods of its run; none uses
    the account of the pods, which then needs these rights."""
    nodes_start_minutes: Annotated[float, number(above=0.0, most=525_600.0)] = 120.0
    """Longest time until all its nodes run, including time in a queue; after that the job is given up."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        for name, value in sorted(self.environment.items()):
            if CREDENTIAL.search(name) or holds_credential(value):
                yield (
                    f"environment.{name} is or holds what looks like a credential, and the pipeline would hold it in clear: put it "
                    f"into a Kubernetes secret and name that in secrets.<secret>.{name}"
                )
        for secret, keys in sorted(self.secrets.items()):
            if any(map(holds_credential, keys.values())):
                yield f"secrets.{secret} holds a credential itself: name the key of the secret that has it"
        variables = Counter([*self.environment, *(name for keys in self.secrets.values() for name in keys)])
        for name in sorted(name for name, times in variables.items() if times > 1):
            yield f"{name} is set twice in environment and secrets: leave one"
        aws = {f"environment.{name}": name for name in self.environment if name.startswith(_AWS)} | {
            f"secrets.{secret}.{name}": name
            for secret, keys in self.secrets.items()
            for name in keys
            if name.startswith(_AWS)
        }
        if aws:
            yield (
                f"{', '.join(sorted(aws))}: Kubeflow's launcher runs in the same container and would take this for its own artifacts: "
                f"write {', '.join(_own_name(aws[where]) for where in sorted(aws))}"
            )
        if self.certificate_authority is not None:
            for name in sorted(variables.keys() & set(_CERTIFICATE_VARIABLES)):
                yield f"{name} is set by certificate_authority={self.certificate_authority!r}: leave one"
        for name in sorted(self.labels):
            if name == STAGE_LABEL or name.startswith(_QUEUE_LABELS):
                yield f"labels.{name} is set by ngrpo itself: leave it out; queue and priority_class are Kueue's"
        if self.priority_class is not None and self.queue is None:
            yield f"priority_class={self.priority_class!r} is Kueue's and needs a queue: set queue, or leave it out"

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

    def scratch_of(self, needs: ResourcesConfig) -> int:
        """Return the disk of a stage's pod in GiB."""
        return needs.scratch_gib or self.scratch_gib

    def pod_environment(self) -> dict[str, str]:
        """Return the environment of every pod, less what comes from secrets."""
        own = {
            "NGRPO_STORE": self.store,
            "NGRPO_CACHE_DIR": f"{SCRATCH}/cache",
            "NGRPO_WORK_DIR": f"{SCRATCH}/work",
            "HOME": SCRATCH,  # a user without a home directory: libraries keep their caches there
            SAVE_MINUTES: str(self.save_minutes),
        }
        if self.certificate_authority is not None:
            own |= dict.fromkeys(_CERTIFICATE_VARIABLES, f"{CERTIFICATES}/ca.crt")
        return own | self.environment

    def queue_labels(self) -> dict[str, str]:
        """Return the labels by which Kueue knows what is to wait in the queue."""
        labels = {f"{_QUEUE_LABELS}queue-name": self.queue, f"{_QUEUE_LABELS}priority-class": self.priority_class}
        return {name: value for name, value in labels.items() if value is not None}

    def scrape_annotations(self) -> dict[str, str]:
        """Return the annotations of a pod that trains, by which Prometheus finds what it can scrape there; empty where it is closed."""
        if self.metrics_port is None:
            return {}
        return {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(self.metrics_port),
            "prometheus.io/path": "/metrics",
        }

    def timeout_seconds(self, stage: str) -> int:
        """Return the longest time that a stage's pod may take, with all its tries."""
        own = (hours for name, hours in self.stage_timeout_hours.items() if name == stage)
        return 3600 * next(own, self.timeout_hours)


def _own_name(name: str) -> str:
    """Return the name of ours that stages read as a variable of AWS."""
    return _S3 + {"DEFAULT_REGION": "REGION"}.get(name.removeprefix(_AWS), name.removeprefix(_AWS))
