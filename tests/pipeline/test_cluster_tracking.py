"""MLflow on a cluster: stages of one pipeline run share one parent, whoever comes first; a run of the platform is joined."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from mlflow import MlflowClient

from ngrpo.stages import declarations
from ngrpo.stages.step import execute
from ngrpo.tracking.cluster_parent_run import parent_on_cluster
from ngrpo.tracking.mlflow_runs import stage_run
from promoting import settings

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


def runs():
    client = MlflowClient()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def parents():
    return [run for run in runs() if "mlflow.parentRunId" not in run.data.tags]


@contextmanager
def stage(name, objects, pipeline_run="r1"):
    with parent_on_cluster(pipeline_run, name, objects) as parent, stage_run(name, parent, {}) as run:
        yield run


def test_stages_of_a_pipeline_run_are_children_of_one_run(database, objects):
    for name in ("prepare_data", "neighbor_index"):
        with stage(name, objects):
            (parent,) = parents()
            assert parent.info.status == "RUNNING"
    (parent,) = parents()
    assert (parent.info.status, parent.data.tags["ngrpo.pipeline_run"]) == ("FINISHED", "r1")
    children = {
        run.info.run_name: run.data.tags["mlflow.parentRunId"]
        for run in runs()
        if run.info.run_id != parent.info.run_id
    }
    assert children == dict.fromkeys(("prepare_data", "neighbor_index"), parent.info.run_id)
    with stage("prepare_data", objects, "r2"):
        assert len(parents()) == 2


def test_stages_that_start_together_agree_on_one_parent(database, objects, monkeypatch):
    all_of_them_looked = threading.Barrier(4)
    create_run = MlflowClient.create_run

    def create(*arguments, **settings):
        all_of_them_looked.wait(10)
        return create_run(*arguments, **settings)

    monkeypatch.setattr(MlflowClient, "create_run", create)

    def start(number):
        with parent_on_cluster("r1", f"stage-{number}", objects) as parent:
            return parent

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(start, range(4)))
    assert [run.info.run_id for run in parents()] == list(found)


def test_a_parent_whose_maker_was_killed_before_it_said_so_is_taken(database, objects):
    with stage("prepare_data", objects):
        pass
    objects.delete("mlflow_runs/r1")
    with stage("neighbor_index", objects):
        pass
    assert len(parents()) == 1


def test_a_failed_stage_fails_the_run_until_a_later_try_succeeds(database, objects):
    with pytest.raises(ZeroDivisionError), stage("prepare_data", objects):
        raise ZeroDivisionError
    assert parents()[0].info.status == "FAILED"
    with stage("neighbor_index", objects):
        pass
    assert parents()[0].info.status == "FAILED", "that another stage succeeds changes nothing"
    with stage("prepare_data", objects):
        pass
    assert parents()[0].info.status == "FINISHED"


def test_the_run_of_a_try_that_was_killed_is_ended_by_the_next(database, objects):
    with stage("neighbor_index", objects):
        (parent,) = parents()
        tags = {"mlflow.parentRunId": parent.info.run_id}
        MlflowClient().create_run(parent.info.experiment_id, run_name="prepare_data", tags=tags)
    assert parents()[0].info.status == "RUNNING", "prepare_data is still at work, for all that is known"
    with stage("prepare_data", objects):
        pass
    assert sorted(run.info.status for run in runs() if run.info.run_name == "prepare_data") == ["FINISHED", "KILLED"]
    assert parents()[0].info.status == "FINISHED"


def test_a_run_of_the_platform_is_joined_and_no_other_is_made(database, objects, monkeypatch):
    client = MlflowClient()
    given = client.create_run(client.create_experiment("platform")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with stage("prepare_data", objects) as run:
        assert run.run_id == given
    assert [run.info.run_id for run in runs()] == [given]
    assert objects.list() == []


@pytest.mark.parametrize("missing", ["MLFLOW_TRACKING_URI", "run"])
def test_where_nothing_can_be_tracked_that_is_said(database, objects, monkeypatch, capsys, missing):
    if missing == "MLFLOW_TRACKING_URI":
        monkeypatch.delenv(missing)
    with stage("prepare_data", objects, None if missing == "run" else "r1") as run:
        assert run is None
    assert (
        f"prepare_data: nothing is tracked: neither MLFLOW_RUN_ID nor {'the run' if missing == 'run' else missing}"
        in (capsys.readouterr().err)
    )


def test_a_stage_in_a_pod_is_tracked_below_its_pipeline_run(database, objects, tmp_path, monkeypatch):
    def work(config, inputs, output, work):
        (output / "metrics.json").write_text(json.dumps({"value": 1.5}))

    monkeypatch.setattr(declarations.Stage, "function", lambda self: work)
    for name, value in {
        "NGRPO_STORE": objects.uri,
        "NGRPO_CACHE_DIR": tmp_path / "cache",
        "NGRPO_WORK_DIR": tmp_path / "work",
        "NGRPO_PIPELINE_RUN": "r1",
    }.items():
        monkeypatch.setenv(name, str(value))
    arguments = {
        "config_json": settings().model_dump_json(),
        "code_version": "c",
        "inputs": {},
        "output": str(tmp_path / "reference.json"),
        "metrics": str(tmp_path / "metrics.json"),
    }
    execute("model_promotion", key="k", **arguments)
    (parent,) = parents()
    (child,) = [run for run in runs() if run.info.run_id != parent.info.run_id]
    own = {name: value for name, value in child.data.metrics.items() if not name.startswith("cost/")}
    assert own == {"value": 1.5}
    assert child.data.metrics["cost/hours"] == parent.data.metrics["cost/hours"] > 0
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
