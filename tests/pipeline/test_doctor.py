"""`ngrpo doctor`: each fault of a cluster is one line with the cure, and nothing is left on the cluster."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import kubernetes_validate
import pytest
import yaml
from golden_ir import CLUSTER, GOLDEN
from kubeconfig import write_kubeconfig
from kubernetes_stub import ARGO_CONFIG, DEPLOYMENTS, IMAGES, OWN, PODS, serve

from ngrpo.config import load_config
from ngrpo.environment import environment
from ngrpo_kfp.components.serving.kubernetes_objects import Refused
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.doctor import probe as cluster_probe
from ngrpo_kfp.pipelines.kubeflow.doctor.examination import looked_at
from ngrpo_kfp.pipelines.kubeflow.doctor.probe import manifest, probe
from ngrpo_kfp.pipelines.kubeflow.doctor.reach import MARK, reached
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

pytestmark = pytest.mark.pipeline

REACHED = [
    {"name": "store", "ok": True, "said": "s3://ngrpo/artifacts can be used"},
    {"name": "clock", "ok": True, "said": "the store's is 0 s ahead of ours"},
    {"name": "MLflow", "ok": True, "said": "http://mlflow.ngrpo.svc:5000 can be used (version 3.17.0)"},
]


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    with serve() as state:
        monkeypatch.setattr(cluster_probe, "POLL_SECONDS", 0.01)
        state.pod_log = "a line of a library\n" + "".join(f"{MARK}{json.dumps(each)}\n" for each in REACHED)
        write_kubeconfig(tmp_path, state.address)
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", state.address)
        for name in ("KF_PIPELINES_NAMESPACE", "MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("COLUMNS", "80")
        yield state


@pytest.fixture
def doctor(cluster, capsys):
    """Run the command; returns its lines, and of those the ones with a cross."""

    def run(*arguments, left=False):
        capsys.readouterr()
        command = ["doctor", "--preset", "paper-7b", "--cluster", str(CLUSTER), "--images", str(GOLDEN / "images.lock")]
        # The registry of the golden images is none.
        ended = cli.main([*command, "--set", "cluster.image_pull_policy=Never", *arguments])
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        assert all(line[:2] in ("✓ ", "✗ ", "? ") for line in lines), printed.out
        wrong = [line for line in lines if line.startswith("✗")]
        assert ended == (2 if wrong else 0), printed
        assert len(printed.err.splitlines()) == (1 if wrong else 0) or "left out" in printed.err
        assert left or cluster.pods == {}, "nothing is left behind"
        return lines, wrong

    return run


def starting(lines, start):
    (line,) = [line for line in lines if line[2:].startswith(start)]
    return line


def test_a_healthy_cluster_has_no_cross_and_no_question_mark(cluster, doctor, s3_environment):
    lines, _ = doctor("--set", "cluster.nodes=2")
    assert [line for line in lines if not line.startswith("✓")] == []
    text = "\n".join(lines)
    for seen in (
        "version of Kubernetes: v1.34.4",
        "kfp-api-server:2.17.0 in namespace kubeflow",
        "workflow-controller:v4.0.5",
        "Kueue: 0.19",
        "trainer-controller-manager:v2.3.0",
        "jobset:v0.12.0",
        "Argo's retries: retryPolicy OnError",
        "kept 3600 s after their end",
        "Kueue's integrations: pod, trainer.kubeflow.org/trainjob",
        "store from a pod: s3://ngrpo/artifacts can be used",
        "MLflow from a pod",
        "store from here",
        "cluster.secrets.ngrpo-object-store",
    ):
        assert seen in text
    assert [method for method, path in cluster.requests if method in ("PUT", "PATCH")] == []
    assert cluster.asked("POST", r"/pods$") == 1
    assert cluster.asked("POST", "") == cluster.asked("POST", r"/pods$") + cluster.asked("POST", "accessreviews$")


def images(**changes):
    """The images of the installation with changes by deployment; none is not installed."""
    changed = {key: changes.get(key[1].replace("-", "_"), image) for key, image in IMAGES.items()}
    return {key: image for key, image in changed.items() if image is not None}


@pytest.mark.parametrize(
    ("changes", "overrides", "said", "cure"),
    [
        ({"kueue_controller_manager": "kueue:v0.14.4"}, (), "version of Kueue: kueue:v0.14.4", "install Kueue 0.15 or newer"),
        ({"kueue_controller_manager": "kueue:v0.16.1"}, ("cluster.nodes=2",), "Kueue: version 0.16 drops", "install Kueue 0.17"),
        ({"kueue_controller_manager": None}, (), "version of Kueue: it is not installed", "install Kueue 0.15 or newer"),
        (
            {"kubeflow_trainer_controller_manager": None},
            ("cluster.nodes=2",),
            "version of Kubeflow Trainer: it is not installed",
            "install Kubeflow Trainer 2.3",
        ),
        (
            {"kubeflow_trainer_controller_manager": "mirror:5000/trainer-controller-manager:v2.1.0@sha256:" + "a" * 64},
            ("cluster.nodes=2",),
            "trainer-controller-manager:v2.1.0@",
            "install Kubeflow Trainer 2.3",
        ),
    ],
)  # fmt: skip
def test_what_is_too_old_or_missing_is_named(cluster, doctor, changes, overrides, said, cure):
    cluster.set_images(images(**changes))
    _, (wrong,) = doctor(*(word for each in overrides for word in ("--set", each)))
    assert said in wrong
    assert cure in wrong


def test_what_is_not_used_is_not_asked_for(cluster, doctor):
    cluster.set_images(images(kueue_controller_manager=None, kubeflow_trainer_controller_manager=None))
    own = CLUSTER.read_text().replace('queue = "ngrpo"\npriority_class = "training"\n', "")
    path = cluster_file(own)
    lines, wrong = doctor("--cluster", str(path))
    assert wrong == []
    assert starting(lines, "version of Kueue") == "✓ version of Kueue: not needed: cluster.queue is not set"
    assert "not needed: cluster.nodes = 1" in starting(lines, "version of Kubeflow Trainer")


def cluster_file(text):
    path = os.path.join(os.environ["HOME"], "cluster.toml")
    with open(path, "w") as file:
        file.write(text)
    return path


def test_kueue_that_serves_v1beta2_alone_and_images_without_a_version(cluster, doctor):
    cluster.set_images(
        images(kueue_controller_manager="kueue:v0.20.3", ml_pipeline="kfp-api-server@sha256:" + "a" * 64)
    )
    lines, wrong = doctor()
    assert wrong == []
    assert starting(lines, "version of Kueue").startswith("✓")
    assert starting(lines, "version of Kubeflow Pipelines").startswith("?")


@pytest.mark.parametrize("retry", [{}, {"templateDefaults": {"retryStrategy": {"limit": "2"}}}])
def test_argo_that_does_not_try_lost_pods_again(cluster, doctor, retry):
    cluster.set_argo({"spec": retry})
    lines, (wrong,) = doctor()
    assert "Argo's retries: retryPolicy OnFailure" in wrong
    assert "failures are tried again inside the pod all the same" in wrong
    assert "workflow-controller-configmap of namespace kubeflow" in wrong
    assert "retryPolicy: OnError" in wrong
    assert "kept until they are deleted" in starting(lines, "Argo's clean-up")


def test_argo_settings_in_one_document(cluster, doctor):
    defaults = {"spec": {"templateDefaults": {"retryStrategy": {"retryPolicy": "Always"}}}}
    cluster.objects[ARGO_CONFIG] = {"data": {"config": yaml.safe_dump({"workflowDefaults": defaults})}}
    lines, wrong = doctor()
    assert wrong == []
    assert "retryPolicy Always" in starting(lines, "Argo's retries")


def test_kueue_that_does_not_manage_pods_or_the_namespace(cluster, doctor):
    cluster.set_kueue({"integrations": {"frameworks": ["batch/job"]}})
    _, (wrong,) = doctor()
    assert "Kueue's integrations: pod not among batch/job" in wrong
    assert "integrations.frameworks in ConfigMap kueue-manager-config" in wrong
    selector = {"matchLabels": {"kueue": "yes"}}
    cluster.set_kueue({"integrations": {"frameworks": ["pod"]}, "managedJobsNamespaceSelector": selector})
    _, (wrong,) = doctor()
    assert "Kueue's namespaces: managedJobsNamespaceSelector leaves kubeflow out" in wrong


def test_a_cluster_with_nothing_on_it(cluster, doctor):
    cluster.objects = {"/version": {"gitVersion": "v1.26.3+k3s1"}, DEPLOYMENTS: {"items": []}}
    _, wrong = doctor("--set", "cluster.nodes=2")
    named = {line[2:].partition(":")[0] for line in wrong}
    assert named >= {
        "version of Kubernetes",
        "version of Kubeflow Pipelines",
        "version of Argo Workflows",
        "version of Kubeflow Trainer",
        "version of JobSet",
        "namespace",
        "cluster.service_account",
        "cluster.queue",
        "cluster.training_runtime",
        "Argo's retries",
    }
    assert all(";" in line or "(" in line for line in wrong), "each has a cure"


def test_a_configuration_that_is_no_yaml(cluster, doctor):
    cluster.objects[ARGO_CONFIG]["data"]["workflowDefaults"] = "spec: [}"
    _, (wrong,) = doctor("--no-pod")
    assert "workflow-controller-configmap is not valid YAML" in wrong


def test_a_namespace_without_the_label_of_a_profile(cluster, doctor):
    cluster.multi_user = True
    cluster.objects[OWN]["metadata"]["labels"]["app.kubernetes.io/part-of"] = "ngrpo"
    _, (wrong,) = doctor()
    assert "app.kubernetes.io/part-of=ngrpo" in wrong
    assert "kubectl label namespace kubeflow app.kubernetes.io/part-of=kubeflow-profile --overwrite" in wrong
    cluster.objects[OWN]["metadata"]["labels"]["app.kubernetes.io/part-of"] = "kubeflow-profile"
    assert doctor()[1] == []


def test_a_sidecar_of_mlflow_in_an_istio_profile(cluster, doctor):
    cluster.objects[OWN]["metadata"]["labels"]["istio-injection"] = "enabled"
    template = {"metadata": {"labels": {}}}
    cluster.objects["/apis/apps/v1/namespaces/kubeflow/deployments/mlflow"] = {"spec": {"template": template}}
    _, (wrong,) = doctor()
    assert "sidecar of MLflow: Istio puts one there" in wrong
    template["metadata"]["labels"]["sidecar.istio.io/inject"] = "false"
    assert doctor()[1] == []


def test_certificates_that_are_not_there(cluster, doctor):
    settings = ("--no-pod", "--set", "cluster.certificate_authority=ngrpo-ca")
    _, (wrong,) = doctor(*settings)
    assert "there is no ConfigMap ngrpo-ca" in wrong
    assert "`kubectl -n kubeflow create configmap ngrpo-ca --from-file=ca.crt=…`" in wrong
    cluster.objects[f"{OWN}/configmaps/ngrpo-ca"] = {"data": {"other.pem": ""}}
    assert "has no key ca.crt" in doctor(*settings)[1][0]
    cluster.objects[f"{OWN}/configmaps/ngrpo-ca"] = {"data": {"ca.crt": ""}}
    assert doctor(*settings)[1] == []


def test_a_quota_that_can_never_fit(cluster, doctor):
    (group,) = cluster.cluster_queue["spec"]["resourceGroups"]
    next(one for one in group["flavors"][0]["resources"] if one["name"] == "nvidia.com/gpu")["nominalQuota"] = "4"
    _, (wrong,) = doctor()
    assert "ngrpo_training can never start in cluster queue ngrpo" in wrong
    assert "raise the quota of ngrpo" in wrong


def test_a_resource_quota_that_refuses_what_kueue_would_queue(cluster, doctor):
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {"requests.nvidia.com/gpu": 16, "pods": "100"}}}
    cluster.objects[f"{OWN}/resourcequotas"] = {"items": [quota]}
    _, (wrong,) = doctor()
    assert "ResourceQuota team allows requests.nvidia.com/gpu 16, no more than the queue's quota" in wrong
    assert "well above" in wrong
    quota["spec"]["scopes"] = ["BestEffort"]
    assert doctor("--no-pod")[1] == [], "it is for other pods"
    quota["spec"] = {"hard": {"requests.nvidia.com/gpu": 64}}
    assert doctor("--no-pod")[1] == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"namespaceSelector": None}, "leaves kubeflow out"),
        ({"namespaceSelector": {"matchLabels": {"team": "x"}}}, "leaves kubeflow out"),
        ({"stopPolicy": "Hold"}, "queue ngrpo is stopped (Hold)"),
    ],
)
def test_a_queue_that_admits_nothing_from_the_namespace(cluster, doctor, spec, said):
    cluster.cluster_queue["spec"] |= spec
    _, (wrong,) = doctor()
    assert "cluster.queue admission" in wrong
    assert said in wrong


@pytest.mark.parametrize(("minutes", "direction"), [(20, "ahead of"), (-20, "behind")])
def test_a_cluster_whose_clock_is_off(cluster, doctor, minutes, direction):
    cluster.clock = timedelta(minutes=minutes)
    _, wrong = doctor()
    assert {line.partition(":")[0] for line in wrong} == {"✗ clock of Kubeflow Pipelines", "✗ clock of Kubernetes"}
    assert all(direction in line and "NTP" in line and "15 minutes" in line for line in wrong)
    cluster.clock = timedelta(minutes=4)
    assert doctor()[1] == []


# --- an API that refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (401, "log in to the cluster again"),
        (403, "ask whoever runs the cluster for that right"),
        (409, "run the command again"),
        (412, "run the command again"),
        (429, "overloaded: run the command again in a minute"),
        (500, "see the log of its API server"),
    ],
)
def test_a_refusal_has_the_cure_of_its_kind(cluster, monkeypatch, status, cure):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    cluster.faults = [("GET", f"^{DEPLOYMENTS}$", status, "not now")]
    with pytest.raises(Refused, match=rf"Kubernetes refuses \({status}: not now\).*{cure}") as caught:
        Kubernetes().items(DEPLOYMENTS)
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_api_does_not_show_is_a_question_with_the_cure(cluster, doctor, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    cluster.faults = [("GET", f"^{DEPLOYMENTS}$", 429, "not now")]
    lines, wrong = doctor()
    assert wrong == []
    line = starting(lines, "versions")
    assert line.startswith("? ")
    assert "Kubernetes refuses (429: not now); it is overloaded: run the command again in a minute" in line
    assert starting(lines, "Argo's retries").startswith("✓"), "the rest is looked at"


def test_what_was_found_as_json(cluster, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    cluster.faults = [("GET", f"^{DEPLOYMENTS}$", 429, "not now")]
    command = [
        "doctor",
        "--preset",
        "paper-7b",
        "--cluster",
        str(CLUSTER),
        "--images",
        str(GOLDEN / "images.lock"),
        "--no-pod",
        "--json",
    ]
    cli.main(command)
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["version of Kubernetes"]["ok"] is True
    assert (found["versions"]["ok"], "overloaded" in found["versions"]["cure"]) == (None, True)


def test_an_account_that_may_see_nothing(cluster, doctor):
    cluster.faults = [("GET", "^/api(s)?/(?!v2beta1)", 403, "forbidden")]
    cluster.denied = {"create pods", "delete pods", "list pods", "get pods/log"}
    lines, wrong = doctor()
    assert wrong == []
    assert "may not create and delete pods in namespace kubeflow" in starting(lines, "from a pod")
    assert "may not list pods and get pods/log" in starting(lines, "rights")
    assert cluster.made == []


@pytest.mark.parametrize(("status", "mark"), [(409, None), (412, None), (429, None), (403, False)])
def test_a_pod_that_is_refused(cluster, status, mark):
    cluster.faults = [("POST", f"^{PODS}$", status, "exceeded quota: team")]
    settings = load_config(PRESETS / "paper-7b.toml", [], CLUSTER).cluster
    (finding,) = looked_at("from a pod", lambda: probe(Kubernetes(), settings, "image"))
    assert finding.ok is mark
    assert f"({status}: exceeded quota: team)" in finding.said
    assert finding.cure
    assert cluster.asked("POST", f"^{PODS}$") == 1, "what may have been done is not sent again"
    assert cluster.asked("DELETE", f"^{PODS}/") == 1, "it may have been made all the same"


def test_an_api_that_cannot_be_reached_is_one_line(cluster, doctor, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        path = tmp_path / ".kube" / "config"
        path.write_text(path.read_text().replace(cluster.address, os.environ["KF_PIPELINES_ENDPOINT"]))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    _, wrong = doctor()
    assert len(wrong) == 2
    assert "port-forward" in wrong[0]
    assert "Kubernetes cannot be reached" in wrong[1]
    assert "check KUBECONFIG" in wrong[1]


def test_no_way_to_kubernetes_is_one_line(cluster, doctor, tmp_path):
    (tmp_path / ".kube" / "config").unlink()
    _, (wrong,) = doctor()
    assert "there is no way to Kubernetes" in wrong
    assert "set KUBECONFIG" in wrong


# --- the pod ----------------------------------------------------------------------------------------------------------


def test_the_pod_stands_where_stages_stand(cluster, doctor):
    doctor("--set", 'cluster.labels.access-ml-pipeline="true"', "--set", "cluster.node_selector.pool=cpu")
    (pod,) = cluster.made
    kubernetes_validate.validate(pod, "1.34.0", strict=True)
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    settings = load_config(PRESETS / "paper-7b.toml", [], CLUSTER).cluster
    variables = {each["name"]: each for each in container["env"]}
    assert pod["metadata"]["labels"] == {
        "access-ml-pipeline": "true",
        "ngrpo/stage": "doctor",
        "pipelines.kubeflow.org/v2_component": "true",
    }
    assert pod["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert not any(name.startswith("kueue") for name in pod["metadata"]["labels"]), "it does not wait in the queue"
    assert spec["serviceAccountName"] == "ngrpo-stage"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"pool": "cpu"}
    assert spec["securityContext"]["runAsUser"] == settings.run_as_user
    assert container["image"].startswith("registry.example/ngrpo-cpu@sha256:")
    assert variables["NGRPO_STORE"]["value"] == settings.store
    assert variables["MLFLOW_TRACKING_URI"]["value"] == "http://mlflow.ngrpo.svc:5000"
    assert variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "ngrpo-hub", "key": "token"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert spec["activeDeadlineSeconds"] <= 180


def test_an_image_that_was_not_built_ends_no_other_look(cluster, doctor, tmp_path):
    lock = tmp_path / "images.lock"
    lock.write_text("")
    settings = ("--images", str(lock), "--set", "cluster.image_pull_policy=IfNotPresent")
    lines, wrong = doctor(*settings)
    assert [line.partition(":")[0] for line in wrong] == ["✗ images", "✗ from a pod"]
    assert all("build it" in line for line in wrong)
    assert starting(lines, "Argo's retries").startswith("✓")


def test_the_pod_trusts_what_stages_trust():
    settings = load_config(PRESETS / "paper-7b.toml", ["cluster.certificate_authority=ngrpo-ca"], CLUSTER).cluster
    spec = manifest("ngrpo-doctor-1", settings, "image")["spec"]
    (container,) = spec["containers"]
    (volume,) = [each["name"] for each in spec["volumes"] if each.get("configMap") == {"name": "ngrpo-ca"}]
    (where,) = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == volume]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["NGRPO_S3_CA_BUNDLE"] == variables["SSL_CERT_FILE"] == f"{where}/ca.crt"


def test_what_the_pod_cannot_reach_is_told(cluster, doctor):
    failed = {"name": "store", "ok": False, "said": "object store s3://ngrpo/artifacts: cannot be reached; start it"}
    cluster.pod_log = MARK + json.dumps(failed)
    _, (wrong,) = doctor()
    assert wrong == "✗ store from a pod: object store s3://ngrpo/artifacts: cannot be reached; start it"


def test_a_pod_that_fails_shows_its_last_lines(cluster, doctor):
    cluster.pod_log, cluster.pod_status = (
        "python3: No module named ngrpo_kfp.pipelines.kubeflow.doctor.reach\n",
        {"phase": "Failed"},
    )
    _, (wrong,) = doctor()
    assert "No module named ngrpo_kfp.pipelines.kubeflow.doctor.reach" in wrong
    assert "image" in wrong


def test_a_pod_that_does_not_start_is_deleted(cluster, doctor, monkeypatch):
    monkeypatch.setattr(cluster_probe, "PATIENCE_SECONDS", 0.1)
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 node(s) had untolerated taints.",
        "lastTransitionTime": "2026-11-28T00:00:00Z",
    }
    cluster.pod_status = {"phase": "Pending", "conditions": [condition]}
    _, (wrong,) = doctor()
    assert "has not started" in wrong
    assert "0/3 nodes are available" in wrong
    assert len(cluster.made) == 1


def test_a_pod_that_hangs_is_deleted(cluster, doctor, monkeypatch):
    monkeypatch.setattr(cluster_probe, "PATIENCE_SECONDS", 0.1)
    cluster.pod_status = {"phase": "Running"}
    _, (wrong,) = doctor()
    assert "it is not done" in wrong
    assert len(cluster.made) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pod_is_deleted_when_the_command_is_stopped(cluster, monkeypatch, number):
    cluster.pod_status = {"phase": "Running"}
    arguments = ["--images", str(GOLDEN / "images.lock"), "--set", "cluster.image_pull_policy=Never"]

    def stop():
        while not cluster.pods:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    # A process that was started in the background of a shell ignores SIGINT.
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["doctor", "--cluster", str(CLUSTER), *arguments]) == 128 + number
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(cluster.made) == 1
    assert cluster.pods == {}


def test_a_pod_that_cannot_be_deleted_is_named(cluster, doctor):
    cluster.faults = [("DELETE", PODS, 500, "etcd is full")]
    _, (wrong,) = doctor(left=True)
    (name,) = cluster.pods
    assert "etcd is full" in wrong
    assert f"`kubectl -n kubeflow delete pod {name}`" in wrong


def test_no_pod_is_made_where_none_is_wanted(cluster, doctor):
    lines, _ = doctor("--no-pod")
    assert cluster.made == []
    assert not any("from a pod" in line for line in lines)


# --- what the pod runs ------------------------------------------------------------------------------------------------


def reach(**variables):
    """Run the pod's command; returns its results by name."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        [sys.executable, "-m", "ngrpo_kfp.pipelines.kubeflow.doctor.reach"],
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    results = [json.loads(line.removeprefix(MARK)) for line in ended.stdout.splitlines() if line.startswith(MARK)]
    return {each["name"]: each for each in results}


def test_reach_finds_a_real_store_without_a_region_and_names_what_it_does_not_reach(s3):
    # By the names that pods have them under.
    named = {name.replace("AWS_", "NGRPO_S3_"): value for name, value in s3.environment().items()}
    own = {name: value for name, value in named.items() if "REGION" not in name}
    assert not any(name.startswith("AWS_") for name in own)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = reach(**own, NGRPO_STORE="s3://ngrpo/x", MLFLOW_TRACKING_URI=nowhere, KF_PIPELINES_ENDPOINT=nowhere)
    assert found["store"]["ok"], found
    assert "signed for us-east-1" in found["store"]["said"], "boto3 needs no region"
    assert found["clock"]["ok"]
    assert not found["MLflow"]["ok"]
    assert "check that it is up" in found["MLflow"]["said"]
    assert not found["pipelines"]["ok"]
    assert "cannot be reached" in found["pipelines"]["said"]


def here(variables):
    """What is reached with these variables, in this process; results by name."""
    cleared = dict.fromkeys(("AWS_DEFAULT_REGION", "AWS_REGION", "KF_PIPELINES_ENDPOINT", "MLFLOW_TRACKING_URI"))
    with environment(cleared | {"NGRPO_STORE": "s3://ngrpo/x"} | variables):
        return {each.name: each for each in reached()}


def test_reach_names_an_unreachable_store_wrong_keys_and_a_file_for_mlflow(s3):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = here(s3.environment() | {"AWS_ENDPOINT_URL": nowhere})
    assert set(found) == {"store"}
    assert "cannot be reached" in found["store"].said
    found = here(s3.environment() | {"AWS_SECRET_ACCESS_KEY": "not-the-key", "MLFLOW_TRACKING_URI": "sqlite:///x.db"})
    assert not found["store"].ok
    assert "access refused" in found["store"].said
    assert "not-the-key" not in str(found)
    assert not found["MLflow"].ok
    assert "name a server" in found["MLflow"].said


@pytest.fixture
def picky():
    """An S3 service of region eu-1, whose clock is 20 minutes ahead."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            signed = self.headers.get("Authorization", "")
            self.send_response_only(200 if "/eu-1/s3/" in signed else 400)
            self.send_header("Date", "Fri, 01 Jan 2100 00:00:00 GMT")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_with_a_region_of_its_own_and_another_time(picky):
    keys = {"AWS_ENDPOINT_URL": picky, "AWS_ACCESS_KEY_ID": "a" * 20, "AWS_SECRET_ACCESS_KEY": "b" * 40}
    found = here(keys)
    assert not found["store"].ok
    assert "no region is set" in found["store"].said
    assert "NGRPO_S3_REGION" in found["store"].said
    assert not found["clock"].ok
    assert "NTP" in found["clock"].said
    assert here(keys | {"AWS_DEFAULT_REGION": "eu-1"})["store"].ok


def test_the_api_of_kubeflow_pipelines_and_what_is_none(cluster):
    name = "KF_PIPELINES_ENDPOINT"
    assert here({"NGRPO_STORE": None, name: cluster.address})["pipelines"].ok
    cluster.faults = [("GET", "healthz", 401, "no token")]
    assert "access-ml-pipeline" in here({"NGRPO_STORE": None, name: cluster.address})["pipelines"].said
    cluster.faults = [("GET", "healthz", 200, "Log in")]
    assert "not as the API" in here({"NGRPO_STORE": None, name: cluster.address})["pipelines"].said
