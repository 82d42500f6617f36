"""The checks that `submit` makes on the cluster first: everything that pods would wait for is reported with its cure, all at once."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tomli_w
from commanding import IMAGES as LOCK
from commanding import LIBRARIES
from golden_ir import CLUSTER, IMAGES
from kubeflow_stub import gpu_node

from ngrpo.config import load_config
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.gpu_nodes import NODES
from ngrpo_kfp.pipelines.kubeflow.image_registry import RegistryError, is_there
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.preflight import checks

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

OWN = "/api/v1/namespaces/kubeflow"
KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
QUEUE = f"{KUEUE}/namespaces/kubeflow/localqueues/ngrpo"
CLUSTER_QUEUE = f"{KUEUE}/clusterqueues/ngrpo"
MANAGER = "/apis/apps/v1/namespaces/kueue-system/deployments/kueue-controller-manager"
TRAIN_JOBS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainjobs.trainer.kubeflow.org"
SECRETS = {
    "ngrpo-object-store": ("access-key", "secret-key"),
    "ngrpo-hub": ("token",),
    "ngrpo-training-token": ("ca.crt", "namespace", "token"),
}


@pytest.fixture
def whole(kubeflow):
    """The stub as a cluster that has all that the example settings need, for several nodes too."""
    kubeflow.secrets = SECRETS
    kubeflow.objects |= {
        TRAINER: {"kind": "APIResourceList"},
        f"{TRAINER}/namespaces/kubeflow/trainingruntimes/ngrpo-training": {"spec": {}},
        TRAIN_JOBS: definition("runtimePatches"),
        MANAGER: deployment("registry.k8s.io/kueue/kueue:v0.19.2"),
    }
    return kubeflow


def deployment(image: str) -> dict:
    return {"spec": {"template": {"spec": {"containers": [{"image": image}]}}}}


def definition(field: str) -> dict:
    spec = {"properties": {"spec": {"properties": {field: {}}}}}
    return {"spec": {"versions": [{"schema": {"openAPIV3Schema": spec}}]}}


def quota(**hard: str) -> dict:
    return {"items": [{"metadata": {"name": "team"}, "spec": {"hard": hard}}]}


def resource_group(*flavors: dict[str, str], cohort: str | None = None, limit: str | None = None) -> dict:
    """A cluster queue with one group of resources; each flavor is its quota by resource."""
    made = [
        {
            "name": str(number),
            "resources": [
                {"name": name, "nominalQuota": amount} | ({"borrowingLimit": limit} if limit else {})
                for name, amount in flavor.items()
            ],
        }
        for number, flavor in enumerate(flavors)
    ]
    spec = {"resourceGroups": [{"coveredResources": list(flavors[0]), "flavors": made}]}
    return {"spec": spec | ({"cohortName": cohort} if cohort else {})}


def found(*overrides: str, preset: str = "paper-7b") -> list:
    """What was found for a preset on the example cluster, images left out."""
    config = load_config(PRESETS / f"{preset}.toml", overrides, CLUSTER)
    return [one for one in checks(config, IMAGES) if not one.name.startswith("images.")]


def wrong(*overrides: str, preset: str = "paper-7b") -> list[str]:
    return [f"{one.name}: {one.said}: {one.cure}" for one in found(*overrides, preset=preset) if one.ok is False]


def test_a_cluster_that_has_everything_is_in_order(whole):
    assert {one.ok for one in found("cluster.nodes=2")} == {True}, found("cluster.nodes=2")
    assert wrong(preset="tiny") == []


@pytest.mark.parametrize(
    ("path", "named", "cure"),
    [
        (OWN, "namespace: there is no namespace kubeflow", "KF_PIPELINES_NAMESPACE"),
        (f"{OWN}/serviceaccounts/ngrpo-stage", "cluster.service_account: there is no service account ngrpo-stage", "k8s/base"),
        (f"{OWN}/secrets/registry", "cluster.image_pull_secrets: there is no secret registry", "docker-registry registry"),
        (KUEUE, "cluster.queue: the cluster has no Kueue", "leave cluster.queue out"),
        (QUEUE, "cluster.queue: there is no local queue ngrpo in namespace kubeflow", "k8s/base"),
        (CLUSTER_QUEUE, "cluster.queue quota: there is no cluster queue ngrpo", "k8s/cluster"),
        (f"{KUEUE}/workloadpriorityclasses/training", "cluster.priority_class: there is no WorkloadPriorityClass", "k8s/cluster"),
        (TRAINER, "cluster.training_runtime: the cluster has no Kubeflow Trainer", "cluster.nodes to 1"),
        (
            f"{TRAINER}/namespaces/kubeflow/trainingruntimes/ngrpo-training",
            "cluster.training_runtime: there is no runtime ngrpo-training",
            "k8s/overlays/gpu",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_cure(whole, path, named, cure):
    del whole.objects[path]
    (said,) = wrong("cluster.nodes=2")
    assert named in said
    assert cure in said


def test_the_certificates_that_pods_trust_are_looked_for(whole):
    (said,) = wrong("cluster.certificate_authority=company-ca")
    assert "cluster.certificate_authority: there is no ConfigMap company-ca in namespace kubeflow" in said
    assert "create configmap company-ca --from-file=ca.crt=" in said
    whole.objects[f"{OWN}/configmaps/company-ca"] = {"data": {"other": ""}}
    (said,) = wrong("cluster.certificate_authority=company-ca")
    assert "has no key ca.crt" in said
    whole.objects[f"{OWN}/configmaps/company-ca"] = {"data": {"ca.crt": ""}}
    assert wrong("cluster.certificate_authority=company-ca") == []


def test_a_run_that_deploys_needs_kserve_and_a_token(whole):
    missing = wrong("deployment.after_promotion=true", "deployment.token=ngrpo-deployment-token")
    assert [each.partition(":")[0] for each in missing] == ["KServe", "deployment.token"]
    assert "k8s/base" in missing[1]
    whole.objects["/apis/serving.kserve.io/v1beta1"] = {"kind": "APIResourceList"}
    assert wrong("deployment.after_promotion=true") == []


def test_a_runtime_of_the_whole_cluster_will_do(whole):
    own = whole.objects.pop(f"{TRAINER}/namespaces/kubeflow/trainingruntimes/ngrpo-training")
    whole.objects[f"{TRAINER}/clustertrainingruntimes/ngrpo-training"] = own
    assert wrong("cluster.nodes=2") == []


@pytest.mark.parametrize(
    ("queue", "named"),
    [
        (resource_group({"cpu": "192", "memory": "2Ti"}), "it has no nvidia.com/gpu"),
        (resource_group({"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "4"}), "nvidia.com/gpu 8 (of nvidia.com/gpu 4)"),
        (resource_group({"cpu": "192", "memory": "64Gi", "nvidia.com/gpu": "8"}), r"(of memory 64Gi)"),
        (
            # Each resource would fit into one of them, and all into none.
            resource_group(
                {"cpu": "1000", "memory": "2Ti", "nvidia.com/gpu": "0"}, {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "8"}
            ),
            "of one flavor",
        ),
        (
            resource_group({"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "4"}, cohort="all", limit="2"),
            "nvidia.com/gpu 8 (of nvidia.com/gpu 6)",
        ),
    ],
)  # fmt: skip
def test_a_quota_that_can_never_fit_is_refused(whole, queue, named):
    whole.objects[CLUSTER_QUEUE] = queue
    (said,) = wrong()
    assert "can never start in cluster queue ngrpo" in said
    assert named in said


@pytest.mark.parametrize(
    "queue",
    [
        resource_group({"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "0"}, cohort="all"),
        resource_group(
            {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "0"}, {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "16"}
        ),
    ],
)  # fmt: skip
def test_a_quota_that_can_fit_some_day_is_not(whole, queue):
    whole.objects[CLUSTER_QUEUE] = queue
    assert wrong() == []


def test_all_nodes_of_a_training_must_fit_at_once(whole):
    assert wrong("cluster.nodes=2") == []
    (said,) = wrong("cluster.nodes=4")
    assert "ngrpo_training can never start" in said
    assert "nvidia.com/gpu 32 (of nvidia.com/gpu 16)" in said


def test_a_queue_that_admits_nothing_is_refused(whole):
    whole.objects[QUEUE] = whole.objects[QUEUE] | {
        "status": {"conditions": [{"type": "Active", "status": "False", "message": "ClusterQueue is stopped"}]}
    }
    (said,) = wrong()
    assert "admits nothing (ClusterQueue is stopped)" in said


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (gpu_node("NVIDIA-A100-SXM4-40GB", mib=40960), "gpu.product=NVIDIA-H100-80GB-HBM3; the cluster has a node with 8 x NVIDIA-A100"),
        (gpu_node(mib=40960), "asks for a node with 8 x nvidia.com/gpu of 80 GiB"),
        (gpu_node(gpus=4), "asks for a node with 8 x nvidia.com/gpu"),
        (gpu_node(gpus=0), "the cluster has no node with nvidia.com/gpu"),
    ],
)  # fmt: skip
def test_gpus_that_no_node_has_are_named_and_an_autoscaler_may_still_add_them(whole, there, said):
    whole.objects[NODES] = {"items": [there]}
    (nodes,) = [one for one in found() if one.name == "cluster.gpu nodes"]
    assert nodes.ok is None
    assert said in nodes.said
    assert "cluster.gpu.node_selector" in nodes.cure


def test_a_training_on_several_nodes_needs_as_many(whole):
    whole.objects[NODES] = {"items": [gpu_node()]}
    assert {one.ok for one in found() if one.name == "cluster.gpu nodes"} == {True}
    (nodes,) = [one for one in found("cluster.nodes=2") if one.name == "cluster.gpu nodes"]
    assert "ngrpo_training asks for 2 nodes with" in nodes.said


@pytest.mark.parametrize(
    ("hard", "named"),
    [
        ({"requests.nvidia.com/gpu": "4"}, "asks for nvidia.com/gpu 8, and ResourceQuota team allows 4 in all"),
        ({"limits.memory": "1Gi"}, "ResourceQuota team allows 1Gi in all"),
        ({"requests.cpu": "1000"}, "limits requests.cpu, so that every container must ask for some"),
    ],
)
def test_a_quota_of_the_namespace_that_lets_no_pod_in_is_refused(whole, hard, named):
    whole.objects[f"{OWN}/resourcequotas"] = quota(**hard)
    (said,) = wrong()
    assert named in said
    scoped = quota(**hard)
    scoped["items"][0]["spec"]["scopeSelector"] = {"matchExpressions": []}
    whole.objects[f"{OWN}/resourcequotas"] = scoped
    assert wrong() == []


def test_a_quota_with_defaults_for_the_containers_of_others_is_in_order(whole):
    whole.objects[f"{OWN}/resourcequotas"] = quota(**{"requests.cpu": "1000", "pods": "100"})
    whole.objects[f"{OWN}/limitranges"] = {"items": [{"spec": {"limits": []}}]}
    assert wrong() == []


@pytest.mark.parametrize(
    ("image", "ok", "named"),
    [
        ("registry.k8s.io/kueue/kueue:v0.16.4", False, "version 0.16 drops the volumes"),
        ("registry.k8s.io/kueue/kueue:v0.17.0", True, "0.17"),
        ("mirror.example:5000/kueue:v1.2.0@sha256:" + 64 * "a", True, "1.2"),
        ("mirror.example:5000/kueue@sha256:" + 64 * "a", None, "does not tell its version"),
    ],
)
def test_kueue_must_keep_what_a_job_says_of_its_pods(whole, image, ok, named):
    whole.objects[MANAGER] = deployment(image)
    (kueue,) = [one for one in found("cluster.nodes=2") if one.name == "Kueue"]
    assert (kueue.ok, named in kueue.said) == (ok, True), kueue
    assert not [one for one in found() if one.name == "Kueue"], "one node needs no job"


def test_trainer_must_know_what_a_job_says_of_its_pods(whole):
    whole.objects[TRAIN_JOBS] = definition("podTemplateOverrides")
    (said,) = wrong("cluster.nodes=2")
    assert "it is older than 2.2" in said


def test_a_namespace_of_many_users_must_be_a_profile(whole):
    whole.multi_user = True
    (said,) = wrong()
    assert "namespace: kubeflow has app.kubernetes.io/part-of=None" in said
    assert "kubectl label namespace kubeflow app.kubernetes.io/part-of=kubeflow-profile" in said
    whole.objects[OWN]["metadata"]["labels"] = {"app.kubernetes.io/part-of": "kubeflow-profile"}
    assert wrong() == []


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_submitted(whole, ngrpo, objects, capsys):
    for path in (QUEUE, f"{OWN}/serviceaccounts/ngrpo-stage", f"{KUEUE}/workloadpriorityclasses/training"):
        del whole.objects[path]
    whole.secrets = {}
    assert cli.main(["submit", "--cluster", str(CLUSTER), *LOCK, "--set", f"cluster.store={objects.uri}"]) == 2
    printed = capsys.readouterr()
    for name in ("service_account", "queue", "priority_class", "secrets.ngrpo-object-store", "secrets.ngrpo-hub"):
        assert re.search(rf"^(ngrpo: )?cluster\.{name}: there is no ", printed.err, re.MULTILINE), printed.err
    assert len(printed.err.splitlines()) == 5
    assert whole.runs == whole.experiments == {}


def test_what_cannot_be_looked_up_is_one_line_and_no_reason_to_refuse(whole, ngrpo):
    whole.fail("GET", "^/api/v1/|^/apis/kueue", 403, times=100)
    told = ngrpo("submit", "--cluster", str(CLUSTER))
    (line,) = [line for line in told.splitlines() if "(403)" in line]
    assert line.startswith("not checked  namespace, cluster.service_account, cluster.secrets.ngrpo-object-store, ")
    (Path.home() / ".kube" / "config").unlink()
    whole.faults.clear()
    asked = len(whole.requests)
    told = ngrpo("submit", "--cluster", str(CLUSTER))
    (line,) = [line for line in told.splitlines() if "there is no way to Kubernetes" in line]
    assert "cluster.queue quota" in line
    assert not [path for _, path in whole.requests[asked:] if not re.match(r"/apis/v\dbeta1/", path)]
    assert len(whole.runs) == 2


def test_an_answer_that_may_pass_says_so(whole):
    whole.fail("GET", "/workloadpriorityclasses/", 409)
    (priority,) = [one for one in found() if one.name == "cluster.priority_class"]
    assert priority.ok is None
    assert priority.said == (
        "Kubernetes refuses (409: it fails with 409): somebody else changes it at this moment: run the command again"
    )


# --- images -----------------------------------------------------------------------------------------------------------


@contextmanager
def registry(there: set[str], password: str | None = None):
    """A registry of images, which gives tokens to whoever knows the password; yields its host."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked = self.headers.get("Authorization")
            if password is not None and asked != "Bearer t0ken":
                host = self.headers["Host"]
                self.answer(
                    401, {"WWW-Authenticate": f'Bearer realm="http://{host}/token",service="{host}",scope="pull"'}
                )
            else:
                self.answer(200 if self.path in there else 404)

        def do_GET(self):
            known = f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"
            told = json.dumps({"token": "t0ken"}) if self.headers.get("Authorization") == known else None
            self.answer(200 if told else 401, body=told or "")

        def answer(self, status, headers=None, body=""):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


DIGEST = "sha256:" + 64 * "a"
MANIFEST = f"/v2/team/ngrpo-cpu/manifests/{DIGEST}"


def test_an_image_is_there_or_is_not():
    with registry({MANIFEST}) as host:
        assert is_there(f"{host}/team/ngrpo-cpu@{DIGEST}")
        assert not is_there(f"{host}/team/ngrpo-gpu@{DIGEST}")
    with pytest.raises(RegistryError, match=rf"registry {host} cannot be reached from here"):
        is_there(f"{host}/team/ngrpo-cpu@{DIGEST}")


def test_a_registry_is_asked_with_the_credentials_of_docker_login(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry({MANIFEST}, password="s3cr3t") as host:
        with pytest.raises(RegistryError, match=rf"refuses \(401\): log in with `docker login {host}`"):
            is_there(f"{host}/team/ngrpo-cpu@{DIGEST}")
        auth = base64.b64encode(b"me:s3cr3t").decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        assert is_there(f"{host}/team/ngrpo-cpu@{DIGEST}")


def test_an_image_that_is_not_in_its_registry_is_refused_and_one_that_cannot_be_looked_up_is_said(
    kubeflow, ngrpo, tmp_path
):
    lock = tmp_path / "images.lock"
    with registry(set()) as host:
        lock.write_text(f'cpu = "{host}/team/ngrpo-cpu@{DIGEST}"\n{LIBRARIES}')
        error = ngrpo("submit", "--set", "seed=1", "--images", str(lock), code=2)
        assert f"images.cpu: its registry has no {host}/team/ngrpo-cpu@{DIGEST}: `make images`" in error
        assert kubeflow.runs == {}
    told = ngrpo("submit")
    assert "not checked  images.cpu: registry registry.example cannot be reached from here" in told


@pytest.mark.parametrize("held", ["all", "declared"])
def test_what_a_file_of_the_user_imports_must_be_in_the_image(whole, tmp_path, held):
    (tmp_path / "rewards.py").write_text(
        "import json, numpy, not_there_at_all, sklearn_like\nfrom helper import f\ntry:\n    import optional\nexcept ImportError: ...\n"
    )
    (tmp_path / "helper.py").write_text("import yaml\ndef f(completions, **kwargs): ...")
    table = "[training.rewards.mine]\nfunction = 'rewards.py:f'\n"
    (tmp_path / "mine.toml").write_text(f"{(PRESETS / 'tiny.toml').read_text()}\n{table}")
    config = load_config(tmp_path / "mine.toml", [], CLUSTER)
    lock = tmp_path / "images.lock"
    libraries = {"numpy": "1", "pyyaml": "6", "sklearn-like": "1", "pydantic": "2"} if held == "all" else {"numpy": "1"}
    lock.write_text(
        tomli_w.dumps({"cpu": f"registry.example/ngrpo@sha256:{'0' * 64}", "libraries": {"cpu": libraries}})
    )
    (finding,) = [one for one in checks(config, Images(lock)) if one.name == "training.rewards.mine"]
    if held == "all":
        assert finding.ok is False
        assert finding.said == "rewards.py:f imports not_there_at_all, which image 'cpu' of ngrpo_training lacks"
    else:
        assert finding.ok is None
        assert "does not say whether image 'cpu' holds not_there_at_all, sklearn_like, yaml" in finding.said


def test_a_run_whose_code_imports_what_its_image_lacks_is_not_submitted_and_the_image_is_named(whole, ngrpo, tmp_path):
    (tmp_path / "rewards.py").write_text("import not_there_at_all\ndef f(completions, **kwargs): ...\n")
    preset = tmp_path / "mine.toml"
    preset.write_text('extends = "tiny"\n[training.rewards.mine]\nfunction = "rewards.py:f"\n')
    lock = tmp_path / "images.lock"
    libraries = LIBRARIES.replace("[libraries.cpu]", '[libraries.cpu]\npydantic = "2"')
    lock.write_text(f'cpu = "registry.example/ngrpo-cpu@{DIGEST}"\n{libraries}')
    error = ngrpo("submit", str(preset), "--images", str(lock), code=2)
    assert (
        "training.rewards.mine: rewards.py:f imports not_there_at_all, which image 'cpu' of ngrpo_training lacks: add it to the image"
    ) in error
    assert whole.runs == {}
