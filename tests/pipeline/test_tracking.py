"""Runs in a real MLflow database: one parent, one child a stage, and trainers that report into the child."""

import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient
from transformers import TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback

from ngrpo.errors import TrackingError
from ngrpo.tracking.runs import parent_run, stage_run

pytestmark = pytest.mark.pipeline


@pytest.fixture
def database(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return uri


def runs():
    client = MlflowClient()
    experiment = client.get_experiment_by_name("ngrpo")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_stage_is_a_child_and_its_trainer_reports_to_it(database, tmp_path):
    with parent_run("ngrpo", "whole", {"preset": "tiny"}, str(tmp_path / "artifacts")) as parent:
        with stage_run("training", parent.run_id, {"ngrpo.key": "k"}) as stage:
            callback, state = MLflowCallback(), TrainerState(is_world_process_zero=True)
            arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[])
            callback.on_train_begin(arguments, state, None)
            for step in range(1, 4):
                state.global_step = step
                callback.on_log(arguments, state, None, logs={"reward": step / 10})
            callback.on_train_end(arguments, state, None)
            stage.log_metrics({"final/reward": 0.3})
            stage.log_input("dataset", "s3://ngrpo/prepare_data/k0/", "d" * 64)
    found = runs()
    assert set(found) == {"whole", "training"}, "the trainer must not make a run of its own"
    child = found["training"]
    assert child.data.tags["mlflow.parentRunId"] == found["whole"].info.run_id
    assert child.data.tags["ngrpo.key"] == "k"
    assert child.data.metrics["final/reward"] == 0.3
    history = MlflowClient().get_metric_history(child.info.run_id, "reward")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    dataset = child.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("dataset", "d" * 32)
    assert {run.info.status for run in found.values()} == {"FINISHED"}


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_stage_ends_is_how_its_run_ends(database, error, status):
    with pytest.raises(error), parent_run("ngrpo", "whole", {}, None) as parent:
        with stage_run("training", parent.run_id, {}):
            raise error
    assert {run.info.status for run in runs().values()} == {status}


def test_a_run_of_the_platform_is_joined(database, monkeypatch):
    client = MlflowClient()
    given = client.create_run(client.create_experiment("ngrpo"), run_name="step").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with stage_run("training", "some-parent", {"ngrpo.key": "k"}) as stage:
        assert stage.run_id == given
    assert set(runs()) == {"step"}
    assert runs()["step"].data.tags["ngrpo.key"] == "k"


def test_without_a_run_nothing_is_tracked(database):
    with stage_run("training", None, {}) as stage:
        assert stage is None


def test_many_processes_may_open_a_database_that_a_parent_prepared(database):
    code = (
        "import sys; from ngrpo.tracking.runs import stage_run\n"
        "with stage_run(sys.argv[1], sys.argv[2], {}) as run: run.log_metrics({'x': 1})"
    )
    with parent_run("ngrpo", "whole", {}, None) as parent:
        children = [
            subprocess.Popen([sys.executable, "-c", code, f"stage{number}", parent.run_id]) for number in range(4)
        ]
        assert [child.wait(120) for child in children] == [0] * 4
    assert set(runs()) == {"whole", *(f"stage{number}" for number in range(4))}


def test_an_unreachable_server_is_reported_quickly_and_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hidden@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI=http://127.0.0.1:9") as error:
        with parent_run("ngrpo", "whole", {}, None):
            pass
    assert time.monotonic() - started < 30
    assert "hidden" not in str(error.value)
    assert "\n" not in str(error.value)
