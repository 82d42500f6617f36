"""Versions of the registry are models that MLflow loads and serves, with the weights that were evaluated and no pickle."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version as installed
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import mlflow.transformers
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from mlflow.pyfunc import scoring_server
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.storage.digest import file_digests, model_digest
from ngrpo.tracking.mlflow_runs import parent_run, stage_run
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
from promoting import MIDDLE, NAME, candidate, decide, write_manifest
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
URI = f"models:/{NAME}@champion"
TURNS = [{"role": "user", "content": "3 + 4"}]


@pytest.fixture
def registry(database, objects, tmp_path, monkeypatch):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    return ModelRegistry(NAME)


@pytest.fixture
def model(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "artifact" / "model")


@pytest.fixture
def champion(registry, model):
    """A model that was registered, and made the champion."""
    write_manifest(model.parent, "key", {})
    version = registry.register(model, model.parent / "manifest.json", digest=model_digest(model), tags={})
    registry.add_flavor(version, model, max_new_tokens=7)
    registry.set_alias(CHAMPION, version.version)
    return version


def continued(directory: Path, prompt: str, count: int) -> str:
    """What transformers writes by itself: the most likely tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def test_mlflow_loads_the_champion_with_the_weights_that_were_evaluated(champion, registry, model):
    pipeline = mlflow.transformers.load_model(URI)
    weights = load_file(model / "model.safetensors")
    loaded = pipeline.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert pipeline.task == "text-generation"
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    text = AutoTokenizer.from_pretrained(model).apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    (written,) = pipeline(text, **options)
    assert written["generated_text"] == continued(model, text, 5)
    (chat,) = pipeline(TURNS, **options)
    assert chat["generated_text"] == written["generated_text"]
    assert registry.stored_digest(champion) == model_digest(model)


def test_what_is_stored_has_no_pickle_no_code_and_no_path_of_this_machine(champion, model, tmp_path):
    files = Path(mlflow.artifacts.download_artifacts(URI, dst_path=str(tmp_path / "there")))
    assert file_digests(files / "model") == file_digests(model)
    kinds = {path.suffix for path in files.rglob("*") if path.is_file()}
    assert kinds <= {"", ".json", ".jinja", ".safetensors", ".txt", ".yaml"}
    assert [path.parent.name for path in files.rglob("*.safetensors")] == ["model"], "weights are there once"
    described = (files / "MLmodel").read_text()
    assert str(tmp_path) not in described
    assert yaml.safe_load(described)["model_id"] == champion.source.removeprefix("models:/")
    requirements = (files / "requirements.txt").read_text().split()
    public = {name: installed(name).partition("+")[0] for name in ("torch", "transformers", "mlflow")}
    assert {f"{name}=={version}" for name, version in public.items()} <= set(requirements)
    assert yaml.safe_load((files / "python_env.yaml").read_text())["dependencies"] == ["-r requirements.txt"]


def test_the_type_of_the_weights_is_that_of_the_model(registry, tmp_path):
    directory = tmp_path / "artifact" / "model"
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "float32"), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tmp_path / "float32").save_pretrained(directory)
    write_manifest(directory.parent, "key", {})
    version = registry.register(directory, directory.parent / "manifest.json", digest=model_digest(directory), tags={})
    registry.add_flavor(version, directory, max_new_tokens=7)
    assert mlflow.transformers.load_model(f"models:/{NAME}/1").model.dtype == torch.bfloat16


def test_mlflows_server_answers(champion, model):
    with TestClient(scoring_server.init(mlflow.pyfunc.load_model(URI))) as client:

        def answers(**request) -> list[str]:
            response = client.post("/invocations", json=request)
            assert response.status_code == 200, response.text
            return response.json()["predictions"]

        prompts = ["<user> 3 + 4 <assistant>", "<user> 9 - 2 <assistant>"]
        assert answers(inputs=prompts) == [continued(model, prompt, 7) for prompt in prompts]
        assert answers(inputs=prompts[:1], params={"max_new_tokens": 3}) == [continued(model, prompts[0], 3)]
        refused = client.post("/invocations", json={"inputs": prompts, "params": {"max_new_tokens": "many"}})
        assert refused.status_code == 400


def test_a_version_of_before_gets_a_flavor_at_its_next_promotion_and_keeps_its_files(registry, tmp_path):
    inputs = candidate(tmp_path / "inputs", "first", MIDDLE)
    model = inputs["trained"] / "model"
    registry.register(model, inputs["trained"] / "manifest.json", digest=model_digest(model), tags={})
    assert registry.missing(registry.version("1")) == []
    assert decide(inputs, tmp_path / "output")["version"] == 1
    assert "MLmodel" in {Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(URI)}
    assert registry.stored_digest(registry.version("1")) == model_digest(model)
    written = []
    registry._client.log_model_artifacts = lambda *given: written.append(given)
    registry.add_flavor(registry.version("1"), model, max_new_tokens=7)
    assert written == [], "it is written once"


def test_the_page_of_the_model_has_the_figures_of_each_benchmark(registry, tmp_path):
    inputs = candidate(tmp_path / "inputs", "first", MIDDLE, others={"sums": [8] * 60})
    with parent_run("ngrpo", "run", {}, None) as parent, stage_run("model_promotion", parent.run_id, {}) as run:
        decide(inputs, tmp_path / "output")
    (model,) = MlflowClient().search_logged_models([parent.client.get_run(parent.run_id).info.experiment_id])
    shown = {
        metric.key: (metric.value, metric.run_id, metric.dataset_name, metric.dataset_digest)
        for metric in model.metrics
    }
    assert shown["arithmetic/mean"] == (0.5, run.run_id, "arithmetic", "q")
    assert shown["sums/pass_at_1"] == (1.0, run.run_id, "sums", "q")


@pytest.mark.long
def test_mlflow_models_serve_answers(champion, model, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        # MLflow starts uvicorn by its name: the environment is active, as users have it.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        server = subprocess.Popen(
            command, env=os.environ | {"PATH": path}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        prompt = "<user> 3 + 4 <assistant>"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            data=json.dumps({"inputs": [prompt]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None, (tmp_path / "serve.log").read_text()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    assert json.load(answer)["predictions"] == [continued(model, prompt, 7)]
                return
            except (ConnectionError, urllib.error.URLError):
                assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()
                time.sleep(1)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
