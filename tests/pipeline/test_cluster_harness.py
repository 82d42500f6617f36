"""Tests of the code in tests/cluster, as far as possible without a cluster (`make test-cluster` runs it on one)."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
from commanding import kubeflow  # noqa: F401
from golden_ir import GOLDEN
from kubernetes.client import ApiClient, ApiException, V1ObjectMeta, V1Pod
from kubernetes.config import kube_config, new_client_from_config
from kubernetes.utils import parse_quantity
from mlflow import MlflowClient
from test_manifests import KNOWN_FIELDS, METADATA, unknown

from ngrpo.config import load_config
from ngrpo.errors import NGRPOError
from ngrpo.stages.declarations import STAGES
from ngrpo.tracking.cluster_parent_run import PIPELINE_RUN
from ngrpo_kfp.pipelines.cli.options import PRESETS

pytest_plugins = ["mlflow_database"]
pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tests" / "cluster"


@pytest.fixture
def session_module(monkeypatch):
    """The module `session` of tests/cluster, whose folder is on nobody's path."""
    monkeypatch.syspath_prepend(str(CLUSTER))
    import session

    yield session
    for name in ("session", "place", "leftovers", "forwards", "queues", "test_tiny_on_a_cluster"):
        sys.modules.pop(name, None)


def test_without_a_cluster_they_fail_and_say_so_in_one_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/cluster", "-x", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**environment, "KUBECONFIG": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("ERROR: NOT TESTED: ")
    assert "set KUBECONFIG, or make a cluster with k8s/kind/install.sh" in line
    assert "no tests ran" in ended.stdout


def test_a_cluster_that_does_not_answer_is_one_line(session_module, monkeypatch, tmp_path):
    kubeconfig = tmp_path / "config"
    server = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
    }
    contexts = {"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "current-context": "c"}
    kubeconfig.write_text(json.dumps(server | contexts))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    from place import find

    with pytest.raises(
        NGRPOError, match=r"^NOT TESTED: the cluster http://127\.0\.0\.1:9 does not answer \(\w+\): set KUBECONFIG"
    ):
        find()


def test_make_test_collects_none_of_them(pytestconfig):
    assert all(not CLUSTER.is_relative_to(ROOT / path) for path in pytestconfig.getini("testpaths"))


def test_a_session_submits_and_follows_a_run(kubeflow, s3_environment, session_module, tmp_path):  # noqa: F811
    from place import Place

    settings = tmp_path / "cluster.toml"
    settings.write_text('store = "s3://ngrpo/artifacts"\n')
    config = load_config(PRESETS / "tiny.toml", [], settings)
    api = new_client_from_config(str(tmp_path / ".kube" / "config"))
    place = Place(settings, config, "kubeflow", api, GOLDEN / "images.lock")
    session = session_module.Session(place, tmp_path, "cluster-test-00000000")
    run = session.submit("training.steps=4")
    assert session.state(run) == "RUNNING"
    assert session.is_own(run)
    assert list(session.keys(run)) == list(STAGES)
    assert session.keys(run)["model_promotion"] != session.keys(run)["ngrpo_training"]
    assert not session.training_saved(run)
    assert session.tries(run, "ngrpo_training") == []
    kubeflow.finish(kubeflow.run(), session.artifacts, tmp_path / "payloads")
    session.succeeded(run)
    assert session.pods_of(run, "ngrpo_training")


def test_the_settings_of_its_runs_are_possible(session_module):
    import test_tiny_on_a_cluster as tests

    for settings in (tests.QUICK, tests.LONG, (*tests.QUICK, *tests.FRESH), (*tests.LONG, *tests._nodes(2))):
        config = load_config(PRESETS / "tiny.toml", [*settings, tests.training(3)])
        assert config.training.steps > config.training.save_steps, "it saves on its way"
        assert config.training.prompts_per_batch * config.rollout.group_size >= (
            config.training.micro_batch_size * config.cluster.nodes
        )
    rates = {load_config(PRESETS / "tiny.toml", [tests.training(number)]).training.learning_rate for number in range(8)}
    assert len(rates) == 8, "each test has a training of its own"


class Kubeflow:
    """Runs, schedules and versions, of a session's and of others; what is deleted is gone, what is ended is over at the next look."""

    def __init__(self):
        self.runs = {name: SimpleNamespace(run_id=name, state="RUNNING") for name in ("own-1", "own-2", "other")}
        self.runs["own-2"].state = "SUCCEEDED"
        self.schedules = [
            SimpleNamespace(recurring_run_id=name, display_name=name) for name in ("mark-minute", "nightly")
        ]
        self.versions = [
            SimpleNamespace(pipeline_id="p", pipeline_version_id=name, display_name=name, pipeline_spec={"store": name})
            for name in ("s3://ngrpo/mark", "s3://ngrpo/artifacts")
        ]

    def list_experiments(self, **arguments):
        return SimpleNamespace(experiments=[SimpleNamespace(experiment_id="e")])

    def get_user_namespace(self):
        return ""

    def list_runs(self, **arguments):
        return SimpleNamespace(runs=[copy(run) for run in self.runs.values()], next_page_token="")

    def list_recurring_runs(self, **arguments):
        return SimpleNamespace(recurring_runs=list(self.schedules), next_page_token="")

    def list_pipelines(self, **arguments):
        return SimpleNamespace(pipelines=[SimpleNamespace(pipeline_id="p")], next_page_token="")

    def list_pipeline_versions(self, **arguments):
        return SimpleNamespace(pipeline_versions=list(self.versions), next_page_token="")

    def terminate_run(self, run):
        self.runs[run].state = "CANCELED"

    def delete_run(self, run):
        assert self.runs.pop(run).state != "RUNNING", "an active run is ended first"

    def delete_recurring_run(self, name):
        self.schedules = [each for each in self.schedules if each.recurring_run_id != name]

    def delete_pipeline_version(self, pipeline, version):
        self.versions = [each for each in self.versions if each.pipeline_version_id != version]


def test_what_a_session_leaves_is_removed_and_nothing_of_others(objects, database, session_module, monkeypatch):
    import leftovers

    tracking = MlflowClient()
    experiment = tracking.create_experiment("ngrpo")
    tracked = {}
    for pipeline_run in ("own-2", "other"):
        parent = tracking.create_run(experiment, tags={PIPELINE_RUN: pipeline_run}).info.run_id
        tracked[pipeline_run] = [
            tracking.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id,
            parent,
        ]
    for model in ("ngrpo-mark", "ngrpo-tiny"):
        tracking.create_registered_model(model)

    def once(self, what, look, minutes):
        assert look(), what

    monkeypatch.setattr(session_module.Session, "until", once)
    objects.put_bytes(b"", "prepare_data/key/manifest.json")
    kubeflow = Kubeflow()  # noqa: F811
    session = object.__new__(session_module.Session)
    vars(session).update(
        kubeflow=kubeflow,
        mark="mark",
        model="ngrpo-mark",
        objects=objects,
        place=SimpleNamespace(kubernetes=ApiClient()),
    )
    vars(session)["_own"] = {"own-1": True, "own-2": True, "other": False}
    monkeypatch.setattr(session_module.Session, "is_own", lambda self, run: run.startswith("own"))
    pods = [
        V1Pod(metadata=V1ObjectMeta(name="driver", labels={"pipeline/runid": "own-1"})),
        V1Pod(metadata=V1ObjectMeta(name="node", annotations={"store": "s3://ngrpo/mark"})),
        V1Pod(metadata=V1ObjectMeta(name="ml-pipeline")),
    ]

    def look(self):
        """Deleted with their runs, as Kubernetes does it."""
        return pods if "own-1" in kubeflow.runs else pods[2:]

    monkeypatch.setattr(session_module.Session, "pods", look)
    monkeypatch.setattr(session_module.Session, "train_jobs", lambda self: [])
    assert leftovers.left(session) == [
        "run own-1 (RUNNING)",
        "run own-2 (SUCCEEDED)",
        "schedule mark-minute",
        "version s3://ngrpo/mark",
        "pod driver",
        "pod node",
        "object prepare_data/key/manifest.json",
        "model ngrpo-mark",
        *(f"MLflow run {run}" for run in tracked["own-2"]),
    ]
    leftovers.remove(session)
    assert leftovers.left(session) == []
    assert list(kubeflow.runs) == ["other"]
    assert kubeflow.runs["other"].state == "RUNNING"
    assert [each.display_name for each in kubeflow.schedules] == ["nightly"]
    assert [each.display_name for each in kubeflow.versions] == ["s3://ngrpo/artifacts"]
    assert [model.name for model in tracking.search_registered_models()] == ["ngrpo-tiny"]
    assert {run.info.run_id for run in tracking.search_runs([experiment])} == set(tracked["other"])


def test_waiting_ends_with_its_deadline(session_module, monkeypatch):
    monkeypatch.setattr(session_module, "_PAUSE_SECONDS", 0.01)
    waiting = session_module.Session.until
    with pytest.raises(pytest.fail.Exception, match=r"a thing that never comes: not after 0\.001 minutes"):
        waiting(None, "a thing that never comes", lambda: None, minutes=0.001)
    assert waiting(None, "a thing", lambda: "it", minutes=0.001) == "it"


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-Urpf", "--mount-proc", "true"], capture_output=True).returncode != 0,
    reason="NOT CHECKED: a process table of its own needs unshare and user namespaces",
)
def test_what_kills_a_try_kills_it_and_nothing_else(session_module):
    script = f"""
import subprocess, sys
attempt = subprocess.Popen([sys.executable, "-m", "ngrpo.stages.attempt"], stdin=subprocess.PIPE)
other = subprocess.Popen(["sleep", "60"])
print(subprocess.run([sys.executable, "-c", {session_module._KILL!r}], capture_output=True, text=True).stdout.strip())
print(attempt.wait(60), other.poll())
other.kill()
"""
    ended = subprocess.run(
        ["unshare", "-Urpf", "--mount-proc", sys.executable, "-c", script], capture_output=True, text=True
    )
    assert ended.stdout.split("\n")[:2] == ["1", "-9 None"], ended.stderr


def test_keys_of_the_object_store_come_from_the_secrets_of_pods(kubeflow, session_module, tmp_path):  # noqa: F811
    from place import Place

    kubeflow.secrets = {"ngrpo-object-store": ["access-key", "secret-key"]}
    settings = tmp_path / "cluster.toml"
    settings.write_text(
        '[environment]\nNGRPO_S3_ENDPOINT_URL = "http://object-store.kubeflow.svc:8333"\n'
        '[secrets.ngrpo-object-store]\nNGRPO_S3_ACCESS_KEY_ID = "access-key"\nNGRPO_S3_SECRET_ACCESS_KEY = "secret-key"\n'
    )
    api = new_client_from_config(str(tmp_path / ".kube" / "config"))
    place = Place(settings, load_config(PRESETS / "tiny.toml", [], settings), "kubeflow", api)
    assert place.credentials() == {"AWS_ACCESS_KEY_ID": "hidden", "AWS_SECRET_ACCESS_KEY": "hidden"}
    assert place.address("_ENDPOINT_URL") == "http://object-store.kubeflow.svc:8333"
    kubeflow.secrets = {}
    with pytest.raises(
        NGRPOError, match=r"^secret ngrpo-object-store of namespace kubeflow cannot be read \(404 .*: make it"
    ):
        place.credentials()
    with pytest.raises(NGRPOError, match="environment names no MLFLOW_TRACKING_URI"):
        place.address("MLFLOW_TRACKING_URI")


class Kueue:
    """The part of `CustomObjectsApi` that makes and deletes objects; `missing` stands for a cluster without Kueue."""

    def __init__(self, *, missing=False):
        self.missing, self.objects, self.made = missing, {}, []

    def create_cluster_custom_object(self, group, version, kind, body):
        if self.missing:
            raise ApiException(404)
        self.objects[kind, body["metadata"]["name"]] = body
        self.made.append(body)

    def create_namespaced_custom_object(self, group, version, namespace, kind, body):
        self.create_cluster_custom_object(group, version, kind, body)

    def delete_cluster_custom_object(self, group, version, kind, name):
        if self.objects.pop((kind, name), None) is None:
            raise ApiException(404)

    def delete_namespaced_custom_object(self, group, version, namespace, kind, name):
        self.delete_cluster_custom_object(group, version, kind, name)


def test_the_queue_has_room_for_one_stage_and_goes_with_its_test(session_module):
    from queues import queue_of_one_stage

    kueue = Kueue()
    config = load_config(PRESETS / "tiny.toml", [])
    session = SimpleNamespace(mark="mark", custom=kueue, place=SimpleNamespace(config=config, namespace="kubeflow"))
    with queue_of_one_stage(session) as queue:
        assert {name for _, name in kueue.objects} == {queue.name, queue.low, queue.high}
    assert kueue.objects == {}
    by_kind = {body["kind"]: body for body in kueue.made}
    for body in kueue.made:
        known = {"apiVersion": str, "kind": str, "metadata": METADATA, **KNOWN_FIELDS[body["apiVersion"], body["kind"]]}
        assert list(unknown(body, known)) == []
    quota = by_kind["ClusterQueue"]["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    for resource, needs in zip(quota, ("cpus", "memory_gib"), strict=True):
        stages = [getattr(config.needs(stage), needs) for stage in STAGES]
        room = parse_quantity(resource["nominalQuota"]) / (1 if needs == "cpus" else 2**30)
        assert max(stages) <= room < 2 * min(stages), "one stage fits, two do not"


def test_without_kueue_the_test_fails_in_one_line(session_module):
    from queues import queue_of_one_stage

    config = load_config(PRESETS / "tiny.toml", [])
    place = SimpleNamespace(config=config, namespace="kubeflow")
    session = SimpleNamespace(mark="mark", custom=Kueue(missing=True), place=place)
    says = r"there is no Kueue that serves kueue\.x-k8s\.io/v1beta2"
    with pytest.raises(pytest.fail.Exception, match=says), queue_of_one_stage(session):
        pass


KUBECTL = """#!{python}
import socket, sys
with open({calls!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
server = socket.create_server(("127.0.0.1", int(sys.argv[-1].split(":")[0])))
server.accept()[0].close()  # the first caller ends it, as the end of a pod does
"""


def test_a_way_to_a_service_is_opened_again_when_it_ends(session_module, monkeypatch, tmp_path):
    from forwards import reachable

    calls = tmp_path / "calls"
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(KUBECTL.format(python=sys.executable, calls=str(calls)))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(kubectl.parent), prepend=os.pathsep)
    with reachable("http://object-store.kubeflow.svc:8333") as address:
        port = int(address.removeprefix("http://127.0.0.1:"))
        deadline = time.monotonic() + 120
        while len(calls.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert set(calls.read_text().splitlines()) == {
        f"--namespace kubeflow port-forward service/object-store {port}:8333"
    }
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "it is closed with its context"


def test_an_address_outside_the_cluster_needs_no_way_there(session_module):
    from forwards import reachable

    with reachable("https://s3.example.com:8443/x") as address:
        assert address == "https://s3.example.com:8443/x"
