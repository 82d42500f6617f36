"""The manifests of k8s/: they render, hold no unknown field and no secret, and what refers to something finds it."""

import ipaddress
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from botocore.utils import should_bypass_proxies as boto_bypasses
from requests.utils import should_bypass_proxies as requests_bypasses
from trainer_stub import unknown_fields

from ngrpo.config.cluster import STAGE_LABEL, ClusterConfig

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
SMALL, DEV, GPU, GPU_CLUSTER = "cluster", "overlays/dev", "overlays/gpu", "overlays/gpu/cluster"
RENDERED = (SMALL, DEV, GPU, GPU_CLUSTER)
NAMESPACE = {DEV: "kubeflow", GPU: "ngrpo"}
EXAMPLES = sorted((K8S / "examples").glob("*.yaml"))
GUIDES = (ROOT / "docs" / "cluster.md", ROOT / "docs" / "private.md")
PART_OF = "app.kubernetes.io/part-of"
SETTINGS = {DEV: K8S / DEV / "cluster.toml", GPU: ROOT / "pipelines" / "cluster.example.toml"}
CLUSTER_OF = {DEV: SMALL, GPU: GPU_CLUSTER}

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(
        shutil.which("kubectl") is None, reason="NOT CHECKED: k8s/ needs kubectl, which is not installed"
    ),
]

ANY = object()
METADATA = {"name": str, "namespace": str, "labels": ANY}
KUEUE = "kueue.x-k8s.io/v1beta2"
TOLERATION = {"key": str, "operator": str, "value": str, "effect": str}
KNOWN_FIELDS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "spec": {
            "selector": {
                "matchLabels": ANY,
                "matchExpressions": [{"key": str, "operator": str, "values": [str]}],
            },
            "podMetricsEndpoints": [
                {
                    "path": str,
                    "interval": str,
                    "relabelings": [
                        {
                            "action": str,
                            "sourceLabels": [str],
                            "regex": str,
                            "replacement": str,
                            "targetLabel": str,
                        }
                    ],
                }
            ],
        }
    },
    (KUEUE, "LocalQueue"): {"spec": {"clusterQueue": str, "stopPolicy": str}},
    (KUEUE, "WorkloadPriorityClass"): {"value": int, "description": str},
    (KUEUE, "ResourceFlavor"): {
        "spec": {"nodeLabels": ANY, "nodeTaints": ANY, "tolerations": [TOLERATION], "topologyName": str}
    },
    (KUEUE, "ClusterQueue"): {
        "spec": {
            "namespaceSelector": ANY,
            "cohortName": str,
            "queueingStrategy": str,
            "stopPolicy": str,
            "preemption": {"withinClusterQueue": str, "reclaimWithinCohort": str, "borrowWithinCohort": ANY},
            "resourceGroups": [
                {
                    "coveredResources": [str],
                    "flavors": [
                        {
                            "name": str,
                            "resources": [
                                {"name": str, "nominalQuota": (int, str), "borrowingLimit": ANY, "lendingLimit": ANY}
                            ],
                        }
                    ],
                }
            ],
        }
    },
}
"""The fields of kinds that Kubernetes does not define itself, as far as they are used here."""
CLUSTER_WIDE = {"Namespace", "WorkloadPriorityClass", "ResourceFlavor", "ClusterQueue"}


def unknown(value, known, path=""):
    """Yield what is wrong in a value: fields that are not known, and values of another type."""
    if known is ANY:
        return
    if isinstance(known, dict) and isinstance(value, dict):
        for name, inner in value.items():
            if name not in known:
                yield f"{path}.{name}: no such field"
            else:
                yield from unknown(inner, known[name], f"{path}.{name}")
    elif isinstance(known, list) and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from unknown(inner, known[0], f"{path}[{number}]")
    elif isinstance(known, dict | list) or not isinstance(value, known):
        yield f"{path}: {value!r} is of another type"


def mistakes(document):
    """Return what a cluster would refuse, or silently leave out, in a document."""
    kind = document["apiVersion"], document["kind"]
    if kind in KNOWN_FIELDS:
        known = {"apiVersion": str, "kind": str, "metadata": METADATA, **KNOWN_FIELDS[kind]}
        return list(unknown(document, known))
    if kind[0].startswith("trainer.kubeflow.org/"):
        return unknown_fields(document)
    try:
        kubernetes_validate.validate(document, "1.37.0", strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [str(error).splitlines()[0]]
    return []


@pytest.fixture(scope="module")
def rendered():
    """The documents of each folder that can be applied."""

    return {folder: render(K8S / folder) for folder in RENDERED}


def render(folder):
    text = subprocess.run(
        ["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return list(yaml.safe_load_all(text))


def kustomization(guide):
    """Return the kustomization that a page shows, as text."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    (text,) = [block for block in blocks if "kind: Kustomization" in block]
    return text


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """The documents of the kustomization that a page shows, in `k8s/mine` as it says, by page and overlay below it."""

    def rendered(text):
        k8s = tmp_path_factory.mktemp("guide") / "k8s"
        shutil.copytree(K8S, k8s)
        (k8s / "mine").mkdir(exist_ok=True)
        (k8s / "mine" / "kustomization.yaml").write_text(text)
        return render(k8s / "mine")

    shown = {guide.stem: kustomization(guide) for guide in GUIDES}
    return {
        (page, folder): rendered(
            text.replace("../overlays/gpu", f"../{folder}").replace(
                "namespace: ngrpo", f"namespace: {NAMESPACE[folder]}"
            )
        )
        for page, text in shown.items()
        for folder in NAMESPACE
    }


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def names(documents, kind):
    return {document["metadata"]["name"] for document in of_kind(documents, kind)}


def pods(documents):
    return [document["spec"]["template"] for document in of_kind(documents, "Deployment", "StatefulSet")]


@pytest.mark.parametrize("folder", RENDERED)
def test_every_field_is_one_that_the_cluster_knows(rendered, folder):
    found = {f"{d['kind']} {d['metadata']['name']}": mistakes(d) for d in rendered[folder]}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ClusterQueue", lambda spec: spec.update(cohort="all")),
        ("ClusterQueue", lambda spec: spec["resourceGroups"][0]["flavors"][0]["resources"][0].update(quota=1)),
        ("LocalQueue", lambda spec: spec.update(clusterQueue=7)),
        ("ResourceFlavor", lambda spec: spec["tolerations"][0].update(efect="NoSchedule")),
        ("TrainingRuntime", lambda spec: spec["mlPolicy"].update(nodes=2)),
        (
            "TrainingRuntime",
            lambda spec: spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"].update(backofLimit=0),
        ),
        ("Deployment", lambda spec: spec["template"]["spec"].update(serviceAcountName="x")),
        ("NetworkPolicy", lambda spec: spec.update(podselector={})),
    ],
)
def test_a_misspelt_field_is_seen(rendered, kind, change):
    documents = [document for folder in (GPU, GPU_CLUSTER) for document in rendered[folder]]
    document = next(
        d for d in of_kind(documents, kind) if kind != "ResourceFlavor" or d["metadata"]["name"] == "gpu-node"
    )
    document = yaml.safe_load(yaml.safe_dump(document))
    assert mistakes(document) == []
    change(document["spec"])
    assert len(mistakes(document)) == 1


def test_monitors_of_prometheus_are_what_its_operator_knows_and_in_the_namespace_of_the_overlay(tmp_path):
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "k8s" / "mine").mkdir()
    (tmp_path / "k8s" / "mine" / "kustomization.yaml").write_text(
        f"namespace: {NAMESPACE[GPU]}\nresources: [../{GPU}]\ncomponents: [../components/monitoring]\n"
    )
    documents = render(tmp_path / "k8s" / "mine")
    monitors = of_kind(documents, "PodMonitor")
    assert names(monitors, "PodMonitor") == {"ngrpo-stages", "ngrpo-served-models"}
    for document in [*monitors, *of_kind(documents, "NetworkPolicy")]:
        assert mistakes(document) == []
    assert {monitor["metadata"].get("namespace") for monitor in monitors} == {NAMESPACE[GPU]}


@pytest.mark.parametrize("folder", RENDERED)
def test_what_has_a_namespace_is_in_that_of_the_overlay_and_nothing_is_secret(rendered, folder):
    expected = NAMESPACE.get(folder)
    for document in rendered[folder]:
        # The cluster fills in the token of an account.
        assert document["kind"] != "Secret" or (
            document["type"] == "kubernetes.io/service-account-token" and not {"data", "stringData"} & set(document)
        )
        namespace = None if document["kind"] in CLUSTER_WIDE else expected
        assert document["metadata"].get("namespace") == namespace, document["metadata"]
        assert document["metadata"]["labels"][PART_OF] == "ngrpo"


def test_no_overlay_touches_a_namespace_and_none_of_ours_claims_to_be_part_of_anything(rendered):
    # Kubeflow's network policies and webhooks know a user's namespace by `part-of: kubeflow-profile`, and one that is
    # there before its profile is refused.
    for folder in RENDERED:
        assert of_kind(rendered[folder], "Namespace") == [], folder
    spaces = [document for path in EXAMPLES for document in of_kind(yaml.safe_load_all(path.read_text()), "Namespace")]
    assert spaces, "installations without profiles need one"
    told = re.search(r"kubectl label namespace \$NS ((?:\S+=\S+ )+)", (ROOT / "docs" / "cluster.md").read_text())
    for space in spaces:
        assert PART_OF not in space["metadata"]["labels"]
        assert space["metadata"]["labels"] == dict(label.split("=") for label in told[1].split())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_hold_no_field_that_the_cluster_does_not_know(path):
    for document in yaml.safe_load_all(path.read_text()):
        assert mistakes(document) == []
        assert "namespace" not in document["metadata"], "the command says which"


def test_the_room_that_is_held_for_a_run_is_lent_to_nobody(rendered):
    documents = list(yaml.safe_load_all((K8S / "examples" / "reserved-queue.yaml").read_text()))
    (queue,) = of_kind(documents, "ClusterQueue")
    (local,) = of_kind(documents, "LocalQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert names(documents, "LocalQueue").isdisjoint(names(rendered[GPU], "LocalQueue"))
    assert "cohortName" not in queue["spec"], "a cohort lends what is idle between two stages"
    for group in queue["spec"]["resourceGroups"]:
        assert {flavor["name"] for flavor in group["flavors"]} <= names(rendered[GPU_CLUSTER], "ResourceFlavor")


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_pods_have_few_rights(rendered, folder):
    for pod in pods(rendered[folder]):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert container["image"] == "ngrpo-cpu", "named by whoever sets the digest"
    for role in of_kind(rendered[folder], "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"]


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_no_pod_has_a_sidecar(rendered, folder):
    # Steps have none (Kubeflow turns it off), and what has one refuses what they send: it is not mutual TLS.
    runtimes = [
        job["template"]["spec"]["template"]
        for runtime in of_kind(rendered[folder], "TrainingRuntime")
        for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]
    ]
    assert bool(runtimes) == (folder == GPU)
    for pod in [*pods(rendered[folder]), *runtimes]:
        assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_nothing_calls_home(rendered, folder):
    containers = {c["name"]: c for pod in pods(rendered[folder]) for c in pod["spec"]["containers"]}
    assert {"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"} in containers["mlflow"]["env"]
    assert folder == GPU or "-master.telemetry=false" in containers["seaweedfs"]["command"]


def test_nodes_have_time_to_save_and_to_upload(rendered):
    (runtime,) = of_kind(rendered[GPU], "TrainingRuntime")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 600


def test_a_pod_that_waits_for_kueue_is_not_refused_by_the_quota_of_the_namespace(rendered):
    queued = {
        resource
        for queue in of_kind(rendered[GPU_CLUSTER], "ClusterQueue")
        for group in queue["spec"]["resourceGroups"]
        for resource in group["coveredResources"]
    }
    for quota in of_kind(rendered[GPU], "ResourceQuota"):
        # The quota counts pods that wait, Kueue does not: a limit on the same thing ends queueing.
        assert {name.removeprefix("requests.").removeprefix("limits.") for name in quota["spec"]["hard"]}.isdisjoint(
            queued
        )


def test_the_ports_behind_s3_ask_for_keys_that_each_pod_makes(rendered):
    (pod,) = [pod for pod in pods(rendered[DEV]) if "weed" in str(pod["spec"]["containers"])]
    (keys,), (server,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert keys["command"][:3] == ["python", "-m", "ngrpo.storage.seaweed_keys"]
    assert keys["command"][3] == server["workingDir"], "SeaweedFS reads its keys where it is started"
    (place,) = [mount for mount in server["volumeMounts"] if mount["mountPath"] == server["workingDir"]]
    assert place["readOnly"]
    (volume,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == place["name"]]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert "-disableHttp" in server["command"], "the master hands out tokens over HTTP to anyone who asks"


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_nodes_that_train_together_may_talk_to_each_other_and_to_nobody_else(rendered, folder):
    (policy,) = [
        d for d in of_kind(rendered[folder], "NetworkPolicy") if d["metadata"]["name"] == "ngrpo-training-nodes"
    ]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": policy["spec"]["podSelector"]}]}]
    assert policy["spec"]["egress"] == [{"to": [{"podSelector": policy["spec"]["podSelector"]}]}]
    assert {one["key"] for one in policy["spec"]["podSelector"]["matchExpressions"]} == {
        STAGE_LABEL,
        "jobset.sigs.k8s.io/jobset-name",
    }


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_services_policies_and_volumes_find_what_they_name(rendered, folder):
    documents = rendered[folder]
    labels = [pod["metadata"]["labels"] for pod in pods(documents)]
    ports = {port["name"] for pod in pods(documents) for c in pod["spec"]["containers"] for port in c["ports"]}
    for service in of_kind(documents, "Service"):
        assert any(service["spec"]["selector"].items() <= each.items() for each in labels)
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for policy in of_kind(documents, "NetworkPolicy"):
        selected = policy["spec"]["podSelector"].get("matchLabels")
        assert selected is None or any(selected.items() <= each.items() for each in labels)
        assert {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule.get("ports", [])} <= ports
    for pod in pods(documents):
        assert pod["spec"]["serviceAccountName"] in names(documents, "ServiceAccount")
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in names(documents, "PersistentVolumeClaim")


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_the_settings_of_runs_fit_the_cluster(rendered, folder):
    documents, cluster = rendered[folder], rendered[CLUSTER_OF[folder]]
    config = ClusterConfig(**tomllib.loads(SETTINGS[folder].read_text()))
    assert config.service_account in names(documents, "ServiceAccount")
    assert config.training_token in {None, *names(documents, "Secret")}
    assert config.queue in names(documents, "LocalQueue")
    assert config.nodes == 1 or config.training_runtime in names(documents, "TrainingRuntime")
    assert config.priority_class in {None, *names(cluster, "WorkloadPriorityClass")}
    for queue in of_kind(documents, "LocalQueue"):
        assert queue["spec"]["clusterQueue"] in names(cluster, "ClusterQueue")
    for queue in of_kind(cluster, "ClusterQueue"):
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                assert flavor["name"] in names(cluster, "ResourceFlavor")
                assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    namespace = documents[-1]["metadata"]["namespace"]
    services = {
        f"http://{service['metadata']['name']}.{namespace}.svc:{port['port']}"
        for service in of_kind(documents, "Service")
        for port in service["spec"]["ports"]
    }
    inside = {value for value in config.environment.values() if re.search(r"\.svc\b", value)}
    assert inside <= services | {"http://ml-pipeline.kubeflow.svc:8888"}, "the last is Kubeflow's own"
    assert config.environment["MLFLOW_TRACKING_URI"] in services


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_the_guide_makes_every_secret_that_is_referred_to(rendered, folder):
    config = ClusterConfig(**tomllib.loads(SETTINGS[folder].read_text()))
    wanted = {(secret, key) for secret, variables in config.secrets.items() for key in variables.values()}
    for pod in pods(rendered[folder]):
        for container in pod["spec"]["containers"]:
            for variable in container["env"]:
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    wanted.add((reference["name"], reference["key"]))
    guide = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    made = {
        (secret, key)
        for secret, rest in re.findall(r"kubectl .*create secret generic (\S+)(.*)", guide)
        for key in re.findall(r"--from-literal=([\w-]+)=", rest)
    }
    assert wanted <= made


# --- what stages may reach, and what they may do ----------------------------------------------------------------------

# Labels as KFP 2.17.0 put them on pods of a run. A driver has no other.
DRIVER = {"pipeline/runid": "r", "pipelines.kubeflow.org/v2_component": "true", "workflows.argoproj.io/workflow": "w"}
STEP, PLANNER = {**DRIVER, STAGE_LABEL: "ngrpo_training"}, {**DRIVER, STAGE_LABEL: "scheduled_run"}
NODE = {STAGE_LABEL: "ngrpo_training", "jobset.sigs.k8s.io/jobset-name": "j"}
MLFLOW, OBJECT_STORE = {"app.kubernetes.io/name": "mlflow"}, {"app.kubernetes.io/name": "object-store"}
KUBEFLOW = {"kubernetes.io/metadata.name": "kubeflow"}
KUBE_SYSTEM = {"kubernetes.io/metadata.name": "kube-system"}


def selects(selector, labels):
    """Say whether a label selector matches."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    meets = {
        "Exists": lambda one: one["key"] in labels,
        "DoesNotExist": lambda one: one["key"] not in labels,
        "In": lambda one: labels.get(one["key"]) in one["values"],
    }
    return all(meets[one["operator"]](one) for one in selector.get("matchExpressions", []))


def allows(peer, address=None, pod=None, space=None):
    """Say whether a peer of a policy is an address, or a pod by its labels in a namespace (none for the policy's own)."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        networks = [ipaddress.ip_network(each) for each in (block["cidr"], *block.get("except", []))]
        if address is None or ipaddress.ip_address(address).version != networks[0].version:
            return False
        inside = [ipaddress.ip_address(address) in network for network in networks]
        return inside[0] and not any(inside[1:])
    if pod is None or ("namespaceSelector" in peer) != (space is not None):
        return False
    return selects(peer.get("podSelector", {}), pod) and (space is None or selects(peer["namespaceSelector"], space))


def reaches(documents, who, port, protocol="TCP", **target):
    """Say whether the policies let a pod with these labels open a connection."""
    policies = [
        d["spec"]
        for d in of_kind(documents, "NetworkPolicy")
        if "Egress" in d["spec"]["policyTypes"] and selects(d["spec"]["podSelector"], who)
    ]
    assert policies, "nothing keeps this pod from anything"
    rules = [rule for policy in policies for rule in policy.get("egress", [])]
    return any(
        any(allows(peer, **target) for peer in rule["to"])
        and (
            "ports" not in rule or {"protocol": "TCP", "port": port} in [{"protocol": "TCP"} | p for p in rule["ports"]]
            if protocol == "TCP"
            else {"protocol": protocol, "port": port} in rule.get("ports", [])
        )
        for rule in rules
    )


@pytest.mark.parametrize("folder", [DEV, GPU])
@pytest.mark.parametrize("who", [STEP, PLANNER, NODE], ids=["step", "planner", "node"])
def test_stages_reach_what_they_need_and_nothing_else(rendered, folder, who):
    documents = rendered[folder]
    step = who is not NODE

    def to(port, protocol="TCP", **target):
        return reaches(documents, who, port, protocol, **target)

    assert to(53, "UDP", pod={"k8s-app": "kube-dns"}, space=KUBE_SYSTEM)
    assert to(53, "UDP", address="169.254.20.10")
    assert to(5000, pod=MLFLOW)
    assert to(8333, pod=OBJECT_STORE) == (folder == DEV)
    assert to(443, address="203.0.113.7")
    assert to(443, address="2001:db8::7")
    for port in (6443, 8443):
        assert to(port, address="10.0.0.1") == step, "only what Kubeflow puts into a step asks Kubernetes"
    for port, pod in (
        (8888, {"app": "ml-pipeline"}),
        (8887, {"app": "ml-pipeline"}),
        (8080, {"component": "metadata-grpc-server"}),
        (8333, {"app": "seaweedfs"}),
        (9000, {"app": "minio"}),
    ):
        assert to(port, pod=pod, space=KUBEFLOW) == step
    assert to(29500, pod=NODE) == (not step)
    assert not to(29500, pod=STEP)
    for port in (80, 443, 53, 8080, 6443):
        assert not to(port, address="169.254.169.254"), "the cloud's metadata, with the node's credentials"
        assert not to(port, address="fd00:ec2::254")
    for port in (22, 25, 80, 3306, 5432, 10250, 2379):
        assert not to(port, address="10.0.0.1")
        assert not to(port, address="203.0.113.7")
    assert not to(3306, pod={"app": "mysql"}, space=KUBEFLOW)
    assert not to(443, pod={"app": "other"}, space={"kubernetes.io/metadata.name": "other"})


def answers(documents, server, port, who, space=None):
    """Say whether the policies let a server be called by a pod with these labels (in a namespace; none: its own)."""
    policies = [
        d["spec"]
        for d in of_kind(documents, "NetworkPolicy")
        if "Ingress" in d["spec"]["policyTypes"] and selects(d["spec"]["podSelector"], server)
    ]
    assert policies, "anybody may call it"
    return any(
        any(allows(peer, pod=who, space=space) for peer in rule["from"]) and {"port": port} in rule["ports"]
        for policy in policies
        for rule in policy["ingress"]
    )


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_mlflow_answers_to_stages_and_to_the_plugin_of_kubeflow_and_to_nobody_else(rendered, folder):
    def answered(who, space=None):
        return answers(rendered[folder], MLFLOW, "http", who, space)

    # The plugin calls it from the API server, from the driver of each step and from the launcher in the step.
    assert answered({"app": "ml-pipeline"}, KUBEFLOW)
    assert all(answered(who) for who in (DRIVER, STEP, PLANNER, NODE))
    assert not answered({"app": "notebook"})
    assert not answered({"app": "ml-pipeline"}, {"kubernetes.io/metadata.name": "other"})
    assert not answered({"app": "ml-pipeline-ui"}, KUBEFLOW)
    assert not answered(DRIVER, {"kubernetes.io/metadata.name": "other"})


def test_the_object_store_answers_to_stages_and_to_mlflow_and_to_nobody_else(rendered):
    def answered(who, space=None):
        return answers(rendered[DEV], OBJECT_STORE, "s3", who, space)

    assert all(answered(who) for who in (STEP, PLANNER, NODE, MLFLOW))
    assert not answered(DRIVER)
    assert not answered({"app": "ml-pipeline"}, KUBEFLOW)


def rights(documents, account):
    bound = {
        binding["roleRef"]["name"]
        for binding in of_kind(documents, "RoleBinding")
        if account in {subject["name"] for subject in binding["subjects"]}
    }
    return {
        (group, resource, verb)
        for role in of_kind(documents, "Role")
        if role["metadata"]["name"] in bound
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("folder", [DEV, GPU])
def test_stages_read_no_logs_and_make_no_jobs(rendered, folder):
    documents = rendered[folder]
    assert rights(documents, "ngrpo-stage") == {
        ("", "configmaps", "get"),
        ("", "secrets", "get"),
        ("", "pods", "get"),
        ("argoproj.io", "workflowtaskresults", "create"),
        ("argoproj.io", "workflowtaskresults", "patch"),
    }
    assert rights(documents, "ngrpo-training") == {
        ("trainer.kubeflow.org", "trainjobs", "create"),
        ("trainer.kubeflow.org", "trainjobs", "get"),
        ("trainer.kubeflow.org", "trainjobs", "delete"),
        ("trainer.kubeflow.org", "trainingruntimes", "get"),
        ("", "pods", "get"),
        ("", "pods", "list"),
        ("", "pods/log", "get"),
    }
    services = {("serving.kserve.io", "inferenceservices", verb) for verb in ("create", "get", "update", "delete")}
    assert rights(documents, "ngrpo-deployment") == services
    assert rights(documents, "ngrpo-service") == set()
    accounts = sorted(str(secret["metadata"]["annotations"]) for secret in of_kind(documents, "Secret"))
    assert accounts == [
        str({"kubernetes.io/service-account.name": f"ngrpo-{name}"}) for name in ("deployment", "training")
    ]


# --- what a person adds in k8s/mine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [DEV, GPU])
@pytest.mark.parametrize("page", [guide.stem for guide in GUIDES])
def test_what_the_guides_show_is_what_the_cluster_knows(guides, rendered, page, folder):
    documents = guides[page, folder]
    found = {f"{d['kind']} {d['metadata']['name']}": mistakes(d) for d in documents}
    assert not any(found.values()), found
    for document in rendered[folder]:
        assert document["metadata"]["name"] in names(documents, document["kind"]), "what the overlay has is there"
    assert all(document["metadata"]["namespace"] == NAMESPACE[folder] for document in documents)


def test_the_credentials_of_another_artifact_store_have_a_place_of_their_own(rendered, guides):
    def readable(documents):
        return {
            name
            for role in of_kind(documents, "Role")
            for rule in role["rules"]
            if "secrets" in rule["resources"]
            for name in rule["resourceNames"]
        }

    documents = guides["cluster", GPU]
    assert readable(rendered[GPU]) == {"mlpipeline-minio-artifact"}
    assert readable(documents) == {"my-artifact-store"}
    assert rights(documents, "ngrpo-stage") == rights(rendered[GPU], "ngrpo-stage")
    (deployment,) = of_kind(documents, "Deployment")
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        assert container["image"].startswith("registry.example.com/team/ngrpo-cpu@sha256:")
    assert reaches(documents, STEP, 9000, address="10.1.2.3")
    assert not reaches(documents, STEP, 9000, address="10.9.9.9")


def test_a_private_installation_has_its_authority_its_proxy_and_its_registry(guides, rendered):
    documents = guides["private", GPU]
    (deployment,) = of_kind(documents, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    files = {variables[name] for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")}
    (mount,) = [mount for mount in container["volumeMounts"] if {f"{mount['mountPath']}/ca.crt"} == files]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert mount["readOnly"]
    assert volume["configMap"] == {"name": "ngrpo-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    (before,) = [each["spec"]["template"]["spec"]["containers"][0] for each in of_kind(rendered[GPU], "Deployment")]
    kept = {variable["name"] for variable in before["env"]}
    assert kept <= set(variables), "what it had stays"
    assert {mount["name"] for mount in before["volumeMounts"]} <= {mount["name"] for mount in container["volumeMounts"]}
    assert container["envFrom"] == [{"configMapRef": {"name": "ngrpo-proxy"}}]
    accounts = of_kind(documents, "ServiceAccount")
    assert {"ngrpo-stage", "ngrpo-service"} <= {account["metadata"]["name"] for account in accounts}
    assert all(account["imagePullSecrets"] == [{"name": "registry"}] for account in accounts)
    for who in (STEP, PLANNER, NODE):
        assert reaches(documents, who, 8080, address="10.0.0.1"), "the proxy, on the port that the page names"
        assert not reaches(documents, who, 8080, address="169.254.169.254")
        assert not reaches(rendered[GPU], who, 8080, address="10.0.0.1")


def test_the_private_guide_makes_what_the_component_names(guides):
    text = (ROOT / "docs" / "private.md").read_text().replace("\\\n", " ")
    made = set(re.findall(r"kubectl .*create (?:configmap|secret [\w-]+) (\S+)", text))
    assert {"ngrpo-ca", "ngrpo-proxy", "registry"} <= made


def test_what_the_private_guide_sets_keeps_the_clusters_own_services_off_the_proxy(monkeypatch):
    (settings,) = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "docs" / "private.md").read_text(), re.MULTILINE | re.DOTALL
    )
    environment = ClusterConfig(**tomllib.loads(settings)).environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
        monkeypatch.delenv(name.lower(), raising=False)
    # As KFP 2.17.0 tells them to a step, and as our own settings name them.
    for address in (
        "http://ml-pipeline.kubeflow.svc.cluster.local:8887",
        "http://metadata-grpc-service.kubeflow.svc.cluster.local:8080",
        "http://seaweedfs.kubeflow:9000",
        "http://mlflow.ngrpo.svc:5000",
        "http://ml-pipeline.kubeflow.svc:8888",
        "https://s3.example.com",
    ):
        assert requests_bypasses(address, None)
        assert boto_bypasses(address)
    assert not requests_bypasses("https://hub.example.com", None)
    assert not boto_bypasses("https://hub.example.com")
