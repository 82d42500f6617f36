"""Runs in a real MLflow database: one parent, one child a stage, and trainers that report into the child."""

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import mlflow.data
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.store.db.base_sql_model import Base
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables
from sqlalchemy import Engine, create_engine, event
from transformers import TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback

from ngrpo.errors import TrackingError
from ngrpo.tracking import database as database_module
from ngrpo.tracking.addresses import database_uri
from ngrpo.tracking.connection import connect
from ngrpo.tracking.database import prepare_database
from ngrpo.tracking.mlflow_runs import parent_run, stage_run

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


def runs():
    client = MlflowClient()
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {run.info.run_name: run for run in found}


def whole_run(tags=(), artifact_location=None):
    return parent_run("ngrpo", "whole", dict(tags), artifact_location)


@contextmanager
def training_stage():
    with whole_run() as parent, stage_run("training", parent.run_id, {}) as stage:
        yield stage


class Trainer:
    """What a trainer of transformers does with its MLflow callback."""

    def __init__(self, directory, **arguments):
        self.callback, self.state = MLflowCallback(), TrainerState(is_world_process_zero=True)
        self.arguments = TrainingArguments(output_dir=str(directory / "out"), report_to=[], seed=11, **arguments)

    def log(self, steps: int) -> None:
        self.callback.on_train_begin(self.arguments, self.state, None)
        for step in range(1, steps + 1):
            self.state.global_step = step
            self.callback.on_log(self.arguments, self.state, None, logs={"reward": step / 10})

    def train(self, steps: int) -> None:
        self.log(steps)
        self.callback.on_train_end(self.arguments, self.state, None)


# --- parent and children ------------------------------------------------------------------------------------------------


def test_a_stage_is_a_child_and_its_trainer_reports_to_it(database, tmp_path):
    with whole_run({"preset": "tiny"}) as parent, stage_run("training", parent.run_id, {"ngrpo.key": "k"}) as stage:
        reward = {"function": "a.py:f", "code": {"a.py": "f = 1"}}
        stage.log_settings({"seed": 3, "training": {"steps": 3, "betas": [0.9, 0.99], "rewards": {"mine": reward}}})
        Trainer(tmp_path).train(steps=3)
        stage.log_metrics({"final/pass@8": 0.3})
        stage.log_input("dataset", "s3://ngrpo/prepare_data/k0/", "d" * 64)
    found = runs()
    assert set(found) == {"whole", "training"}, "the trainer must not make a run of its own"
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    child = found["training"]
    assert child.data.tags["mlflow.parentRunId"] == found["whole"].info.run_id
    assert child.data.tags["ngrpo.key"] == "k"
    assert child.data.metrics["final/pass_8"] == 0.3
    history = MlflowClient().get_metric_history(child.info.run_id, "reward")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    expected = {"config.seed": "3", "config.training.steps": "3", "config.training.betas": "[0.9, 0.99]", "seed": "11"}
    assert expected.items() <= child.data.params.items()
    digest = hashlib.sha256(b"f = 1").hexdigest()[:12]
    assert child.data.params["config.training.rewards.mine.code.a.py"] == f"sha256:{digest}"
    (entry,) = child.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("dataset", "d" * 36)
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "input", "ngrpo.digest": "d" * 64}
    assert mlflow.data.get_source(entry.dataset).uri == "s3://ngrpo/prepare_data/k0/"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_stage_ends_is_how_its_run_ends(database, error, status):
    with pytest.raises(error), training_stage():
        raise error
    assert {run.info.status for run in runs().values()} == {status}


def test_a_trainer_that_breaks_off_does_not_end_its_run_as_finished(database, tmp_path):
    trainer = Trainer(tmp_path)

    def break_off():
        trainer.log(steps=2)
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"), training_stage():
        break_off()
    trainer.callback.__del__()  # transformers ends the active run when the callback is collected
    mlflow.end_run()  # and so does mlflow when the process exits
    training = runs()["training"]
    assert training.info.status == "FAILED"
    assert len(MlflowClient().get_metric_history(training.info.run_id, "reward")) == 2


def test_an_experiment_in_the_environment_does_not_lead_the_trainer_astray(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-the-user")
    with training_stage():
        Trainer(tmp_path).train(steps=1)
    assert runs()["training"].data.metrics == {"reward": 0.1}
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "of-the-user"
    assert MlflowClient().get_experiment_by_name("of-the-user") is None


def test_a_run_of_the_platform_is_joined_and_left_to_the_platform(database, tmp_path, monkeypatch):
    client = MlflowClient()
    given = client.create_run(client.create_experiment("ngrpo"), run_name="step").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with stage_run("evaluation", "some-parent", {"ngrpo.key": "k"}) as stage:
        assert stage.run_id == given
    assert runs()["step"].info.status == "RUNNING"
    with stage_run("training", "some-parent", {}):
        Trainer(tmp_path).train(steps=1)
    assert os.environ["MLFLOW_RUN_ID"] == given
    assert set(runs()) == {"step"}
    assert runs()["step"].data.tags["ngrpo.key"] == "k"
    assert runs()["step"].data.metrics == {"reward": 0.1}


def test_without_a_run_nothing_is_tracked(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with stage_run("training", None, {}) as stage:
        assert stage is None


def test_an_error_of_the_stage_is_not_hidden_by_one_of_the_database(database):
    def break_with_the_database():
        with sqlite3.connect(database.removeprefix("sqlite:///")) as tables:
            tables.execute("DROP TABLE runs")
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as error, training_stage():
        break_with_the_database()
    assert "its MLflow run is left open" in error.value.__notes__[0]


def test_no_secret_reaches_the_database(database, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-in-environment")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden-in-environment")
    with training_stage():
        Trainer(tmp_path, hub_token="hidden-in-arguments").train(steps=1)
    assert b"hidden" not in Path(database.removeprefix("sqlite:///")).read_bytes()


def test_files_of_a_run_go_to_object_storage(database, objects, tmp_path):
    location = f"{objects.uri}/mlflow"
    (tmp_path / "report.html").write_text("<p>report")
    with whole_run(artifact_location=location) as parent:
        parent.log_file(tmp_path / "report.html")
    assert objects.get_bytes(f"mlflow/{parent.run_id}/artifacts/report.html") == b"<p>report"
    elsewhere = whole_run(artifact_location="s3://other/mlflow")
    with pytest.raises(TrackingError, match=f"keeps its artifacts in {location}, not in s3://other/mlflow"), elsewhere:
        pass


def test_a_deleted_experiment_is_reported_with_what_restores_it(database):
    client = MlflowClient()
    client.delete_experiment(client.create_experiment("ngrpo"))
    with pytest.raises(TrackingError, match="mlflow experiments restore -x 1"), whole_run():
        pass


# --- the database and the server ----------------------------------------------------------------------------------------


def test_processes_may_open_a_new_database_at_the_same_time(tmp_path):
    code = """
import sys
from ngrpo.tracking.mlflow_runs import parent_run, stage_run
assert "torch" not in sys.modules and "transformers" not in sys.modules, "a stage pays for every import"
with parent_run("ngrpo", sys.argv[1], {}, None) as parent, stage_run(sys.argv[1] + "-stage", parent.run_id, {}) as stage:
    for _ in range(20):
        stage.log_metrics({"x": 1})
"""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], env=environment, stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    messages = [child.communicate(timeout=240)[1] for child in children]
    assert [child.returncode for child in children] == [0] * 4, messages
    assert messages == [""] * 4, "the steps of making a database are nobody's concern"
    with sqlite3.connect(f"{tmp_path}/new/mlflow.db") as tables:
        assert tables.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone() == (8,)
        assert tables.execute("SELECT count(*) FROM metrics").fetchone() == (80,)


def test_a_database_of_an_older_mlflow_is_upgraded(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = _get_alembic_config(uri)
    newest = ScriptDirectory.from_config(config).get_revision("head")
    FirstTables.metadata.create_all(create_engine(uri))
    command.upgrade(config, newest.down_revision)
    prepare_database(uri)
    with sqlite3.connect(tmp_path / "mlflow.db") as tables:
        assert tables.execute("SELECT version_num FROM alembic_version").fetchall() == [(newest.revision,)]
    assert MlflowClient(uri).search_experiments()[0].name == "Default"


def tables_of(path):
    with closing(sqlite3.connect(path)) as tables:
        return {name for (name,) in tables.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def put_half_made(path, prepared_database, how):
    """What an earlier version left where it was killed while MLflow changed the tables in place."""
    uri = f"sqlite:///{path}"
    if how == "first tables":
        FirstTables.metadata.create_all(create_engine(uri), tables=list(FirstTables.metadata.sorted_tables)[:3])
    elif how == "no version":
        FirstTables.metadata.create_all(create_engine(uri))
        with closing(sqlite3.connect(path)) as tables:
            tables.execute("CREATE TABLE latest_metrics (key VARCHAR(250))")
    elif how == "version behind":
        shutil.copy(prepared_database, path)
        script = ScriptDirectory.from_config(_get_alembic_config(uri))
        behind = [revision.revision for revision in script.walk_revisions()][20]
        with closing(sqlite3.connect(path)) as tables:
            tables.execute("UPDATE alembic_version SET version_num = ?", [behind])
            tables.commit()
    elif how == "a table is missing":
        shutil.copy(prepared_database, path)
        with closing(sqlite3.connect(path)) as tables:
            tables.execute("DROP TABLE metrics")
            tables.commit()


@pytest.mark.parametrize("how", ["first tables", "no version", "version behind", "a table is missing"])
def test_a_half_made_database_without_a_run_is_made_anew(prepared_database, tmp_path, caplog, how):
    path = tmp_path / "mlflow.db"
    put_half_made(path, prepared_database, how)
    before = tables_of(path)
    prepare_database(f"sqlite:///{path}")
    assert tables_of(path) >= set(Base.metadata.tables)
    (kept,) = [file for file in tmp_path.iterdir() if file.name not in ("mlflow.db", "mlflow.db.lock")]
    assert tables_of(kept) == before, "nothing is thrown away"
    assert kept.name in caplog.text
    MlflowClient(f"sqlite:///{path}").create_experiment("x")


def test_a_half_made_database_with_a_run_is_left_alone(prepared_database, tmp_path):
    path = tmp_path / "mlflow.db"
    put_half_made(path, prepared_database, "version behind")
    with closing(sqlite3.connect(path)) as tables:
        tables.execute("INSERT INTO runs (run_uuid, status, lifecycle_stage) VALUES ('a', 'FINISHED', 'active')")
        tables.commit()
    before = path.read_bytes()
    with pytest.raises(TrackingError, match=r"was interrupted while it changed the tables; replace it") as error:
        prepare_database(f"sqlite:///{path}")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def killed_at(statement, uri):
    """Prepare a database in a process that is killed before the given statement of SQL, and return how many it got to send."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        sent = [0]

        def count(*arguments):
            sent[0] += 1
            if sent[0] == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        prepare_database(uri)
        os.write(writer, str(sent[0]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        os.waitpid(child, 0)
        return int(said.read() or 0)


def test_a_kill_while_the_tables_are_made_leaves_nothing_that_is_half_made(tmp_path):
    path = tmp_path / "mlflow.db"
    for statement in (5, 60, 300):
        assert killed_at(statement, f"sqlite:///{path}") == 0
        assert not path.exists()
    assert killed_at(0, f"sqlite:///{path}") > 300
    assert tables_of(path) >= set(Base.metadata.tables)
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def test_a_kill_during_an_upgrade_leaves_the_old_database(tmp_path):
    path = tmp_path / "mlflow.db"
    put_older(path)
    before = path.read_bytes()
    for statement in (5, 200):
        assert killed_at(statement, f"sqlite:///{path}") == 0
        assert path.read_bytes() == before
    killed_at(0, f"sqlite:///{path}")
    assert tables_of(path) >= set(Base.metadata.tables)
    with closing(sqlite3.connect(path)) as tables:
        assert tables.execute("SELECT run_uuid FROM runs").fetchall() == [("a",)]
    (kept,) = tmp_path.glob("mlflow.db.*.bak")
    assert kept.read_bytes() == before


def put_older(path):
    """A database of an MLflow of long ago, with a run in it."""
    uri = f"sqlite:///{path}"
    script = ScriptDirectory.from_config(_get_alembic_config(uri))
    FirstTables.metadata.create_all(create_engine(uri))
    command.upgrade(_get_alembic_config(uri), [revision.revision for revision in script.walk_revisions()][-10])
    with closing(sqlite3.connect(path)) as tables:
        tables.execute("INSERT INTO runs (run_uuid, status, lifecycle_stage) VALUES ('a', 'FINISHED', 'active')")
        tables.commit()


@pytest.mark.parametrize("name", ["a b", "100%41", "what?x=1", "#1", 'it\'s "ü" & so; on', "%2F"])
def test_a_path_is_a_path_whatever_is_in_it(prepared_database, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(prepared_database, path)
    uri = database_uri(path)
    prepare_database(uri)
    MlflowClient(uri).create_experiment(f"of {name}")
    with closing(sqlite3.connect(path)) as tables:
        assert (f"of {name}",) in tables.execute("SELECT name FROM experiments").fetchall()
    assert [file.name for file in tmp_path.iterdir()] == [name], "no directory beside it either"


def put_unusable(path: Path, how: str, prepared_database: Path) -> None:
    if how == "a directory":
        path.mkdir()
    elif how == "another file":
        path.write_text("no database\n" * 100)
    elif how == "cut":
        path.write_bytes(prepared_database.read_bytes()[:100_000])
    elif how == "of something else":
        with sqlite3.connect(path) as tables:
            tables.execute("CREATE TABLE birds (name)")
    elif how == "newer":
        shutil.copy(prepared_database, path)
        with sqlite3.connect(path) as tables:
            tables.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a directory", "unable to open database file; name a file that can be written"),
        ("another file", "file is not a database; move that file away"),
        ("cut", "database disk image is malformed; move that file away"),
        ("of something else", "it is not a database of MLflow; name another file"),
        ("newer", "a newer MLflow wrote it: upgrade mlflow"),
        ("locked", "database is locked; end the process that holds it"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_quickly(prepared_database, tmp_path, monkeypatch, how, message):
    monkeypatch.setattr(database_module, "_SECONDS_TO_WAIT", 0.2)
    path = tmp_path / "mlflow.db"
    put_unusable(path, how, prepared_database)
    holder = sqlite3.connect(tmp_path / ("mlflow.db" if how == "locked" else "other.db"))
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    started = time.monotonic()
    with pytest.raises(TrackingError, match=message) as error:
        connect()
    holder.close()
    assert time.monotonic() - started < 20
    assert str(error.value).startswith(f"MLFLOW_TRACKING_URI=sqlite:///{path}: ")
    assert "\n" not in str(error.value)


def test_an_unreachable_server_is_reported_quickly_and_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hidden@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        TrackingError, match=r"MLFLOW_TRACKING_URI=http://127.0.0.1:9: .*; check that it is up"
    ) as error:
        connect()
    assert time.monotonic() - started < 20
    assert "hidden" not in str(error.value)
    assert "\n" not in str(error.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ, "later calls must stay patient"


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_the_credentials_is_told_apart(monkeypatch, status):
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"You are not allowed here")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(
            TrackingError, match=f"{status}.*; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        ):
            connect()
        server.shutdown()


@pytest.mark.parametrize("uri", [None, "", "/some/directory", "file:///some/directory", "sqlite://"])
def test_what_is_neither_a_server_nor_a_database_file_is_refused(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or "")
    if uri is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TrackingError, match=r"name a server .* or a file"):
        connect()
