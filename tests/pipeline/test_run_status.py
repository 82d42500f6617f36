"""`ngrpo status`, `submit` with and without `--wait`, and `cancel`: the state of a run, and why a stage failed or waits."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from golden_ir import IMAGES
from rich.console import Console

from ngrpo.config import load_config
from ngrpo.config.cluster import ClusterConfig
from ngrpo.report import phases
from ngrpo_kfp.components.launching.pending_pods import why_ended
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from ngrpo_kfp.pipelines.kubeflow.runs import following
from ngrpo_kfp.pipelines.kubeflow.runs.workflows import why_failed
from ngrpo_kfp.pipelines.kubeflow.unpullable_images import unpullable

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

STORE = ClusterConfig().store
KUEUE = "/apis/kueue.x-k8s.io/v1beta2/namespaces/kubeflow"
QUEUE = "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/kubeflow/localqueues/ngrpo/pendingworkloads"
TRAIN_JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
NO_ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def container(name="main", **state) -> dict:
    return {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


KILLED = {"phase": "Failed", "containerStatuses": [container(terminated={"exitCode": 137, "reason": "OOMKilled"})]}


def waiting(reason: str, message: str | None = None) -> dict:
    return container(waiting={"reason": reason} | ({"message": message} if message else {}))


def unscheduled(reason: str, message: str) -> dict:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def unpulled(minutes: float) -> dict:
    """A pod that got its node some minutes ago and cannot pull its image."""
    placed = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": placed}],
        "containerStatuses": [waiting("ImagePullBackOff", 'Back-off pulling image "r/ngrpo-cpu"')],
    }


def rows(told: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in cells}


def pod(kubeflow, stage, status=None, log=""):
    """Let the newest run have a pod; returns its number."""
    kubeflow.pods.append((kubeflow.run().run_id, stage, log))
    number = len(kubeflow.pods) - 1
    if status is not None:
        kubeflow.pod_statuses[number] = status
    return number


SEVERAL_NODES = (
    "cluster.nodes=2",
    "resources.ngrpo_training.gpus=1",
    "resources.ngrpo_training.memory_gib=32",
    "training.micro_batch_size=1",
)


@cache
def pipeline(*overrides: str) -> str:
    """The pipeline of preset `tiny`, compiled once for all tests."""
    return compile_whole(load_config(PRESETS / "tiny.toml", overrides), IMAGES)


@pytest.fixture
def run(kubeflow, objects):
    """A run that has been submitted."""
    return kubeflow.submit(pipeline().replace(STORE, objects.uri))


@pytest.fixture
def run_of_nodes(kubeflow, objects):
    """A run that trains on two nodes."""
    return kubeflow.submit(pipeline(*SEVERAL_NODES).replace(STORE, objects.uri))


# --- states -------------------------------------------------------------------------------------------------------------


def test_every_stage_of_the_newest_run_is_shown(kubeflow, ngrpo, finish):
    assert "there is no run yet" in ngrpo("status", code=2)
    assert kubeflow.experiments == {}, "to look makes nothing"
    ngrpo("submit")
    finish()
    ngrpo("submit", "--set", "training.learning_rate=1e-4")
    run = kubeflow.run()
    kubeflow.detail(run, "ngrpo-training", "RUNNING")
    told = ngrpo("status")
    assert run.run_id in told
    assert {stage: row[0] for stage, row in rows(told).items()} == {
        "prepare_data": "cached",
        "neighbor_index": "cached",
        "sft_warm_start": "cached",
        "ngrpo_training": "running",
        "benchmark_evaluation": "waiting",
        "model_promotion": "waiting",
    }
    first = next(iter(kubeflow.runs))
    assert rows(ngrpo("status", first))["prepare_data"][0] == "succeeded"
    assert "weights  " not in told
    for_programs = json.loads(ngrpo("status", "--json"))
    assert (for_programs["run_id"], for_programs["over"]) == (run.run_id, False)
    assert {each["stage"]: each["state"] for each in for_programs["stages"]} == {
        stage: row[0] for stage, row in rows(told).items()
    }


def test_where_the_weights_are_is_said_once_they_are_there(kubeflow, ngrpo, run, objects):
    kubeflow.detail(run, "ngrpo-training", "SUCCEEDED")
    (line,) = [line for line in ngrpo("status").splitlines() if line.startswith("weights  ")]
    assert re.fullmatch(rf"weights  {objects.uri}/ngrpo_training/[0-9a-f]{{32}}/model/", line)


def test_where_the_weights_are_is_said_where_the_training_was_cached(kubeflow, ngrpo, finish, objects):
    ngrpo("submit")
    finish()
    trained = re.findall(r"weights  (.*)", ngrpo("status"))
    for changed in ("evaluation.samples=32", "promotion.min_gain=3"):
        ngrpo("submit", "--set", changed)
        told = ngrpo("status")
        assert rows(told)["ngrpo_training"][0] == "cached"
        assert re.findall(r"weights  (.*)", told) == trained
    assert trained[0].startswith(f"{objects.uri}/ngrpo_training/")


def test_a_run_that_was_cancelled_says_so_of_itself_and_of_its_stages(kubeflow, ngrpo, run, objects):
    kubeflow.detail(run, "prepare-data", "SUCCEEDED")
    kubeflow.detail(run, "sft-warm-start", "RUNNING")
    kubeflow.keep_try(objects, run, "sft_warm_start", "running")
    ngrpo("cancel", run.run_id)
    assert ": being cancelled" in ngrpo("status")
    kubeflow.end_cancelled(run)
    assert run.state == "FAILED"
    told = ngrpo("status")
    assert f"{run.display_name}: cancelled" in told
    assert {stage: row[0] for stage, row in rows(told).items()} == {
        "prepare_data": "succeeded",
        "neighbor_index": "not run",
        "sft_warm_start": "cancelled",
        "ngrpo_training": "not run",
        "benchmark_evaluation": "not run",
        "model_promotion": "not run",
    }
    run.state_history = None  # nobody looked while it was being cancelled: the Workflow still tells
    assert f"{run.display_name}: cancelled" in ngrpo("status")


def test_what_never_ran_in_a_run_that_failed_is_said(kubeflow, ngrpo, run):
    kubeflow.detail(run, "prepare-data", "FAILED", "main: Error (exit code 1)")
    kubeflow.detail(run, "sft-warm-start", None)
    run.state = "FAILED"
    told = rows(ngrpo("status"))
    assert told["prepare_data"][0] == "failed"
    assert (told["sft_warm_start"][0], told["model_promotion"][0]) == ("not run", "not run")


def test_of_a_pipeline_that_argo_has_repeated_the_last_tasks_count(kubeflow, ngrpo, run):
    kubeflow.detail(run, "prepare-data", "FAILED")
    (first,) = kubeflow.details(run)
    run.created_at += timedelta(hours=1)
    kubeflow.detail(run, "prepare-data", "SUCCEEDED")
    kubeflow.details(run).append(first)
    assert rows(ngrpo("status"))["prepare_data"][0] == "succeeded"


# --- why a stage failed -------------------------------------------------------------------------------------------------


def test_a_failed_stage_says_why_in_its_own_words_and_how_often_it_was_tried(kubeflow, ngrpo, run, objects):
    kubeflow.keep_try(objects, run, "prepare_data", "failed", error="data.train: no such file", number=1)
    kubeflow.keep_try(objects, run, "prepare_data", "failed", error="data.train: [bold]\x1b[31m no records", number=2)
    other = kubeflow.parameter(run, "prepare-data", "key")
    objects.put_bytes(
        objects.get_bytes(objects.list(f"tries/prepare_data/{other}/")[0]).replace(run.run_id.encode(), b"another"),
        f"tries/prepare_data/{other}/99999999T000000000000Z-pod-9.json",
    )
    kubeflow.detail(run, "prepare-data", "FAILED", "main: Error (exit code 1)")
    run.state = "FAILED"
    told = ngrpo("status")
    assert rows(told)["prepare_data"] == ["failed", "0:01:30", "2 of 3", r"data.train: [bold]\x1b[31m no records"]
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("status", "message", "named"),
    [
        (KILLED, None, r"OOMKilled \(exit code 137\)"),
        ({"phase": "Failed", "reason": "Evicted", "message": "The node was low on\nmemory."}, None, "Evicted: The node was low on memory"),
        (None, "main: Error (exit code 1)", r"main: Error \(exit code 1\)"),
        (None, None, "no reason is known: `ngrpo logs prepare_data"),
    ],
)  # fmt: skip
def test_a_stage_that_died_without_a_word_has_a_reason(kubeflow, ngrpo, run, status, message, named):
    kubeflow.detail(run, "prepare-data", "FAILED", message)
    if status is not None:
        pod(kubeflow, "prepare_data", status)
    run.state = "FAILED"
    assert re.search(named, rows(ngrpo("status"))["prepare_data"][3])


def test_a_store_that_is_out_of_reach_costs_one_line(kubeflow, ngrpo, run, monkeypatch):
    kubeflow.detail(run, "prepare-data", "FAILED", "main: Error (exit code 1)")
    run.state = "FAILED"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    told = ngrpo("status")
    assert rows(told)["prepare_data"][3] == "main: Error (exit code 1)"
    (line,) = [line for line in told.splitlines() if line.startswith("the records of stages are not known: ")]
    assert "cannot be reached" in line


def test_a_driver_that_kubernetes_refuses_is_the_reason_of_the_run(kubeflow, ngrpo, run):
    refusal = 'pods "ngrpo-44gvd-system-dag-driver-1" is forbidden: error looking up service account kubeflow/gone'
    kubeflow.node(run, "root-driver(0)", refusal, phase="Error")
    kubeflow.node(run, "root(0)", "child 'ngrpo-44gvd-123' errored", kind="Retry")
    run.state = "FAILED"
    assert f"why  {refusal}" in ngrpo("status")
    kubeflow.fail("GET", "/apis/v1beta1/", 404)
    told = ngrpo("status")
    assert "why  no reason is known" in told
    assert "the messages of Argo are not known: " in told


def test_the_node_of_a_stage_is_its_driver_or_its_pod_and_not_what_holds_them():
    names = ("r.root(0).train(0).executor(0)", "r.root(0).train-driver(0)", "r.root(0).training(0)")
    nodes = [
        {"name": name, "phase": "Failed", "type": "Pod", "message": name, "finishedAt": str(number)}
        for number, name in enumerate(names)
    ]
    retry = {
        "name": "r.root(0).train",
        "phase": "Failed",
        "type": "Retry",
        "message": "No more retries left",
        "finishedAt": "9",
    }
    workflow = {"status": {"nodes": dict(enumerate([*nodes, retry]))}}
    assert why_failed(workflow, "train") == names[1]
    assert why_failed(workflow, "index") is None
    assert why_failed({}, "train") is None


def test_a_pod_that_ended_well_has_no_reason(kubeflow, run):
    pod(kubeflow, "prepare_data", {"phase": "Succeeded"})
    (found,) = Kubernetes().pods(run.run_id)
    assert why_ended(found) is None


# --- what a stage waits for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (unscheduled("Unschedulable", NO_ROOM), "Unschedulable: 0/3 nodes .*: 3 Insufficient nvidia.com/gpu.; free or add nodes"),
        (unpulled(1), "ImagePullBackOff: Back-off pulling image .*; correct the image's address in images.lock"),
        ({"phase": "Pending", "containerStatuses": [waiting("InvalidImageName")]}, "InvalidImageName: no message; correct"),
        ({"phase": "Pending"}, "its pod is being started"),
    ],
)  # fmt: skip
def test_a_pod_that_waits_says_for_what(kubeflow, ngrpo, run, status, named):
    kubeflow.detail(run, "prepare-data", "RUNNING")
    pod(kubeflow, "prepare_data", status)
    row = rows(re.sub(r"\s+│\n│[ │]+│ ", " ", ngrpo("status")))["prepare_data"]
    assert row[0] == "waiting"
    assert re.search(named, row[3]), row


def test_a_pod_in_a_queue_says_what_kueue_says_and_its_place(kubeflow, ngrpo, run):
    kubeflow.detail(run, "prepare-data", "RUNNING")
    number = pod(kubeflow, "prepare_data", unscheduled("SchedulingGated", "blocked due to non-empty scheduling gates"))
    assert "SchedulingGated: blocked" in ngrpo("status"), "Kueue has made no workload yet"
    message = (
        "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor any-node, 1 more needed"
    )
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    workload = {
        "metadata": {"name": "pod-x", "ownerReferences": [{"kind": "Pod", "uid": f"uid-{number}"}]},
        "spec": {"queueName": "ngrpo"},
        "status": {"conditions": [condition]},
    }
    kubeflow.objects[f"{KUEUE}/workloads"] = {"items": [workload]}
    assert "waits in queue ngrpo: couldn't assign flavors" in ngrpo("status")
    kubeflow.objects[QUEUE] = {"items": [{"metadata": {"name": "pod-x"}, "positionInClusterQueue": 2}]}
    assert "waits in queue ngrpo, place 3 of its cluster queue: couldn't" in ngrpo("status")
    kubeflow.fail("GET", "/apis/visibility", 403)
    assert "waits in queue ngrpo: couldn't assign flavors" in ngrpo("status")


def test_a_training_on_several_nodes_waits_for_its_job(kubeflow, ngrpo, run_of_nodes):
    run = run_of_nodes
    kubeflow.detail(run, "ngrpo-training", "RUNNING")
    pod(kubeflow, "ngrpo_training", {"phase": "Running"})
    key = kubeflow.parameter(run, "ngrpo-training", "key")
    kubeflow.objects[f"{TRAIN_JOBS}/ngrpo-{key}"] = {"metadata": {"uid": "job"}}
    assert rows(ngrpo("status"))["ngrpo_training"][0] == "running"
    condition = {"type": "QuotaReserved", "status": "False", "message": "no GPUs"}
    workload = {
        "metadata": {"name": "trainjob-x", "ownerReferences": [{"kind": "TrainJob", "uid": "job"}]},
        "spec": {"queueName": "ngrpo"},
        "status": {"conditions": [condition]},
    }
    kubeflow.objects[f"{KUEUE}/workloads"] = {"items": [workload]}
    assert rows(ngrpo("status"))["ngrpo_training"][::3] == ["waiting", "waits in queue ngrpo: no GPUs"]
    condition["status"] = "True"
    number = pod(kubeflow, "ngrpo_training", unpulled(11))
    kubeflow.pod_labels[number] = {"jobset.sigs.k8s.io/jobset-name": f"ngrpo-{key}"}
    told = ngrpo("status")
    assert rows(told)["ngrpo_training"][3].startswith("ImagePullBackOff: ")
    assert "stuck  the image of ngrpo_training could not be pulled for 10 minutes" in told


def test_between_two_tries_and_two_pods_the_reason_of_the_last_is_shown(kubeflow, ngrpo, run, objects):
    kubeflow.detail(run, "prepare-data", "RUNNING")
    number = pod(kubeflow, "prepare_data", {"phase": "Running"})
    kubeflow.keep_try(objects, run, "prepare_data", "failed", error="the hub answers 503", number=1)
    assert rows(ngrpo("status"))["prepare_data"][::3] == ["running", "try 1 failed: the hub answers 503"]
    kubeflow.pod_statuses[number] = {"phase": "Failed", "reason": "Preempting", "message": "by another pod"}
    row = rows(ngrpo("status"))["prepare_data"]
    assert row[::3] == ["waiting", "its pod is gone (Preempting: by another pod); another one follows"]


def test_who_may_not_look_at_pods_is_told_so_once(kubeflow, ngrpo, run):
    for stage in ("prepare-data", "neighbor-index"):
        kubeflow.detail(run, stage, "RUNNING")
    kubeflow.fail("GET", "/pods", 403)
    told = ngrpo("status")
    assert rows(told)["prepare_data"][0] == "running"
    assert told.count("pods are not looked at: Kubernetes refuses (403") == 1
    (Path.home() / ".kube" / "config").unlink()
    assert ngrpo("status").count("pods are not looked at: there is no way to Kubernetes") == 1


def test_the_mlflow_run_is_shown_once_a_stage_has_opened_it(kubeflow, ngrpo, run, objects, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert "mlflow  http://mlflow.example:5000/#/experiments\n" in ngrpo("status")
    objects.put_bytes(b"0123abcd", f"mlflow_runs/{run.run_id}")
    assert "mlflow  http://mlflow.example:5000/#/runs/0123abcd\n" in ngrpo("status")


# --- an image that cannot be pulled, and runs that are followed -----------------------------------------------------------


def test_an_image_counts_as_lost_after_ten_minutes_on_a_node(kubeflow, run):
    number = pod(kubeflow, "prepare_data", unpulled(9))
    assert unpullable(run.run_id) is None
    kubeflow.pod_statuses[number] = unpulled(11)
    assert "the image of prepare_data could not be pulled for 10 minutes: ImagePullBackOff" in unpullable(run.run_id)
    kubeflow.pod_statuses[number] = unpulled(11) | {"containerStatuses": [waiting("ContainerCreating")]}
    assert unpullable(run.run_id) is None


def test_a_run_that_is_waited_for_ends_with_it(kubeflow, ngrpo, finish, monkeypatch):
    looks = []

    def pause(seconds):
        looks.append(seconds)
        run = kubeflow.run()
        if len(looks) == 1:
            kubeflow.detail(run, "prepare-data", "RUNNING")
        elif len(looks) == 2:
            kubeflow.fail("GET", "/runs/", 400)
        else:
            finish()

    monkeypatch.setattr(following.time, "sleep", pause)
    shown = []
    monkeypatch.setattr(phases.Phase, "now", lambda self, what: shown.append(what))
    told = ngrpo("submit", "--wait")
    so_far = re.compile(r"following run \S+: 0 of \d stages have ended, prepare_data is running.*")
    assert any(map(so_far.fullmatch, shown)), shown
    said = [line.split("  ")[1:] for line in told.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert [rest for what, *rest in said if what == "prepare_data"] == [["waiting"], ["running"], ["succeeded"]]
    assert any(what == "no news" for what, *_ in said)
    assert f"run  {kubeflow.run().run_id} succeeded" in told


def test_a_run_that_is_waited_for_and_fails_says_why_and_ends_with_1(kubeflow, ngrpo, objects, monkeypatch):
    def pause(seconds):
        run = kubeflow.run()
        kubeflow.keep_try(objects, run, "prepare_data", "failed", error="data.train: no such file")
        kubeflow.detail(run, "prepare-data", "FAILED")
        run.state = "FAILED"

    monkeypatch.setattr(following.time, "sleep", pause)
    told = ngrpo("submit", "--wait", code=1)
    assert f"run {kubeflow.run().run_id} failed: prepare_data: data.train: no such file" in told


@pytest.mark.parametrize("waits", [["--wait"], []])
def test_a_run_whose_image_cannot_be_pulled_is_ended(kubeflow, ngrpo, monkeypatch, waits):
    def pause(seconds):
        kubeflow.detail(kubeflow.run(), "prepare-data", "RUNNING")
        pod(kubeflow, "prepare_data", unpulled(11))

    monkeypatch.setattr(following.time, "sleep", pause)
    told = ngrpo("submit", *waits, code=1, stay=True)
    assert "is ended: the image of prepare_data could not be pulled for 10 minutes" in told
    assert kubeflow.run().state == "CANCELING"


@pytest.fixture
def minutes(monkeypatch):
    """Let time go on in steps, at each of which something may happen: `minutes(step, *happenings)`; the last one again and again."""
    real, passed = time.monotonic, [0.0]
    monkeypatch.setattr(following.time, "monotonic", lambda: real() + passed[0])

    def go(step, *happenings):
        left = list(happenings)

        def pause(seconds):
            passed[0] += 60 * step
            (left.pop(0) if len(left) > 1 else left[0])()

        monkeypatch.setattr(following.time, "sleep", pause)
        return passed

    return go


def starting(kubeflow, status=None):
    """Let the first stage of the newest run have one pod, in a state."""

    def happen():
        kubeflow.detail(kubeflow.run(), "prepare-data", "RUNNING")
        if status is not None:
            kubeflow.pods[:] = []
            pod(kubeflow, "prepare_data", status)

    return happen


PULLING = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": datetime.now(UTC).isoformat()}],
    "containerStatuses": [waiting("ContainerCreating")],
}
GATED = unscheduled("SchedulingGated", "blocked due to non-empty scheduling gates")


def test_submit_stays_until_the_first_container_runs(kubeflow, ngrpo, minutes):
    states = (None, unscheduled("Unschedulable", NO_ROOM), PULLING, unpulled(9), {"phase": "Running"})
    passed = minutes(0.5, *(starting(kubeflow, state) for state in states))
    told = ngrpo("submit", stay=True)
    assert passed == [150.0], "it looked five times more"
    said = [line.split("  ", 2)[2] for line in told.splitlines() if re.match(r"\d\d:\d\d:\d\d  prepare_data  ", line)]
    assert [line.split(":")[0] for line in said] == ["waiting", "running", "waiting", "waiting", "waiting", "running"]
    assert f"run  {kubeflow.run().run_id} has started: `ngrpo status {kubeflow.run().run_id}`" in told
    assert kubeflow.run().state == "RUNNING"


def test_a_rerun_on_the_cluster_stays_too(kubeflow, ngrpo, minutes, finish):
    ngrpo("submit")
    finish()
    first = kubeflow.run().run_id

    def start():
        kubeflow.detail(kubeflow.run(), "prepare-data", "RUNNING")
        pod(kubeflow, "prepare_data")

    passed = minutes(1, start)
    told = ngrpo("rerun", "prepare_data", "--from", first, stay=True)
    assert passed == [60.0]
    assert f"run  {kubeflow.run().run_id} has started" in told
    assert "--no-wait are for a run on the cluster" in ngrpo("rerun", "prepare_data", "--no-wait", code=2)


@pytest.fixture
def stay(run, capsys):
    """Wait for the start of a run; returns whether it may still succeed, and what was said."""

    def wait():
        going = following.follow_start(run.run_id, Console(soft_wrap=True, width=200))
        printed = capsys.readouterr()
        return going, printed.out + printed.err

    return wait


@pytest.mark.parametrize("status", [GATED, unscheduled("Unschedulable", NO_ROOM)])
def test_a_run_that_waits_for_a_place_for_a_minute_is_left(kubeflow, run, stay, minutes, status):
    passed = minutes(0.4, starting(kubeflow, status))
    going, told = stay()
    assert going
    assert passed == [4 * 24.0], "seen without a node at 24 s, and a minute later"
    assert f"run  {run.run_id} waits for a place, and goes on by itself: `ngrpo status" in told
    assert status["conditions"][0]["reason"] in told
    assert run.state == "RUNNING"


def test_a_place_that_is_lost_again_is_waited_for_anew(kubeflow, stay, minutes):
    states = (GATED, PULLING, GATED, GATED, GATED)
    passed = minutes(0.5, *(starting(kubeflow, state) for state in states))
    assert stay()[0]
    assert passed == [150.0]


@pytest.mark.parametrize(("status", "missing"), [(None, "a pod"), (PULLING, "its first container")])
def test_no_start_is_waited_for_for_ever(kubeflow, run, stay, minutes, status, missing):
    passed = minutes(10, starting(kubeflow, status))
    going, told = stay()
    assert going
    assert passed == [1800.0 if status is None else 2400.0], "half an hour since it began, or since it got its node"
    assert f"run  {run.run_id} waits for {missing}, and goes on by itself: `ngrpo status" in told


def test_a_run_that_fails_before_it_starts_says_why(kubeflow, run, stay, minutes):
    def fail():
        kubeflow.node(run, "root-driver(0)", "pods are forbidden", phase="Error")
        run.state = "FAILED"

    minutes(1, fail)
    going, told = stay()
    assert not going
    assert f"run {run.run_id} failed: pods are forbidden" in told


def test_who_may_not_look_at_pods_does_not_wait_for_a_start(kubeflow, run, stay, monkeypatch):
    monkeypatch.setattr(following.time, "sleep", lambda seconds: pytest.fail("it stays"))
    kubeflow.fail("GET", "/pods", 403)
    assert stay()[0]


def test_without_a_way_to_kubernetes_submit_says_so_and_returns(kubeflow, ngrpo, monkeypatch):
    monkeypatch.setattr(following.time, "sleep", lambda seconds: pytest.fail("it stays"))
    (Path.home() / ".kube" / "config").unlink()
    (line,) = [line for line in ngrpo("submit", stay=True).splitlines() if "is not followed" in line]
    run = kubeflow.run().run_id
    assert line.startswith(
        f"run  {run} is not followed, because its pods cannot be read: there is no way to Kubernetes"
    )
    assert f"`ngrpo status {run}`" in line


def test_ctrl_c_leaves_the_run_going(run, stay, monkeypatch, capsys):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        stay()
    assert f"run  {run.run_id} goes on: `ngrpo status {run.run_id}`" in capsys.readouterr().out
    assert run.state == "RUNNING"


def test_status_says_that_a_run_is_stuck(kubeflow, ngrpo, run):
    kubeflow.detail(run, "prepare-data", "RUNNING")
    pod(kubeflow, "prepare_data", unpulled(11))
    told = ngrpo("status")
    assert "stuck  the image of prepare_data could not be pulled for 10 minutes" in told
    assert f"`ngrpo cancel {run.run_id}` ends the run" in told


# --- cancel -------------------------------------------------------------------------------------------------------------


def test_cancel_ends_a_run_once(kubeflow, ngrpo, run):
    assert f"run  {run.run_id} is being cancelled" in ngrpo("cancel", run.run_id)
    assert run.state == "CANCELING"
    kubeflow.end_cancelled(run)
    assert "is over (FAILED)" in ngrpo("cancel", run.run_id, code=2)


def test_a_scheduled_run_names_the_run_of_the_day_and_is_cancelled_with_it(kubeflow, ngrpo, run, objects):
    parent = run
    parent.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"] = {
        "scheduled-run": parent.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"]["prepare-data"]
    }
    kubeflow.detail(parent, "scheduled-run", "RUNNING")
    child = kubeflow.submit(pipeline().replace(STORE, objects.uri))
    child.display_name = f"20261128-030000-tiny-of-{parent.run_id}"
    told = ngrpo("status", parent.run_id)
    assert list(rows(told)) == ["scheduled_run"]
    assert f"run of the day  {child.run_id}: `ngrpo status {child.run_id}`" in told
    told = ngrpo("cancel", parent.run_id)
    assert {line.split()[1] for line in told.splitlines() if "is being cancelled" in line} == {
        parent.run_id,
        child.run_id,
    }
    assert (parent.state, child.state) == ("CANCELING", "CANCELING")


@pytest.mark.parametrize(
    ("there", "owner", "named", "deleted"),
    [
        (True, "mine", "is deleted", True),
        (True, None, "is deleted", True),
        (True, "another", "belongs to run another and goes on", False),
        (False, None, "is not there", False),
    ],
)
def test_cancel_deletes_the_job_of_the_run(kubeflow, ngrpo, run_of_nodes, there, owner, named, deleted):
    run = run_of_nodes
    job = f"{TRAIN_JOBS}/ngrpo-{kubeflow.parameter(run, 'ngrpo-training', 'key')}"
    if there:
        owners = [{"kind": "Workflow", "name": "w", "uid": "1"}] if owner else []
        kubeflow.objects[job] = {"metadata": {"uid": "job", "ownerReferences": owners}}
        label = run.run_id if owner == "mine" else owner
        kubeflow.objects[f"{WORKFLOWS}/w"] = {"metadata": {"labels": {"pipeline/runid": label}}}
    assert f"{job.rpartition('/')[2]} {named}" in ngrpo("cancel", run.run_id)
    assert (job in kubeflow.deleted) == deleted


def test_a_job_that_cannot_be_deleted_is_named_with_the_cure(kubeflow, ngrpo, run_of_nodes):
    kubeflow.fail("GET", "/trainjobs/", 403)
    told = ngrpo("cancel", kubeflow.run().run_id)
    assert "delete trainjob ngrpo-" in told
    assert kubeflow.run().state == "CANCELING"
