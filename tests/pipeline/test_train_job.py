"""Training on several nodes: the job that the step makes, how it is followed, and that nothing of it is left behind."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from golden_ir import WHOLE, compiled
from kubernetes.config import kube_config
from small_training import CONFIG
from trainer_stub import WORKFLOW, serve

from ngrpo.config.cluster import ClusterConfig, GPUConfig, ResourcesConfig
from ngrpo.errors import StoreError, TrainJobError
from ngrpo.stages.execution import run_task
from ngrpo.stages.step import execute
from ngrpo.stages.task import Task
from ngrpo.stages.tries import tries_of
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.components.launching import train_job
from ngrpo_kfp.components.launching.train_job_manifest import JobSettings, manifest

pytestmark = pytest.mark.pipeline

KEY = "0123456789abcdef0123456789abcdef"
NAME = f"ngrpo-{KEY}"
SECRETS = {"object-store": {"NGRPO_S3_ACCESS_KEY_ID": "access-key", "NGRPO_S3_SECRET_ACCESS_KEY": "secret-key"}}
TASK = Task("ngrpo_training", '{"suffix": "$(HOME) costs $$5"}', KEY, "c0", {})


def settings(**cluster) -> JobSettings:
    return JobSettings(
        image="registry.example/ngrpo-gpu@sha256:0",
        needs=ResourcesConfig(gpus=8, cpus=32, memory_gib=256),
        cluster=ClusterConfig(nodes=2, **cluster),
    )


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("KFP_POD_NAME", "step-1")
    monkeypatch.setenv("KFP_POD_UID", "u1")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    with serve(tmp_path / "kubeconfig") as state:
        yield state


def run(**cluster) -> None:
    train_job.run(TASK, settings(**cluster).model_dump_json())


def refused(**cluster) -> str:
    with pytest.raises(TrainJobError) as failure:
        run(**cluster)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_job_is_made_once_followed_and_deleted(cluster, capsys, monkeypatch):
    monkeypatch.setenv("NGRPO_PIPELINE_RUN", "r1")
    monkeypatch.setenv("NGRPO_S3_SECRET_ACCESS_KEY", "s3cr3t")
    run(
        environment={"NGRPO_S3_ENDPOINT_URL": "http://s3"},
        secrets=SECRETS,
        service_account="ngrpo-stage",
        queue="ngrpo",
        priority_class="training",
        labels={"team": "reasoning"},
        node_selector={"zone": "a"},
        tolerations=[{"key": "spot"}],
        image_pull_secrets=["registry"],
        timeout_hours=2,
        gpu=GPUConfig(node_selector={"gpu": "h100"}, tolerations=[{"key": "gpu", "effect": "NoSchedule"}]),
    )
    (job,) = cluster.made
    assert cluster.deleted == [NAME]
    output = capsys.readouterr().out
    assert output.count("step 2/2\n") == 1
    assert f"said by {NAME}-node-0-0" in output
    assert "s3cr3t" not in json.dumps(job)

    assert job["metadata"]["labels"] == {
        "ngrpo/stage": "ngrpo_training",
        "kueue.x-k8s.io/queue-name": "ngrpo",
        "kueue.x-k8s.io/priority-class": "training",
    }
    spec, trainer = job["spec"], job["spec"]["trainer"]
    assert spec["runtimeRef"] == {"name": "ngrpo-training", "kind": "TrainingRuntime"}
    assert spec["activeDeadlineSeconds"] == 7200
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["image"] == "registry.example/ngrpo-gpu@sha256:0"
    expected = {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"requests": expected, "limits": expected}
    variables = {one["name"]: one.get("value") or one["valueFrom"] for one in trainer["env"]}
    assert variables["NGRPO_S3_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "object-store", "key": "secret-key"}}
    assert variables["NGRPO_S3_ENDPOINT_URL"] == "http://s3"
    assert variables["NGRPO_PROCESSES"] == "8"
    assert variables["NGRPO_PIPELINE_RUN"] == "r1"
    assert variables["NGRPO_STORE"] == "s3://ngrpo/artifacts"
    assert variables["NGRPO_SAVE_MINUTES"] == "10.0"
    assert "NGRPO_TRIES" not in variables, "the step tries again, with all nodes"
    assert variables["TQDM_DISABLE"] == "1", "the step prints what they print"
    assert "$" not in trainer["args"][0], "Kubernetes would replace it"
    assert Task(**json.loads(trainer["args"][0])) == TASK

    (patch,) = spec["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = nodes["template"]["spec"]["template"]
    assert template["metadata"]["labels"] == {"ngrpo/stage": "ngrpo_training", "team": "reasoning"}
    pod = template["spec"]
    assert pod["nodeSelector"] == {"zone": "a", "gpu": "h100"}
    assert [one["key"] for one in pod["tolerations"]] == ["spot", "gpu"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "ngrpo-stage"
    assert pod["securityContext"]["runAsNonRoot"] is True
    sizes = {one["name"]: one["emptyDir"]["sizeLimit"] for one in pod["volumes"]}
    assert sizes == {"scratch": "50Gi", "shared-memory": "16Gi"}
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounts == {"scratch": "/scratch", "shared-memory": "/dev/shm"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_job_belongs_to_the_workflow_of_its_step(cluster):
    run()
    (owner,) = cluster.made[0]["metadata"]["ownerReferences"]
    assert owner == {name: WORKFLOW[name] for name in ("apiVersion", "kind", "name", "uid")}


@pytest.mark.parametrize(
    ("step", "fault", "said"),
    [
        (
            {"name": "step-1", "uid": "u1"},
            None,
            "pod step-1 of namespace ngrpo is not the pod of this step, or no Workflow",
        ),
        ({"name": "step-1", "uid": "u2", "ownerReferences": [WORKFLOW]}, None, "is not the pod of this step"),
        (None, ["GET", "pods/step-1", 403, 1], "403 it fails with 403: the account lacks rights"),
        ({"name": "step-2"}, None, "pod step-1: Kubernetes answers with 404"),
    ],
)
def test_a_step_whose_workflow_cannot_be_found_goes_on_and_says_so(cluster, capsys, step, fault, said):
    cluster.step = step or cluster.step
    cluster.faults = [fault] if fault else []
    run()
    assert "ownerReferences" not in cluster.made[0]["metadata"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "the job does not end with its run" in line]
    assert said in line


def test_a_process_that_is_no_step_says_so(cluster, capsys, monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME")
    run()
    assert "KFP_POD_NAME is not set" in capsys.readouterr().err


def nodes_know(cluster):
    return {one["name"]: one.get("value") for one in cluster.made[0]["spec"]["trainer"]["env"]}


def test_nodes_know_all_that_the_step_knows_of_mlflow_and_the_plugin_goes_before_the_settings(cluster, monkeypatch):
    told = {
        "MLFLOW_TRACKING_URI": "http://of-the-plugin",
        "MLFLOW_RUN_ID": "1",
        "MLFLOW_EXPERIMENT_ID": "2",
        "MLFLOW_WORKSPACE": "team",
        "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    run(environment={"MLFLOW_TRACKING_URI": "http://of-the-settings"})
    assert told.items() <= nodes_know(cluster).items()


def test_credentials_of_mlflow_reach_the_nodes_by_reference_alone(cluster, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t")  # of the plugin, from a secret
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")  # from a secret; its user and password were taken off
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "s3cr3t-user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    place = {"name": "of-the-plugin", "key": "token"}
    cluster.step_env = [
        {"name": "MLFLOW_TRACKING_TOKEN", "valueFrom": {"secretKeyRef": place}},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": place}},
        {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "HOME", "value": "/scratch"},
    ]
    run(secrets={"mlflow": {"MLFLOW_TRACKING_URI": "address"}})
    variables = {one["name"]: one for one in cluster.made[0]["spec"]["trainer"]["env"]}
    assert len(variables) == len(cluster.made[0]["spec"]["trainer"]["env"])
    references = {name: one["valueFrom"]["secretKeyRef"] for name, one in variables.items() if "valueFrom" in one}
    assert references == {"MLFLOW_TRACKING_TOKEN": place, "MLFLOW_TRACKING_URI": {"name": "mlflow", "key": "address"}}
    assert "s3cr3t" not in json.dumps(cluster.made)


def test_nodes_trust_what_the_step_trusts(cluster):
    run(certificate_authority="authorities")
    (patch,) = cluster.made[0]["spec"]["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = nodes["template"]["spec"]["template"]["spec"]
    assert {"name": "certificates", "configMap": {"name": "authorities"}} in pod["volumes"]
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounts["certificates"] == "/var/run/ngrpo/certificates"
    assert nodes_know(cluster)["NGRPO_S3_CA_BUNDLE"] == "/var/run/ngrpo/certificates/ca.crt"


def test_nodes_without_gpus_ask_for_none(cluster):
    told = JobSettings(
        image="registry.example/ngrpo-cpu@sha256:0",
        needs=ResourcesConfig(cpus=1, memory_gib=2),
        cluster=ClusterConfig(nodes=2, gpu=GPUConfig(node_selector={"gpu": "h100"}, tolerations=[{"key": "gpu"}])),
    )
    train_job.run(TASK, told.model_dump_json())
    spec = cluster.made[0]["spec"]
    assert spec["trainer"]["resourcesPerNode"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert spec["trainer"]["numProcPerNode"] == 1
    assert nodes_know(cluster)["NGRPO_PROCESSES"] == "1"
    (nodes,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = nodes["template"]["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == ({}, [])
    assert [one["name"] for one in pod["volumes"]] == ["scratch"]


def test_a_failed_job_is_one_line_with_the_last_words_of_the_node_that_failed(cluster):
    cluster.states = ["Running", "Failed"]
    cluster.log = [f"line {number}" for number in range(9)]
    line = refused()
    assert f"TrainJob {NAME} failed (FailedJobs: jobset failed)" in line
    assert line.endswith(f"last lines of node-1: line 5 / line 6 / line 7 / line 8 / said by {NAME}-node-0-1")
    assert cluster.deleted == [NAME]


def test_a_job_that_never_starts_is_given_up(cluster):
    cluster.states = ["Pending"]
    line = refused(nodes_start_minutes=0.01)
    assert "did not start on 2 nodes within cluster.nodes_start_minutes=0.01 (node-0 Running, node-1 Pending)" in line
    assert cluster.deleted == [NAME]


def test_why_nodes_do_not_start_is_said_at_once_and_in_the_end(cluster, capsys):
    cluster.states = ["Pending"]
    waiting = {"reason": "ErrImagePull", "message": "manifest unknown"}
    status = {
        "name": "node",
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": waiting},
    }
    cluster.pending = {"containerStatuses": [status]}
    line = refused(nodes_start_minutes=0.01)
    reason = f"{NAME}-node-0-1: ErrImagePull: manifest unknown; correct the image's address"
    assert f"(node-0 Running, node-1 Pending): {reason}" in line
    assert capsys.readouterr().out.count(f"TrainJob {NAME}: {reason}") == 1


def test_a_job_that_runs_may_take_longer_than_starting_may(cluster):
    cluster.states = [*["Running"] * 200, "Complete"]
    run(nodes_start_minutes=0.01)
    assert cluster.deleted == [NAME]


def test_a_second_try_joins_what_the_first_has_left_running(cluster, capsys):
    cluster._create(manifest(NAME, TASK, settings()))
    run()
    assert len(cluster.made) == 1
    assert "an earlier try has made it" in capsys.readouterr().out


def test_a_second_try_replaces_what_has_ended(cluster):
    cluster._create(manifest(NAME, TASK, settings()))
    failed = {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": ""}
    cluster.jobs[NAME]["status"] = {"conditions": [failed]}
    run()
    assert len(cluster.made) == 2
    assert cluster.deleted == [NAME, NAME]


def test_a_try_after_a_lost_node_waits_for_the_nodes_that_are_left_and_makes_the_job_anew(cluster):
    cluster.states, cluster.later = ["Running", "Failed"], [["Pending", "Running", "Complete"]]
    cluster.grace = 3  # they may be saving
    assert "failed (FailedJobs" in refused()
    assert NAME in cluster.jobs
    run()
    assert [job["metadata"]["name"] for job in cluster.made] == [NAME, NAME]
    assert cluster.overlaps == 0


def test_a_job_that_somebody_deletes_is_noticed(cluster):
    cluster.states = ["Running", "Gone"]
    assert "was deleted by somebody else" in refused()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (["POST", "trainjobs", 401, 1], ("401", "cluster.service_account")),
        (["GET", "trainjobs", 403, 99], ("403", "lacks rights")),
        (["POST", "trainjobs", 422, 1], ("422", "it fails with 422", "correct the section `cluster`")),
        (["GET", "pods$", 403, 99], ("403", "lacks rights")),
    ],
)
def test_what_the_cluster_refuses_is_one_line_with_the_cure(cluster, fault, named):
    cluster.states = ["Running"]
    cluster.faults = [fault]
    line = refused()
    assert all(part in line for part in named), line
    assert cluster.jobs == {}


def test_a_runtime_that_is_missing_is_named(cluster):
    cluster.runtimes = []
    line = refused()
    assert "runtime ngrpo-training" in line
    assert "install Kubeflow Trainer" in line
    assert cluster.made == []


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_what_passes_is_tried_again(cluster, status):
    cluster.faults = [[method, "trainjobs|pods$", status, 2] for method in ("POST", "GET", "DELETE")]
    run()
    assert cluster.deleted == [NAME]
    assert cluster.jobs == {}


def test_a_job_that_another_try_makes_at_the_same_moment_is_joined(cluster, monkeypatch):
    get = train_job.TrainJob._get
    looks = iter([None])  # at the first look it is not there yet
    monkeypatch.setattr(train_job.TrainJob, "_get", lambda job: next(looks, job) and get(job))
    cluster._create(manifest(NAME, TASK, settings()))
    run()
    assert len(cluster.made) == 1


def test_what_does_not_pass_is_said(cluster, monkeypatch):
    monkeypatch.setattr(train_job, "PATIENCE_SECONDS", 0.2)
    cluster.faults = [["GET", "trainjobs", 503, 999]]
    assert "503 it fails with 503: try again" in refused()


def test_a_process_outside_of_a_cluster_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert "no way to the API of Kubernetes" in refused()


ATTEMPT = "ngrpo_kfp.components.launching.attempt"

IN_STEP = """
import sys
from pathlib import Path
from ngrpo_kfp.components.launching import train_job
from ngrpo.stages.task import Task
train_job.POLL_SECONDS = 0.05
train_job.run(Task("ngrpo_training", "{}", sys.argv[1], "c0", {}), Path(sys.argv[2]).read_text())
"""


def test_a_step_that_is_told_to_stop_deletes_its_job(cluster, tmp_path):
    cluster.states = ["Running"]
    (tmp_path / "settings.json").write_text(settings().model_dump_json())
    step = subprocess.Popen(
        [sys.executable, "-c", IN_STEP, KEY, str(tmp_path / "settings.json")],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")},
    )
    try:
        assert cluster.looked_at.wait(60)
        step.send_signal(signal.SIGTERM)
        assert step.wait(60) == os.EX_TEMPFAIL
    finally:
        step.kill()
    assert cluster.deleted == [NAME]
    assert cluster.jobs == {}


@pytest.fixture
def step(cluster, objects, tmp_path, monkeypatch):
    """Execute the stage as its step does; writes the files that it writes."""
    for name, value in {"STORE": objects.uri, "WORK_DIR": tmp_path / "w", "CACHE_DIR": tmp_path / "c"}.items():
        monkeypatch.setenv(f"NGRPO_{name}", str(value))
    monkeypatch.setenv("NGRPO_TRAIN_JOB", settings().model_dump_json())
    task = Task(
        "ngrpo_training",
        json.dumps(CONFIG),
        KEY,
        "c0",
        {},
        output=str(tmp_path / "reference.json"),
        metrics=str(tmp_path / "metrics.json"),
    )

    def work() -> dict[str, float]:
        if "NGRPO_TRIES" in os.environ:
            given = {"code_version": task.code_version, "inputs": {}, "output": task.output, "metrics": task.metrics}
            return execute(task.stage, config_json=task.config_json, key=KEY, attempt=ATTEMPT, **given)
        run_task(task, partial(train_job.run, settings_json=os.environ["NGRPO_TRAIN_JOB"]))  # as `ATTEMPT` does
        return json.loads((tmp_path / "metrics.json").read_text())

    return work


def test_the_step_hands_on_what_the_nodes_have_published(step, cluster, store, tmp_path):
    def publish():
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "metrics.json").write_text('{"steps": 2}')
        store.publish("ngrpo_training", KEY, tmp_path / "made", config_digest="", code_version="c0", inputs={})

    cluster.completed = publish
    assert step() == {"steps": 2}
    assert Reference.read(tmp_path / "reference.json").key == KEY
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"steps": 2}
    step()
    assert len(cluster.made) == 1, "what is in the store is not made again"


FAST = """
import sys
if "ngrpo_kfp.components.launching.attempt" in sys.orig_argv:
    from ngrpo_kfp.components.launching import train_job
    train_job.POLL_SECONDS = 0.05
"""


def test_a_lost_node_costs_a_try_and_not_the_run(step, cluster, store, objects, tmp_path, monkeypatch, capfd):
    def publish():
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "metrics.json").write_text('{"steps": 2}')
        store.publish("ngrpo_training", KEY, tmp_path / "made", config_digest="", code_version="c0", inputs={})

    cluster.states, cluster.later, cluster.completed = ["Running", "Failed"], [["Running", "Complete"]], publish
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FAST)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("NGRPO_TRIES", json.dumps({"times": 1, "backoff_seconds": 1, "backoff_factor": 1}))
    assert step() == {"steps": 2}
    assert Reference.read(tmp_path / "reference.json").key == KEY
    assert len(cluster.made) == 2
    assert cluster.jobs == {}
    lost, done = tries_of(objects, "ngrpo_training", KEY)
    assert (lost.outcome, done.outcome) == ("failed", "succeeded")
    assert f"TrainJob {NAME} failed (FailedJobs: jobset failed); last lines of node-1: " in lost.error
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


def test_nodes_that_publish_nothing_are_an_error(step, tmp_path):
    with pytest.raises(StoreError, match=f"no artifact {KEY}: do they use the same store"):
        step()
    assert not (tmp_path / "reference.json").exists()


def test_the_pod_of_the_step_asks_for_no_gpu_and_knows_the_job():
    spec, platform = compiled(
        WHOLE, "cluster.nodes=2", "cluster.nodes_start_minutes=30", "cluster.stage_timeout_hours.ngrpo_training=2"
    )
    container = spec["deploymentSpec"]["executors"]["exec-ngrpo-training"]["container"]
    assert container["image"].startswith("registry.example/ngrpo-cpu@sha256:")
    assert "accelerator" not in container["resources"]
    (variable,) = [one["value"] for one in container["env"] if one["name"] == "NGRPO_TRAIN_JOB"]
    job = JobSettings.model_validate_json(variable)
    assert job.image.startswith("registry.example/ngrpo-gpu@sha256:")
    assert job.needs.gpus == 8
    assert job.cluster.nodes == 2
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-ngrpo-training"]
    assert "nodeSelector" not in pod
    tries = job.cluster.retry.times + 1
    assert int(pod["activeDeadlineSeconds"]) == 2 * 3600 + 60 * (30 * tries + 10)
    other = spec["deploymentSpec"]["executors"]["exec-benchmark-evaluation"]["container"]
    assert "NGRPO_TRAIN_JOB" not in {one["name"] for one in other["env"]}


def test_gpus_that_only_generate_have_no_training_process():
    apart = ("rollout.placement=separate", "rollout.gpus=4", "training.mismatch_correction=token_truncate")
    spec, _ = compiled(WHOLE, "cluster.nodes=2", *apart)
    container = spec["deploymentSpec"]["executors"]["exec-ngrpo-training"]["container"]
    (variable,) = [one["value"] for one in container["env"] if one["name"] == "NGRPO_TRAIN_JOB"]
    trainer = manifest("n", TASK, JobSettings.model_validate_json(variable))["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 4
    assert {"name": "NGRPO_PROCESSES", "value": "4"} in trainer["env"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    spec, _ = compiled(WHOLE, *apart)
    executors = spec["deploymentSpec"]["executors"]
    assert {"name": "NGRPO_PROCESSES", "value": "4"} in executors["exec-ngrpo-training"]["container"]["env"]


def test_nodes_without_gpus_have_the_image_without_them():
    spec, _ = compiled("tiny", "cluster.nodes=2", "training.micro_batch_size=128")
    container = spec["deploymentSpec"]["executors"]["exec-ngrpo-training"]["container"]
    (variable,) = [one["value"] for one in container["env"] if one["name"] == "NGRPO_TRAIN_JOB"]
    job = JobSettings.model_validate_json(variable)
    assert job.image.startswith("registry.example/ngrpo-cpu@sha256:")
    assert job.needs == ResourcesConfig(cpus=1, memory_gib=2)


def test_only_the_step_of_the_training_holds_the_token_that_makes_jobs():
    token = {"secretName": "ngrpo-training-token", "mountPath": "/var/run/secrets/ngrpo-training"}
    for nodes, holders in ((1, set()), (2, {"exec-ngrpo-training"})):
        _, platform = compiled(WHOLE, f"cluster.nodes={nodes}")
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        mounts = {name: executor.get("secretAsVolume", []) for name, executor in executors.items()}
        assert {name for name, mounted in mounts.items() if mounted} == holders
        for name in holders:
            (mounted,) = mounts[name]
            assert token.items() <= mounted.items()


def test_the_job_is_made_with_that_token_and_not_with_the_account_of_the_pod(cluster, tmp_path, monkeypatch):
    folder = tmp_path / "token"
    monkeypatch.setattr(train_job, "TRAINING_TOKEN", str(folder))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    assert "Service token file does not exist" in refused(training_token="ngrpo-training-token")
    folder.mkdir()
    for name, text in (("token", "of-the-training"), ("ca.crt", "a certificate"), ("namespace", "ngrpo")):
        (folder / name).write_text(text)
    found = train_job._account(settings(training_token="ngrpo-training-token").cluster)
    assert found.namespace == "ngrpo"
    configuration = found.client_configuration
    assert configuration.host == "https://127.0.0.1:9"
    assert configuration.get_api_key_with_prefix("authorization") == "bearer of-the-training"
    assert train_job._account(settings().cluster) is None
    assert cluster.made == []
