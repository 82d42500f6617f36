"""Check what a run needs on the cluster before it is submitted, because pods would wait for hours for what is missing.

Users who may submit runs need not have access to Kubernetes, or the right to read everything there. Checks that cannot be made are
reported, and do not refuse a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial

from rich.console import Console
from rich.markup import escape

from ngrpo.config import RunConfig
from ngrpo.config.cluster import ClusterConfig
from ngrpo.config.source_files import foreign_imports
from ngrpo.config.stages import stages_of
from ngrpo.errors import ClusterError
from ngrpo.stages.declarations import DECLARED
from ngrpo_kfp.components.serving.inference_service import KSERVE
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import connect, namespace
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.gpu_nodes import gpu_nodes
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.kubeflow.image_registry import RegistryError, is_there
from ngrpo_kfp.pipelines.kubeflow.images import Images, image_name
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import KUEUE, TRAINER, Kubernetes
from ngrpo_kfp.pipelines.kubeflow.quotas import asked_by, local_queue, queue_quota, resource_quotas
from ngrpo_kfp.pipelines.planning.user_imports import missing_imports, user_code_of

KUEUE_FOR_JOBS = (0, 17)
"""First version of Kueue that keeps a TrainJob's `runtimePatches`; older ones drop them."""
_KUEUE_IMAGE = re.compile(r":v?(\d+)\.(\d+)(?:\.\d+)?")
_TOKEN_KEYS = ("ca.crt", "namespace", "token")
_ALWAYS_HELD = "pydantic"
"""Libraries in every image that no stage declares. Lock files of earlier releases list only what stages declare."""
_GPU_OVERLAY = "apply k8s/overlays/gpu, which has it"
_PROFILE = "app.kubernetes.io/part-of"


_Look = Callable[[Kubernetes, str], Finding]


def require(config: RunConfig, images: Images, console: Console, stages: Collection[str] | None = None) -> None:
    """Refuse a run whose pods would wait for something that is missing.

    Args:
        config: Configuration of the run.
        images: Where the images of the stages are looked up.
        console: Where checks that could not be made are reported.
        stages: The stages that are to run; none for all that the run has.

    Raises:
        ClusterError: One line for everything that is missing or wrong, with the cure.
    """
    unknown: dict[str, list[str]] = {}
    wrong = []
    for finding in checks(config, images, stages):
        if finding.ok is None and finding.cure is not None:
            console.print(escape(harmless(f"warning  {finding.name}: {finding.said}: {finding.cure}")), soft_wrap=True)
        elif finding.ok is None:
            unknown.setdefault(finding.said, []).append(finding.name)
        elif not finding.ok:
            wrong.append(f"{finding.name}: {finding.said}: {finding.cure}")
    for said, names in unknown.items():
        console.print(escape(harmless(f"not checked  {', '.join(names)}: {said}")), soft_wrap=True)
    if wrong:
        raise ClusterError("\n".join(wrong))


def checks(config: RunConfig, images: Images, stages: Collection[str] | None = None) -> Iterator[Finding]:
    """Check what a run needs on the cluster.

    Args:
        config: Configuration of the run.
        images: Where the images of the stages are looked up.
        stages: The stages that are to run; none for all that the run has.

    Yields:
        The finding of each check.
    """
    stages = stages_of(config) if stages is None else stages
    cluster = config.cluster
    yield from _user_code(config, images, stages)
    lost: str | None = None
    try:
        kubernetes = Kubernetes()
    except KubernetesError as error:
        lost = str(error)
    for name, look in _looks(config, stages):
        if lost is not None:
            yield Finding(name, None, lost)
            continue
        try:
            yield look(kubernetes, name)
        except KubernetesError as error:
            if error.status is None:  # nothing answers, and asking again would take as long
                lost = str(error)
            # The messages of Kubernetes name each object; with this text equal findings become one line.
            yield Finding(name, None, "your account may not read them (403)" if error.status == 403 else str(error))
    if cluster.image_pull_policy != "Never":
        used = {"gpu" if config.needs(stage).gpus else "cpu" for stage in stages}
        if _trains_as_job(config, stages):
            used.add("cpu")  # of the step that creates and watches the job
        for name in sorted(used):
            yield _image(f"images.{name}", images.reference(name), cluster)


def _looks(config: RunConfig, stages: Collection[str]) -> Iterator[tuple[str, _Look]]:
    """Yield the checks to make in Kubernetes: name and function."""
    cluster = config.cluster
    job = _trains_as_job(config, stages)
    yield "namespace", _namespace
    if cluster.service_account is not None:
        yield "cluster.service_account", partial(_service_account, account=cluster.service_account)
    for secret, variables in cluster.secrets.items():
        yield f"cluster.secrets.{secret}", partial(_secret, secret=secret, keys=sorted(set(variables.values())))
    for secret in cluster.image_pull_secrets:
        yield "cluster.image_pull_secrets", partial(_secret, secret=secret, keys=[".dockerconfigjson"])
    if cluster.certificate_authority is not None:
        yield "cluster.certificate_authority", partial(_certificates, config_map=cluster.certificate_authority)
    if job and cluster.training_token is not None:
        yield "cluster.training_token", partial(_secret, secret=cluster.training_token, keys=_TOKEN_KEYS)
    if "deploy" in stages:
        yield "KServe", _kserve
        if config.deployment.token is not None:
            yield "deployment.token", partial(_secret, secret=config.deployment.token, keys=_TOKEN_KEYS)
    if cluster.queue is not None:
        yield "cluster.queue", partial(_queue, queue=cluster.queue)
        yield "cluster.queue quota", partial(queue_quota, queue=cluster.queue, asked=asked_by(config, stages))
    if cluster.priority_class is not None:
        yield "cluster.priority_class", partial(_priority_class, priority=cluster.priority_class)
    yield "resource quotas", partial(resource_quotas, asked=asked_by(config, stages))
    if any(config.needs(stage).gpus for stage in stages):
        yield "cluster.gpu nodes", partial(gpu_nodes, config=config, stages=stages)
    if job:
        yield "cluster.training_runtime", partial(_training_runtime, runtime=cluster.training_runtime)
        yield "Kubeflow Trainer", _trainer
        if cluster.queue is not None:
            yield "Kueue", _kueue


def _trains_as_job(config: RunConfig, stages: Collection[str]) -> bool:
    return config.cluster.nodes > 1 and any(DECLARED[stage].parallel for stage in stages)


# --- objects in Kubernetes ----------------------------------------------------------------------------------------------


def _namespace(kubernetes: Kubernetes, name: str) -> Finding:
    """Check whether the namespace of the runs exists, and in a multi-user Kubeflow is a profile."""
    found = kubernetes.get(f"/api/v1/namespaces/{namespace()}")
    if found is None:
        return Finding(name, False, f"there is no namespace {namespace()}", "correct KF_PIPELINES_NAMESPACE")
    try:
        profiles = connect().get_kfp_healthz().multi_user
    except ClusterError as error:
        return Finding(name, None, str(error))
    label = (found["metadata"].get("labels") or {}).get(_PROFILE)
    if profiles and label != "kubeflow-profile":
        return Finding(
            name,
            False,
            f"{namespace()} has {_PROFILE}={label}, and Kubeflow's network policies let only profiles in",
            f"`kubectl label namespace {namespace()} {_PROFILE}=kubeflow-profile --overwrite`",
        )
    return Finding(name, True, namespace())


def _service_account(kubernetes: Kubernetes, name: str, account: str) -> Finding:
    if kubernetes.get(_own("serviceaccounts", account)) is None:
        return Finding(
            name,
            False,
            f"there is no service account {account} in namespace {namespace()}, and no pod would be made",
            "apply k8s/base, which has ngrpo-stage, or correct the setting",
        )
    return Finding(name, True, account)


def _secret(kubernetes: Kubernetes, name: str, secret: str, keys: Collection[str]) -> Finding:
    found = kubernetes.get(_own("secrets", secret))
    missing = [key for key in keys if found is None or key not in (found.get("data") or {})]
    if not missing:
        return Finding(name, True, secret)
    what = f"there is no secret {secret}" if found is None else f"the secret has no key {', '.join(missing)}"
    literals = " ".join(f"--from-literal={key}=…" for key in missing)
    cures = {
        "cluster.training_token": _GPU_OVERLAY,
        "deployment.token": "apply k8s/base, which has ngrpo-deployment-token",
        "cluster.image_pull_secrets": f"`kubectl -n {namespace()} create secret docker-registry {secret} …`",
    }
    cure = cures.get(name, f"`kubectl -n {namespace()} create secret generic {secret} {literals}`")
    return Finding(
        name,
        False,
        f"{what} in namespace {namespace()} of the cluster that KUBECONFIG names, and pods would wait for it",
        f"{cure}, or correct the settings",
    )


def _certificates(kubernetes: Kubernetes, name: str, config_map: str) -> Finding:
    """Check whether the certificates that pods must trust exist."""
    found = kubernetes.get(_own("configmaps", config_map))
    if found is not None and "ca.crt" in (found.get("data") or {}):
        return Finding(name, True, config_map)
    what = f"there is no ConfigMap {config_map}" if found is None else f"ConfigMap {config_map} has no key ca.crt"
    return Finding(
        name,
        False,
        f"{what} in namespace {namespace()}, and pods would wait for it",
        f"`kubectl -n {namespace()} create configmap {config_map} --from-file=ca.crt=…`, or correct the setting",
    )


# --- Kueue and Trainer ----------------------------------------------------------------------------------------------------


def _queue(kubernetes: Kubernetes, name: str, queue: str) -> Finding:
    """Check whether the local queue exists and admits workloads."""
    if kubernetes.get(KUEUE) is None:
        return Finding(name, False, "the cluster has no Kueue 0.15 or newer", "install it, or leave cluster.queue out")
    found = kubernetes.get(local_queue(queue))
    if found is None:
        return Finding(
            name,
            False,
            f"there is no local queue {queue} in namespace {namespace()}, and pods would wait for it",
            "apply k8s/base, which has ngrpo, or correct the setting",
        )
    conditions = (found.get("status") or {}).get("conditions") or ()
    for each in conditions:
        if each["type"] == "Active" and each["status"] == "False":
            said = f"local queue {queue} admits nothing ({each.get('message') or each.get('reason')})"
            cure = f"see `kubectl describe clusterqueue {found['spec']['clusterQueue']}`"
            return Finding(name, False, said, cure)
    return Finding(name, True, f"{queue}, of cluster queue {found['spec']['clusterQueue']}")


def _priority_class(kubernetes: Kubernetes, name: str, priority: str) -> Finding:
    if kubernetes.get(f"{KUEUE}/workloadpriorityclasses/{priority}") is None:
        return Finding(
            name,
            False,
            f"there is no WorkloadPriorityClass {priority}, and Kueue would refuse the pods",
            "apply k8s/cluster, which has training, or correct the setting",
        )
    return Finding(name, True, priority)


def _kueue(kubernetes: Kubernetes, name: str) -> Finding:
    """Check whether Kueue is new enough to keep the pod settings of a job on several nodes."""
    found = kubernetes.get("/apis/apps/v1/namespaces/kueue-system/deployments/kueue-controller-manager")
    if found is None:
        return Finding(name, None, "there is no deployment kueue-controller-manager in namespace kueue-system")
    image = found["spec"]["template"]["spec"]["containers"][0]["image"]
    match = _KUEUE_IMAGE.search(image)
    if match is None:
        return Finding(name, None, f"the image {image} does not tell its version")
    version = f"{match[1]}.{match[2]}"
    if (int(match[1]), int(match[2])) < KUEUE_FOR_JOBS:
        return Finding(
            name,
            False,
            f"version {version} drops the volumes, user and account of a TrainJob's pods",
            "install Kueue 0.17 or newer, or set cluster.nodes to 1",
        )
    return Finding(name, True, version)


def _training_runtime(kubernetes: Kubernetes, name: str, runtime: str) -> Finding:
    if kubernetes.get(TRAINER) is None:
        cure = "install Kubeflow Trainer 2.3, or set cluster.nodes to 1"
        return Finding(name, False, "the cluster has no Kubeflow Trainer, which trains on several nodes", cure)
    own = kubernetes.get(f"{TRAINER}/namespaces/{namespace()}/trainingruntimes/{runtime}")
    if own is None and kubernetes.get(f"{TRAINER}/clustertrainingruntimes/{runtime}") is None:
        return Finding(
            name,
            False,
            f"there is no runtime {runtime}, in namespace {namespace()} or for all",
            "apply k8s/overlays/gpu, which has ngrpo-training, or correct the setting",
        )
    return Finding(name, True, runtime)


def _trainer(kubernetes: Kubernetes, name: str) -> Finding:
    """Check whether Trainer has the field of a TrainJob that configures its pods."""
    kind = "trainjobs.trainer.kubeflow.org"
    found = kubernetes.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}")
    if found is None:
        return Finding(name, None, f"there is no definition of {kind}")
    fields = [
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        for version in found["spec"]["versions"]
    ]
    if not any("runtimePatches" in each for each in fields):
        cure = "install Kubeflow Trainer 2.3, or set cluster.nodes to 1"
        return Finding(name, False, "its TrainJob has no runtimePatches: it is older than 2.2", cure)
    return Finding(name, True, "TrainJob has runtimePatches")


def _kserve(kubernetes: Kubernetes, name: str) -> Finding:
    if kubernetes.get(KSERVE) is None:
        cure = "install it, or set deployment.after_promotion to false"
        return Finding(name, False, "the cluster has no KServe, which serves what is deployed", cure)
    return Finding(name, True, "serves InferenceServices")


# --- images ---------------------------------------------------------------------------------------------------------------


def _image(name: str, reference: str, cluster: ClusterConfig) -> Finding:
    try:
        there = is_there(reference)
    except RegistryError as error:
        return Finding(name, None, str(error))
    if there:
        return Finding(name, True, reference)
    return Finding(
        name,
        False,
        f"its registry has no {reference}",
        "`make images` builds and pushes it; or correct images.lock, or set cluster.image_pull_policy to Never where the nodes have it",
    )


def _user_code(config: RunConfig, images: Images, stages: Collection[str]) -> Iterator[Finding]:
    """Check whether the images contain what the user's files import."""
    for stage in stages:
        image = image_name(config, stage)
        for setting, reference in user_code_of(config, stage):
            held = images.libraries(image) if foreign_imports(reference.code) else {}
            missing = missing_imports(reference.code, held)
            if not missing:
                yield Finding(setting, True, f"image {image!r} holds what {reference.function} imports")
            elif _ALWAYS_HELD not in held:
                said = f"images.lock is of an earlier release, and does not say whether image {image!r} holds {', '.join(missing)}"
                yield Finding(setting, None, said)
            else:
                said = f"{reference.function} imports {', '.join(missing)}, which image {image!r} of {stage} lacks"
                yield Finding(
                    setting, False, said, "add it to the image (images/) and run `make images`, or leave it out"
                )


def _own(kind: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace()}/{kind}/{name}"
