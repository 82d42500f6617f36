"""MLflow metrics of a stage besides its own: the machine's, and on a cluster the sums over all stages on the parent run."""

import threading
import time

import pytest
from mlflow import MlflowClient
from test_cluster_tracking import parents, stage

from ngrpo.tracking.mlflow_runs import parent_run, stage_run
from ngrpo.tracking.system_metrics import system_metrics

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


@pytest.fixture
def run(database):
    with parent_run("ngrpo", "whole", {}, None) as parent, stage_run("ngrpo_training", parent.run_id, {}) as opened:
        yield opened


def logged(run) -> dict[str, float]:
    return {
        name: value
        for name, value in MlflowClient().get_run(run.run_id).data.metrics.items()
        if name.startswith("system/")
    }


def test_a_stage_that_takes_its_time_has_the_metrics_of_the_machine(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    deadline = time.monotonic() + 60
    with system_metrics(run.run_id):
        while not logged(run):
            assert time.monotonic() < deadline, "nothing was logged"
            time.sleep(0.1)
    values = logged(run)
    assert values["system/cpu_utilization_percentage"] >= 0
    assert values["system/system_memory_usage_megabytes"] > 100
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_a_stage_that_is_over_within_an_interval_has_none(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.4")
    with system_metrics(run.run_id):
        pass
    time.sleep(0.6)
    assert logged(run) == {}


def test_the_whole_run_on_a_cluster_has_the_sums_of_its_stages_and_its_result(database, objects):
    told = {
        "prepare_data": {"cost/hours": 0.5, "rows": 100.0},
        "ngrpo_training": {"cost/hours": 2.0, "cost/gpu_hours": 16.0, "reward_last": 0.9},
        "benchmark_evaluation": {"cost/hours": 1.0, "cost/gpu_hours": 8.0, "trained/aime/mean": 0.25},
        "model_promotion": {"cost/hours": 0.1, "gain": 3.5, "system/cpu_utilization_percentage": 99.0},
    }
    for name, metrics in told.items():
        with stage(name, objects) as opened:
            opened.log_metrics(metrics)
    (parent,) = parents()
    assert parent.data.metrics == pytest.approx(
        {"cost/hours": 3.6, "cost/gpu_hours": 24.0, "trained/aime/mean": 0.25, "gain": 3.5}
    )


def test_a_try_that_was_killed_is_not_added_to_the_one_after_it(database, objects):
    def fail():
        with stage("ngrpo_training", objects) as opened:
            opened.log_metrics({"cost/hours": 5.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with stage("ngrpo_training", objects) as opened:
        opened.log_metrics({"cost/hours": 7.0})
    assert parents()[0].data.metrics == {"cost/hours": 7.0}
