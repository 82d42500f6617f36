"""`ngrpo logs`: the output of a stage in every try, while its pods exist and after they are gone."""

import time
from functools import cache
from pathlib import Path

import pytest
from golden_ir import IMAGES

from ngrpo.config import load_config
from ngrpo.config.cluster import ClusterConfig
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole
from ngrpo_kfp.pipelines.kubeflow.runs import logs as run_logs

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

POD_LOG = """\
time="2026-11-28T15:58:01.123Z" level=info msg="capturing logs" argo=true
I1128 15:58:02.000 1 launcher_v2.go:123] executor input
ngrpo: prepare_data: try 1 of 3 begins
reading the first time
ngrpo: prepare_data: try 1 of 3 failed: the hub answers 503; the next try begins in 60 s
ngrpo: prepare_data: try 2 of 3 begins
reading again [/]
"""


@cache
def pipeline() -> str:
    """The pipeline of preset `tiny`, compiled once for all tests."""
    return compile_whole(load_config(PRESETS / "tiny.toml"), IMAGES)


@pytest.fixture
def run(kubeflow, objects):
    """A run that has been submitted."""
    return kubeflow.submit(pipeline().replace(ClusterConfig().store, objects.uri))


def test_a_stage_without_a_pod_has_printed_nothing(kubeflow, ngrpo, run):
    error = ngrpo("logs", "prepare_data", code=2)
    assert "no pod of prepare_data in namespace kubeflow: it has not started" in error


def test_a_pod_that_kept_no_try_shows_its_own_lines_and_raw_all_of_them(kubeflow, ngrpo, run):
    kubeflow.pods.append((run.run_id, "prepare_data", POD_LOG))
    assert ngrpo("logs", "prepare_data") == "--- pod pod-0: running\nreading the first time\nreading again [/]\n"
    assert ngrpo("logs", "prepare_data", run.run_id, "--raw") == f"--- pod pod-0: running\n{POD_LOG}"
    kubeflow.pods.append((run.run_id, "prepare_data", "no stage began\n"))
    assert ngrpo("logs", "prepare_data").endswith("--- pod pod-1: running\nno stage began\n")


def test_every_try_is_printed_and_the_one_that_runs_is_read_from_its_pod(kubeflow, ngrpo, run, objects):
    kubeflow.pods.append((run.run_id, "prepare_data", POD_LOG))
    lost = kubeflow.keep_try(objects, run, "prepare_data", "running", log="before the node was lost\n", pod="pod-9")
    kubeflow.keep_try(
        objects, run, "prepare_data", "failed", error="the hub answers 503", log="reading the first time\n", number=1
    )
    kubeflow.keep_try(objects, run, "prepare_data", "running", log="read\n", number=2)
    expected = (
        f"--- try 1 of 3, pod {lost.pod}: lost after 12 s\nbefore the node was lost\n"
        "--- try 1 of 3, pod pod-0: failed after 12 s: the hub answers 503\nreading the first time\n"
        "--- try 2 of 3, pod pod-0: running after 12 s\nreading again [/]\n"
    )
    assert ngrpo("logs", "prepare_data") == expected
    kubeflow.pods.clear()
    assert ngrpo("logs", "prepare_data") == expected.replace("reading again [/]", "read")
    (Path.home() / ".kube" / "config").unlink()
    assert ngrpo("logs", "prepare_data") == expected.replace("reading again [/]", "read")
    assert "there is no way to Kubernetes" in ngrpo("logs", "prepare_data", "--raw", code=2)


def test_without_the_store_the_pods_are_read(kubeflow, ngrpo, run, objects, monkeypatch):
    kubeflow.keep_try(objects, run, "prepare_data", "running", log="kept\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "the logs of prepare_data cannot be read: object store " in ngrpo("logs", "prepare_data", code=2)
    kubeflow.pods.append((run.run_id, "prepare_data", POD_LOG))
    told = ngrpo("logs", "prepare_data")
    assert told.startswith("--- stored logs of earlier tries cannot be read: object store ")
    assert "reading again [/]" in told


def test_who_may_not_look_at_pods_is_told_so(kubeflow, ngrpo, run):
    kubeflow.fail("GET", "/pods", 403)
    assert "Kubernetes refuses (403" in ngrpo("logs", "prepare_data", code=2)


def test_a_pod_that_has_not_started_says_why(kubeflow, ngrpo, run):
    kubeflow.pods.append((run.run_id, "prepare_data", ""))
    missing = {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}
    container = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    kubeflow.pod_status = {"phase": "Pending", "containerStatuses": [container | {"state": {"waiting": missing}}]}
    error = ngrpo("logs", "prepare_data", code=2)
    assert 'the pod of prepare_data has not started: CreateContainerConfigError: secret "hub" not found; once' in error


def test_what_a_terminal_would_obey_is_spelled_out(kubeflow, ngrpo, run):
    log = "ngrpo: prepare_data: try 1 of 1 begins\n\x1b]0;owned\x07\x1b[2J\ttext\n 10%|#  |\r100%|###|\n\u202eevil\n"
    kubeflow.pods.append((run.run_id, "prepare_data", log))
    for flags in ([], ["--raw"]):
        told = ngrpo("logs", "prepare_data", *flags)
        assert told.endswith("\\x1b]0;owned\\x07\\x1b[2J\ttext\n100%|###|\n\\u202eevil\n")


def test_a_stage_is_followed_from_pod_to_pod_to_its_end(kubeflow, ngrpo, run, objects, monkeypatch):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 1:
            kubeflow.pods.append((run.run_id, "prepare_data", ""))
            kubeflow.pod_statuses[0] = {"phase": "Pending"}
        elif len(pauses) == 2:
            kubeflow.pods[0] = (run.run_id, "prepare_data", POD_LOG)
            kubeflow.pod_statuses[0] = {"phase": "Failed"}
        elif len(pauses) == 3:
            kubeflow.pods.append((run.run_id, "prepare_data", "of the second pod\n"))
        else:  # Kubeflow hears of it after the pod has ended
            kubeflow.detail(run, "prepare-data", "SUCCEEDED")

    monkeypatch.setattr(run_logs.time, "sleep", pause)
    kubeflow.keep_try(objects, run, "prepare_data", "failed", log="of a pod that is gone\n", pod="pod-9")
    assert ngrpo("logs", "-f", "prepare_data") == (
        "--- try 1 of 3, pod pod-9: failed after 12 s\nof a pod that is gone\n"
        "--- pod pod-0 waits: it is being started\n"
        "--- pod pod-0\nreading the first time\nreading again [/]\n"
        "--- pod pod-1\nof the second pod\n"
    )
    assert len(pauses) == 4


def test_nothing_is_followed_in_a_run_that_is_over(kubeflow, ngrpo, run):
    run.state = "FAILED"
    began = time.monotonic()
    assert "no pod of prepare_data" in ngrpo("logs", "--follow", "prepare_data", code=2)
    assert time.monotonic() - began < run_logs._PAUSE_SECONDS


def test_the_task_of_a_scheduled_run_has_a_log_and_leads_to_the_run_of_the_day(kubeflow, ngrpo, run, objects):
    tasks = run.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"]
    run.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"] = {"scheduled-run": tasks["model-promotion"]}
    kubeflow.pods.append((run.run_id, "scheduled_run", "planning\n"))
    assert "planning" in ngrpo("logs", "scheduled_run")
    kubeflow.keep_try(objects, run, "scheduled_run", "failed", log="kept\n", pod="gone")
    assert "kept" in ngrpo("logs", "scheduled_run")
    child = kubeflow.submit(pipeline().replace(ClusterConfig().store, objects.uri))
    child.display_name = f"20261128-030000-tiny-of-{run.run_id}"
    error = ngrpo("logs", "prepare_data", run.run_id, code=2)
    assert f"of its run of the day: `ngrpo logs prepare_data {child.run_id}`" in error


def test_a_cached_stage_has_no_log_in_this_run(kubeflow, ngrpo, run):
    del run.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"]["prepare-data"]
    assert f"run {run.run_id} has no task prepare_data: it was cached" in ngrpo("logs", "prepare_data", code=2)


def test_the_lines_of_the_last_try_are_those_after_its_last_beginning():
    lines = ["begin", "a", "begin", "b", "c"]
    assert list(run_logs._since("begin", lines)) == ["begin", "b", "c"]
    assert list(run_logs._since("other", lines)) == []
