"""The service of a version on a cluster: its manifest, its validation by KServe's own models, and its rollback."""

import json
import subprocess
import sys
import time
from copy import deepcopy

import pytest
import yaml
from kubernetes_stub import NAMESPACE, serve

from ngrpo.config import RegisteredModel, load_config
from ngrpo.errors import ClusterError, ConfigError, EngineError
from ngrpo.evaluation.equivalence import Equivalence
from ngrpo.storage.digest import model_digest
from ngrpo_kfp.components.serving import deployment
from ngrpo_kfp.components.serving.inference_service import SERVICES, inference_service
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from tiny import save_tiny_model

GPU = f"registry.example.com/ngrpo-gpu@sha256:{'a' * 64}"
STORED = RegisteredModel(
    kind="registered", name="ngrpo", version=3, id="s3://bucket/mlflow/1/models/m-1/artifacts/model", digest="d" * 64
)
OTHER = STORED.model_copy(update={"version": 4, "id": "s3://bucket/other", "digest": "e" * 64})
CLUSTER = {
    "service_account": "ngrpo-stage",
    "image_pull_secrets": ["registry"],
    "labels": {"team": "math"},
    "gpu": {"node_selector": {"gpu": "h200"}, "tolerations": [{"key": "nvidia.com/gpu"}]},
    "secrets": {"ngrpo-object-store": {"NGRPO_S3_SECRET_ACCESS_KEY": "secret-key"}},
}
SETTINGS = [
    *(f"cluster.{name}={json.dumps(value)}" for name, value in CLUSTER.items()),
    "resources.benchmark_evaluation.gpus=8",
    "resources.benchmark_evaluation.memory_gib=64",
    "evaluation.vllm.tensor_parallel_size=2",
]


@pytest.fixture
def manifest():
    def function(*settings: str, stored: RegisteredModel = STORED):
        config = load_config(PRESETS / "tiny.toml", [*SETTINGS, *settings])
        return inference_service(stored, config, GPU, namespace=NAMESPACE, positions=4096)

    return function


# --- what it is made of -------------------------------------------------------------------------------------------------


def test_a_service_serves_one_version_and_no_alias(manifest):
    service = manifest()
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service["metadata"]["name"] == "ngrpo"
    assert service["metadata"]["annotations"] == {
        "ngrpo/model-digest": "d" * 64,
        "ngrpo/model": "ngrpo/3",
        "ngrpo/preset": "tiny",
    }
    predictor = service["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container", "the name by which KServe knows it"
    assert container["image"] == GPU
    assert {"name": "STORAGE_URI", "value": STORED.location} in container["env"]
    assert container["command"] == ["python", "-m", "ngrpo.storage.verified_start", "/mnt/models", "d" * 64]
    told = " ".join(container["args"])
    assert f"--model /mnt/models --served-model-name ngrpo ngrpo-model-{'d' * 32} --host 0.0.0.0 --port 8080" in told
    assert "--dtype float32" in told
    assert "--tensor-parallel-size 2" in told
    assert "champion" not in yaml.safe_dump(service)


def test_it_gets_what_the_cluster_has_for_stages_with_gpus(manifest):
    predictor = manifest()["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2", "those that share the model"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert predictor["serviceAccountName"] == "ngrpo-stage"
    assert predictor["nodeSelector"] == {"gpu": "h200"}
    assert predictor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert predictor["imagePullSecrets"] == [{"name": "registry"}]
    assert predictor["securityContext"]["runAsNonRoot"] is True
    assert {probe for probe in container if probe.endswith("Probe")} == {
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
    }
    assert manifest()["metadata"]["labels"] == {"team": "math"}
    own = manifest("deployment.service_account=kserve-s3", "deployment.name=math")
    assert own["spec"]["predictor"]["serviceAccountName"] == "kserve-s3"
    assert own["metadata"]["name"] == "math"


def test_a_dollar_in_an_option_is_no_variable(manifest):
    (container,) = manifest('evaluation.vllm.options.hf_overrides={"a": "$(HOME)"}')["spec"]["predictor"]["containers"]
    assert '{"a": "$$(HOME)"}' in container["args"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["resources.benchmark_evaluation.gpus=0"],
            "resources.benchmark_evaluation.gpus=0: a model is served by the image",
        ),
        (["evaluation.vllm.tensor_parallel_size=16"], "exceeds cluster.gpu.per_pod=8"),
    ],
)
def test_what_cannot_be_served(manifest, settings, said):
    with pytest.raises(ConfigError, match=said):
        manifest(*settings)


def test_a_model_whose_name_is_none_of_a_service(manifest):
    with pytest.raises(
        ConfigError, match=r"promotion\.model_name='7b': no name of a service, .*; set deployment\.name"
    ):
        manifest(stored=STORED.model_copy(update={"name": "7b"}))


# The classes of its API alone: the package itself needs others that do not go with ours.
_ACCEPTED = """
import json, sys, types
site, path = sys.argv[1:]
import kubernetes.client
import kubernetes.client.models
kserve = types.ModuleType("kserve")
kserve.__path__ = [site + "/kserve"]
sys.modules["kserve"] = kserve
import kserve.models
for name in dir(kserve.models):
    if name.startswith(("V1beta1", "Knative")):
        setattr(kubernetes.client.models, name, getattr(kserve.models, name))
given = json.load(open(path))
client = kubernetes.client.ApiClient()
class Response:
    data = json.dumps(given)
service = client.deserialize(Response, "V1beta1InferenceService")
print(json.dumps(client.sanitize_for_serialization(service)))
"""


@pytest.mark.long
def test_kserves_own_models_know_all_of_it(manifest, tmp_path):
    """In an environment of its own: kserve 0.21 wants another pandas than MLflow has."""
    uv, place = [sys.executable, "-m", "uv"], tmp_path / "kserve"
    command = [*uv, "pip", "install", "--quiet", "--no-deps", "--target", str(place), "kserve==0.21.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr[-300:]}")
    service = manifest()
    (tmp_path / "service.json").write_text(json.dumps(service))
    read = subprocess.run(
        [sys.executable, "-c", _ACCEPTED, str(place), str(tmp_path / "service.json")], capture_output=True, text=True
    )
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout) == service, "its classes drop what they do not know"


# --- only these files ---------------------------------------------------------------------------------------------------


def test_a_server_starts_on_the_registered_files_alone(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    command = [sys.executable, "-m", "ngrpo.storage.verified_start", str(model), model_digest(model), "-c", "print(1)"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n")
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the files are not those that were registered" in done.stderr


# --- applied, and put back ----------------------------------------------------------------------------------------------

COLLECTION = SERVICES.format(namespace=NAMESPACE)
PATH = f"{COLLECTION}/ngrpo"


class Services:
    """What KServe does, beside the stub of Kubernetes."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.ready = True
        self.history = []
        self._answer = cluster.answer
        cluster.answer = self.answer

    @property
    def service(self):
        return self.cluster.objects.get(PATH)

    def answer(self, method, path, body):
        if path not in (PATH, COLLECTION) or any(verb == method for verb, *_ in self.cluster.faults):
            return self._answer(method, path, body)
        if method == "DELETE":
            self.history.append("deleted")
            return 200, self.cluster.objects.pop(PATH)
        if method in ("POST", "PUT"):
            self.put(json.loads(body))
        return (200, self.service) if self.service else (404, {"message": "not found"})

    def put(self, service):
        there = self.service
        if there is not None and service["metadata"].get("resourceVersion") != there["metadata"]["resourceVersion"]:
            raise AssertionError("the replaced version is not named")
        generation = 1 if there is None else there["metadata"]["generation"] + 1
        service["metadata"] |= {"resourceVersion": str(generation), "generation": generation, "uid": "u"}
        status = {"type": "Ready", "status": "True" if self.ready else "False", "message": "no node has a GPU"}
        service["status"] = {
            "observedGeneration": generation,
            "url": "http://ngrpo.kubeflow.example.com",
            "conditions": [status],
        }
        self.cluster.objects[PATH] = service
        self.history.append(service["metadata"]["annotations"]["ngrpo/model"])


@pytest.fixture
def kserve(monkeypatch, tmp_path):
    monkeypatch.setattr(deployment, "_SECONDS_BETWEEN_LOOKS", 0.01)
    with serve() as cluster:
        (tmp_path / ".kube").mkdir()
        (tmp_path / ".kube" / "config").write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": cluster.address}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                    "current-context": "c",
                }
            )
        )
        monkeypatch.setenv("HOME", str(tmp_path))
        yield Services(cluster)


def deployed(service, decision="kept", evaluate=None, minutes=1.0):
    told, asked = [], []
    verdict = deployment.deploy(
        service,
        Kubernetes(),
        evaluate=evaluate or (lambda url: asked.append(url)),
        decide=lambda _: Equivalence(decision, "for a reason", ()),
        minutes=minutes,
        say=told.append,
    )
    assert verdict.decision == decision
    return told, asked


def test_a_deployment_that_does_as_it_was_evaluated_stays(kserve, manifest):
    _, asked = deployed(manifest())
    assert asked == ["http://ngrpo.kubeflow.example.com/v1"]
    assert kserve.service["spec"] == manifest()["spec"]
    assert kserve.history == ["ngrpo/3"]


def test_a_refused_one_is_replaced_by_the_one_before(kserve, manifest):
    deployed(manifest())
    before = deepcopy(kserve.service)
    other = manifest(stored=OTHER)
    told, _ = deployed(other, "refused")
    assert kserve.history == ["ngrpo/3", "ngrpo/4", "ngrpo/3"]
    assert kserve.service["spec"] == before["spec"]
    assert kserve.service["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert told[-1] == "rolled back: ngrpo serves what it served before"


def test_a_refused_first_one_is_deleted(kserve, manifest):
    told, _ = deployed(manifest(), "refused")
    assert kserve.service is None
    assert told[-1] == "deleted: ngrpo, which was not there before"


def test_an_evaluation_that_fails_puts_it_back_too(kserve, manifest):
    deployed(manifest())

    def fails(_):
        raise EngineError("the endpoint died")

    other = manifest(stored=OTHER)
    with pytest.raises(EngineError, match="the endpoint died"):
        deployed(other, evaluate=fails)
    assert kserve.history == ["ngrpo/3", "ngrpo/4", "ngrpo/3"]


def test_one_that_does_not_get_ready_is_put_back(kserve, manifest):
    kserve.ready = False
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"not ready within 0\.001 minutes \(no node has a GPU\)"):
        deployed(manifest(), minutes=0.001)
    assert time.monotonic() - began < 30
    assert kserve.service is None


def test_a_cluster_that_refuses_changes_nothing(kserve, manifest):
    kserve.cluster.faults.append(("POST", "inferenceservices", 403, "no right"))
    with pytest.raises(ClusterError, match=r"403: no right"):
        deployed(manifest())
    assert kserve.history == []
