"""Runs on one machine: real kfp.local, object store and MLflow; small stages."""

import contextlib
import json
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from small_house import CACHEABLE, STAGES

from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve
from ngrpo_kfp.pipelines.local.runner import first_failure

pytestmark = pytest.mark.pipeline

SLEEPER = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "300"])
(work / "pids").write_text(f"{os.getpid()} {child.pid}")
print("asleep", flush=True)
time.sleep(300)
"""
RESUMER = """
if (work / "checkpoint").exists():
    assert not (output / "half").exists()
    (output / "resumed").write_text("yes")
else:
    (work / "checkpoint").write_text("step 1")
    (output / "half").write_text("written")
    print("step 1/2", flush=True)
    os.kill(os.getpid(), 9)
"""


CROWNING = """
from ngrpo.storage.digest import file_sha256, model_digest
from ngrpo.storage.manifest import FileEntry, Manifest
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
model = work / "model"
model.mkdir()
(model / "model.safetensors").write_text("weights")
files = {"model/model.safetensors": FileEntry(file_sha256(model / "model.safetensors"), 7)}
(work / "manifest.json").write_bytes(Manifest("ngrpo_training", "k", "c", "v", {}, files).to_bytes())
registry = ModelRegistry(config.promotion.model_name)
version = registry.register(model, work / "manifest.json", digest=model_digest(model), tags={})
registry.set_alias(CHAMPION, str(version.version))
"""


def cached(house):
    return [name for name, stage in house.summary["stages"].items() if stage["cached"]]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def sleeping_run(house):
    """Start a run whose training sleeps; return the run and the processes of the stage."""
    house.write_stage("ngrpo_training", SLEEPER)
    run = house.start("run")
    pids = []

    def asleep():
        assert run.poll() is None, run.communicate()
        pids[:] = [int(pid) for file in house.home.glob("work/*/*/work/pids") for pid in file.read_text().split()]
        return len(pids) == 2

    wait_for(asleep, seconds=120)
    assert all(is_alive(pid) for pid in pids)
    return run, pids


def processes_of(house):
    """Yield the processes whose environment names the workspace."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(house.home).encode() in (process / "environ").read_bytes() and is_alive(process.name):
                yield process.name
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue


@contextlib.contextmanager
def objects_of(house):
    """Open the house's artifact store while nobody else has it."""
    with serve(house.home / "store") as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in endpoint.environment().items():
            patch.setenv(name, value)
        yield ObjectStore("s3://ngrpo/artifacts")


def mlflow_states(house):
    """Return how many runs are in each state."""
    with contextlib.closing(sqlite3.connect(house.home / "mlflow.db")) as database:
        return dict(database.execute("SELECT status, count(*) FROM runs GROUP BY status"))


def test_a_second_run_is_served_from_the_cache(house):
    first = house.summary
    assert cached(house) == []
    house.ngrpo("run")
    assert house.ran() == ["model_promotion"]
    assert cached(house) == list(CACHEABLE)
    second = house.summary
    for name in CACHEABLE:
        assert second["stages"][name]["artifact"] == first["stages"][name]["artifact"]
    # A promotion acts on the current registry, so it is decided again, under a key of its own.
    assert second["stages"]["model_promotion"]["key"] != first["stages"]["model_promotion"]["key"]


def test_summary_says_what_others_rely_on(finished_house):
    summary = finished_house.summary
    assert set(summary) == {"preset", "seed", "wall_seconds", "stages", "evaluation", "promotion", "mlflow", "costs"}
    assert (summary["preset"], summary["seed"]) == ("small", 0)
    assert list(summary["stages"]) == list(STAGES)
    for stage in summary["stages"].values():
        assert set(stage) == {"seconds", "peak_memory_bytes", "cached", "key", "artifact"}
        assert 20e6 < stage["peak_memory_bytes"] < 3e9
        assert stage["artifact"].startswith("s3://ngrpo/artifacts/")
    assert set(summary["evaluation"]) == {"warm_start", "trained"}
    assert set(summary["evaluation"]["trained"]) == {
        "mean",
        "mean_ci",
        "pass_at_k",
        "best_at_k",
        "n_problems",
        "n_samples",
    }
    assert summary["promotion"] == {"decision": "promoted", "model": "ngrpo", "version": 1, "alias": "champion"}
    assert set(summary["mlflow"]) == {"tracking_uri", "run_id"}
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    tags = client.get_run(summary["mlflow"]["run_id"]).data.tags
    assert tags["ngrpo.weights"] == f"{summary['stages']['ngrpo_training']['artifact']}model/"
    assert 0 < sum(stage["seconds"] for stage in summary["stages"].values()) <= summary["wall_seconds"]


def test_a_changed_setting_reruns_the_stages_that_read_it_and_what_depends_on_them(house):
    plan = house.ngrpo("plan", "--set", "training.steps=40", COLUMNS="200").stdout
    assert "configuration changed: training.steps 30 → 40" in plan
    assert "input trained changed" in plan
    house.ngrpo("run", "--set", "training.steps=40")
    assert house.ran() == ["ngrpo_training", "benchmark_evaluation", "model_promotion"]
    assert [name for name, stage in house.summary["stages"].items() if stage["cached"]] == list(STAGES[:3])
    assert house.ngrpo("plan").stdout.count("│ cached │") == len(CACHEABLE), "the former results are still there"


def test_a_changed_line_of_code_reruns_the_stages_that_reach_it(house):
    for file in ("config/sections.py", "errors.py", "stages/execution.py", "stages/benchmark_evaluation.py"):
        with (house.root / "ngrpo" / file).open("a") as source:
            source.write("# another line\n")
    plan = house.ngrpo("plan", COLUMNS="200").stdout
    assert "code changed: ngrpo/stages/benchmark_evaluation.py" in plan
    house.ngrpo("run")
    assert house.ran() == ["benchmark_evaluation", "model_promotion"]


def test_an_artifact_that_was_deleted_or_damaged_is_made_again_and_no_other(house):
    stages = house.summary["stages"]
    with objects_of(house) as objects:
        for key in objects.list(f"neighbor_index/{stages['neighbor_index']['key']}/"):
            objects.delete(key)
        damaged = f"ngrpo_training/{stages['ngrpo_training']['key']}/payload.txt"
        objects.put_bytes(b"Ngrpo_training", damaged)
    plan = house.ngrpo("plan", COLUMNS="200").stdout
    assert "its artifact is gone from the store" in plan
    assert "artifact damaged: payload.txt: its content was changed" in plan
    house.ngrpo("run")
    assert house.ran() == ["neighbor_index", "ngrpo_training", "model_promotion"]
    with objects_of(house) as objects:
        assert objects.get_bytes(damaged) == b"ngrpo_training"
    assert house.summary["stages"]["ngrpo_training"]["key"] == stages["ngrpo_training"]["key"]


def test_rerun_makes_a_result_again_and_later_runs_find_the_new_one(house):
    before = house.summary["stages"]
    house.ngrpo("rerun", "benchmark_evaluation")
    assert house.ran() == ["benchmark_evaluation", "model_promotion"]
    again = house.summary["stages"]
    assert again["benchmark_evaluation"]["key"] != before["benchmark_evaluation"]["key"]
    assert again["ngrpo_training"]["key"] == before["ngrpo_training"]["key"]
    plan = house.ngrpo("plan").stdout
    assert f"{again['benchmark_evaluation']['key'][:12]} │ cached" in plan


def test_a_failure_is_one_line_with_the_log_and_leaves_no_result(house):
    finished = house.summary
    house.write_stage("ngrpo_training", "from ngrpo.errors import DataError\nraise DataError('no problems: name more')")
    failed = house.ngrpo("run", code=2)
    log = house.last_run / "logs" / "ngrpo_training.log"
    assert failed.stderr.splitlines() == [f"ngrpo: ngrpo_training: no problems: name more (log: {log})"]
    house.write_stage("ngrpo_training", "print('so far so good')\nraise ZeroDivisionError('by zero')")
    failed = house.ngrpo("run", code=2)
    log = house.last_run / "logs" / "ngrpo_training.log"
    assert failed.stderr.splitlines() == [f"ngrpo: ngrpo_training: ZeroDivisionError: by zero (log: {log})"]
    assert "so far so good" in log.read_text()
    assert "Traceback" in log.read_text()
    assert house.summary == finished, "latest is the last run that finished"
    assert "did not finish last time" in house.ngrpo("plan", COLUMNS="200").stdout
    assert mlflow_states(house) == {"FINISHED": 7, "FAILED": 4}, "a run and six stages, and two runs with a stage each"


@pytest.mark.parametrize(
    ("records", "culprit"),
    [
        ({"prepare_data": None, "neighbor_index": {"error": "no"}}, "neighbor_index"),
        (
            {"prepare_data": {"artifact": "s3://"}, "neighbor_index": {"pid": 1}, "sft_warm_start": None},
            "neighbor_index",
        ),
        ({"prepare_data": {"artifact": "s3://", "error": "no MLflow"}, "neighbor_index": None}, "prepare_data"),
        ({"prepare_data": {"artifact": "s3://"}, "neighbor_index": None}, "neighbor_index"),
        ({"prepare_data": {"artifact": "s3://"}}, None),
    ],
)
def test_the_stage_to_blame_is_one_that_started(records, culprit):
    assert first_failure(records) == culprit


def test_a_full_disk_is_said_in_words(house):
    house.write_stage("benchmark_evaluation", "import errno\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")
    failed = house.ngrpo("run", code=2)
    assert (
        "benchmark_evaluation: a file, or the standard output, cannot be written: No space left on device: "
        in failed.stderr
    )
    assert " bytes free in " in failed.stderr
    assert "; make room, or use another place (" in failed.stderr


def test_a_killed_stage_resumes_from_its_work_but_not_from_its_output(house):
    house.write_stage("benchmark_evaluation", RESUMER)
    failed = house.ngrpo("run", code=2)
    assert "benchmark_evaluation: its process was killed" in failed.stderr
    assert "last words: step 1/2" in failed.stderr
    assert mlflow_states(house) == {"FINISHED": 7, "FAILED": 1, "KILLED": 1}
    house.ran()
    house.ngrpo("run")
    assert house.ran() == ["benchmark_evaluation", "model_promotion"]
    assert not list((house.home / "work").glob("*/*")), "work of finished stages is gone"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_run(house, number):
    run, pids = sleeping_run(house)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    wait_for(lambda: not any(is_alive(pid) for pid in pids), seconds=10)
    if number != signal.SIGKILL:
        assert run.returncode == 128 + number
        assert errors.splitlines() == ["ngrpo: stopped; the next run goes on from here"]
        assert mlflow_states(house) == {"FINISHED": 7, "KILLED": 2}
    wait_for(lambda: not list(processes_of(house)), seconds=30)
    if number == signal.SIGKILL:
        # The lock of the workspace went with the run; the next run ends what the killed one left open in MLflow.
        house.write_stage("ngrpo_training")
        house.ngrpo("run")
        assert mlflow_states(house)["KILLED"] == 2
        assert "RUNNING" not in mlflow_states(house)


def test_a_second_run_in_the_workspace_is_refused(house):
    run, _ = sleeping_run(house)
    try:
        refused = house.ngrpo("run", code=2)
        assert refused.stderr.splitlines() == [
            f"ngrpo: workspace {house.home} is in use by another run (process {run.pid}): wait for it to end, "
            "or set NGRPO_HOME to another directory"
        ]
        assert "to run" in house.ngrpo("plan").stdout, "looking is allowed, at the store of the run"
    finally:
        run.terminate()
        run.communicate(timeout=60)


def test_services_that_the_environment_names_are_used(house, s3_environment, tmp_path):
    database = tmp_path / "elsewhere.db"
    uri = f"s3://ngrpo/{tmp_path.name}"
    house.write_stage("sft_warm_start", "raise ValueError('far enough')")
    given = s3_environment.environment() | {"NGRPO_STORE": uri, "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    house.ngrpo("run", code=2, **given)
    # What an earlier run put into the embedded store is not in this one.
    assert "prepare_data" in house.ran()
    assert any(key.startswith("prepare_data/") for key in ObjectStore(uri).list())
    with contextlib.closing(sqlite3.connect(database)) as runs:
        assert ("prepare_data", "FINISHED") in list(runs.execute("SELECT name, status FROM runs"))
    assert mlflow_states(house) == {"FINISHED": 7}, "the workspace's own database was left alone"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS_ENDPOINT_URL=http://127.0.0.1:9"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS_SECRET_ACCESS_KEY"),
        ({"NGRPO_STORE": "s3://nowhere/x"}, "nowhere"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLFLOW_TRACKING_URI=http://127.0.0.1:9"),
    ],
)
def test_a_service_that_cannot_be_used_is_one_line(house, s3, settings, named):
    failed = house.ngrpo("run", **s3.environment() | settings, code=2)
    (line,) = failed.stderr.splitlines()
    assert named in line
    assert house.ran() == []


def test_each_run_keeps_its_logs_and_what_it_was(finished_house):
    run = finished_house.last_run
    for stage in STAGES:
        assert (run / "logs" / f"{stage}.log").exists()
    assert "'mean': 0.5" in (run / "report.html").read_text()
    assert json.loads((run / "config.json").read_text())["preset"] == "small"
    assert set(json.loads((run / "plan.json").read_text())) == set(STAGES)
    assert (finished_house.home / "latest").resolve() == run


def test_report_can_be_written_again(house):
    report = house.last_run / "report.html"
    before = report.read_text()
    report.unlink()
    assert str(report) in house.ngrpo("report").stdout.replace("\n", "")
    assert report.read_text() == before


def test_a_run_starts_from_the_champion_of_the_embedded_registry(house):
    assert "has no champion to start from" in house.ngrpo("plan", "--base", "champion", code=2).stderr
    house.write_stage("model_promotion", CROWNING)
    house.ngrpo("run")
    house.ran()
    house.write_stage("sft_warm_start", "raise ValueError('far enough')")
    house.ngrpo("run", "--base", "champion", code=2)
    assert "prepare_data" in house.ran()
    config = json.loads((house.last_run / "config.json").read_text())
    assert config["model"]["source"]["kind"] == "registered"
    assert config["model"]["source"]["version"] == 1
    assert config["warm_start"]["steps"] == 0
    assert "│ cached │" in house.ngrpo("plan", "--base", "champion").stdout, "of the same champion it is there"
