"""Runs that start from the champion: pinned when they are planned, on a schedule on the day."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from ngrpo.config import load_config
from ngrpo.data.embedding import load_embedding
from ngrpo.data.models import materialize, materialize_tokenizer
from ngrpo.errors import DataError, TrackingError
from ngrpo.storage.digest import file_sha256, model_digest
from ngrpo.storage.manifest import FileEntry, Manifest
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.registry import CHAMPION, ModelRegistry
from ngrpo_kfp.pipelines import cli
from ngrpo_kfp.pipelines.base_model import from_champion
from ngrpo_kfp.pipelines.options import PRESETS
from ngrpo_kfp.pipelines.plan import History, make_plan
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding", "mlflow_database"]

CONFIG = load_config(PRESETS / "tiny.toml")
PROGRAM = "import sys; from ngrpo_kfp.pipelines.champion_run import submit_and_wait as run; run(*sys.argv[1:], pause_seconds=0.1)"


@pytest.fixture
def registry(database, objects, monkeypatch) -> ModelRegistry:
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", f"{objects.uri}/mlflow")
    return ModelRegistry(CONFIG.promotion.model_name)


@pytest.fixture
def crown(registry, tmp_path):
    """Register a random model and make it champion."""

    def crowned(seed: int):
        model = save_tiny_model(tmp_path / f"model-{seed}", seed=seed)
        entries = {f"model/{path.name}": FileEntry(file_sha256(path), path.stat().st_size) for path in model.iterdir()}
        manifest = Manifest("ngrpo_training", "key", "c", "v", {}, entries)
        (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
        version = registry.register(model, tmp_path / "manifest.json", digest=model_digest(model), tags={})
        registry.set_alias(CHAMPION, str(version.version))
        return model

    return crowned


def keys(config) -> dict[str, str]:
    plan = make_plan(config, run="", store=None, rerun_tokens={}, history=History())
    return {stage.name: stage.key for stage in plan}


def test_a_run_starts_from_the_files_of_the_champion(crown, tmp_path):
    model = crown(1)
    config = from_champion(CONFIG)
    assert config.model.source.version == 1
    assert config.warm_start.steps == 0
    found = materialize(config.model.source, tmp_path / "found")
    assert model_digest(found) == model_digest(model) == config.model.source.digest
    embedding, _ = load_embedding(config.model.source, tmp_path / "read")
    assert torch.equal(embedding, AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight)


def test_the_same_champion_has_the_same_keys_and_another_has_others(crown):
    crown(1)
    first = keys(from_champion(CONFIG))
    assert keys(from_champion(CONFIG)) == first
    crown(2)
    second = keys(from_champion(CONFIG))
    assert all(second[name] != key != keys(CONFIG)[name] for name, key in first.items())


def test_what_cannot_be_started_from_is_one_clear_error(crown, registry, tmp_path):
    with pytest.raises(TrackingError, match="has no champion to start from: run once without"):
        from_champion(CONFIG)
    crown(1)
    source = from_champion(CONFIG).model.source
    files = ObjectStore(source.id)
    weights = files.get_bytes("model.safetensors")
    files.put_bytes(weights[:-1] + b"!", "model.safetensors")
    with pytest.raises(DataError, match=r"version 1: the files in s3://.* are not those that were registered"):
        materialize(source, tmp_path / "changed")
    files.delete("model.safetensors")
    with pytest.raises(TrackingError, match=r"the champion, version 1, has lost files \(model/model.safetensors\)"):
        from_champion(CONFIG)


def test_a_tokenizer_that_was_changed_is_refused_without_reading_the_weights(crown, tmp_path, monkeypatch):
    crown(1)
    source = from_champion(CONFIG).model.source
    files, read = ObjectStore(source.id), []
    get_file = ObjectStore.get_file
    monkeypatch.setattr(ObjectStore, "get_file", lambda self, key, path: read.append(key) or get_file(self, key, path))
    materialize_tokenizer(source, tmp_path / "sound")
    assert "tokenizer.json" in read
    assert "model.safetensors" not in read
    files.put_bytes(files.get_bytes("tokenizer.json") + b" ", "tokenizer.json")
    with pytest.raises(DataError, match=r"version 1: the files in s3://.* are not those that were registered"):
        materialize_tokenizer(source, tmp_path / "changed")


def test_a_champion_out_of_the_stages_reach_is_refused(crown, monkeypatch):
    crown(1)
    monkeypatch.setattr(ModelRegistry, "location", lambda *_: "mlflow-artifacts:/1/models/m-1/artifacts/model")
    with pytest.raises(TrackingError, match=r"kept in mlflow-artifacts:.*, where stages cannot read it"):
        from_champion(CONFIG)


def test_a_submitted_run_holds_the_champion_of_now(kubeflow, ngrpo, crown):
    crown(1)
    ngrpo("submit", "--base", "champion")
    settings = json.loads(kubeflow.parameter(kubeflow.run(), "sft-warm-start", "config"))
    assert (settings["model"]["source"]["kind"], settings["model"]["source"]["version"]) == ("registered", 1)
    assert settings["warm_start"]["steps"] == 0


@pytest.fixture
def weekly(kubeflow, ngrpo, objects, database):
    """A schedule with runs from the champion; starts what its task runs, with the environment that its pod would have."""
    variables = {"KF_PIPELINES_ENDPOINT": kubeflow.address, "MLFLOW_TRACKING_URI": database}
    environment = f"cluster.environment={json.dumps(variables)}"
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * MON", "--base", "champion", "--set", environment)
    (schedule,) = kubeflow.schedules.values()

    def start() -> subprocess.Popen:
        run = kubeflow.fire(schedule)
        assert list(kubeflow.tasks(run)) == ["champion-run"]
        inputs = [kubeflow.parameter(run, "champion-run", name) for name in ("config", "images")]
        credentials = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        path = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *inputs],
            env=variables | credentials | path | {"NGRPO_STORE": objects.uri},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def submitted(kubeflow, process: subprocess.Popen, before: int):
    deadline = time.monotonic() + 120
    while len(kubeflow.runs) == before:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return kubeflow.run()


def test_a_schedule_submits_the_run_of_the_day_and_waits_for_it(kubeflow, weekly, crown, finish):
    for number in (1, 2):
        crown(number)
        process = weekly()
        run = submitted(kubeflow, process, len(kubeflow.runs))
        settings = json.loads(kubeflow.parameter(run, "neighbor-index", "config"))
        assert settings["model"]["source"]["version"] == number, "the champion of the day"
        kubeflow.fail("GET", r"/runs/", 503, times=6)  # and has patience, for the same reason
        time.sleep(3)
        assert process.poll() is None, "it waits, so that the schedule starts no second"
        finish()
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output.endswith(f"run  {run.run_id}: SUCCEEDED\n")
        launcher = list(kubeflow.runs.values())[-2]
        launcher.state = "SUCCEEDED"


def test_a_run_of_the_day_that_fails_fails_the_run_of_the_schedule(kubeflow, weekly, crown, ngrpo):
    process = weekly()
    assert process.wait(timeout=120) != 0
    assert "has no champion to start from" in process.stderr.read().splitlines()[-1]
    assert len(kubeflow.runs) == 1
    assert "champion_run" in ngrpo("status")
    next(iter(kubeflow.runs.values())).state = "FAILED"
    crown(1)
    process = weekly()
    run = submitted(kubeflow, process, 2)
    run.state = "FAILED"
    assert process.wait(timeout=60) != 0
    assert f"run {run.run_id} ended as FAILED: `ngrpo status" in process.stderr.read().splitlines()[-1]


def test_a_run_of_the_schedule_that_is_cancelled_ends_the_run_of_the_day(kubeflow, weekly, crown):
    crown(1)
    process = weekly()
    run = submitted(kubeflow, process, 1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, errors
    assert run.state == "CANCELING"


def test_a_schedule_must_know_where_pods_find_the_api(ngrpo, kubeflow):
    error = ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * MON", "--base", "champion", code=2)
    assert "cluster.environment.KF_PIPELINES_ENDPOINT: missing" in error
    assert not kubeflow.schedules


def test_a_dry_run_asks_nobody(capsys):
    assert cli.main(["run", "--dry-run", "--base", "champion"]) == 2
    assert "use `ngrpo plan`" in capsys.readouterr().err
