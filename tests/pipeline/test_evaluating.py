"""`ngrpo evaluate`: any model, measured under the protocol of a preset."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from ngrpo.config import InitializedModel, load_config
from ngrpo.contracts.evaluation import read_evaluation, write_evaluation
from ngrpo.data import initialized
from ngrpo.errors import ConfigError, DataError
from ngrpo.storage.digest import file_sha256, model_digest
from ngrpo.storage.manifest import FileEntry, Manifest, Reference
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.local import measuring
from ngrpo_kfp.pipelines.local.measuring import REPORT, _measurement
from ngrpo_kfp.pipelines.planning.measured_model import model_source
from ngrpo_kfp.pipelines.planning.nodes import History, Plan
from ngrpo_kfp.pipelines.planning.plan import make_plan
from ngrpo_kfp.pipelines.post_training import post_training

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
PRESET = Path(__file__).with_name("small.toml")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(directory: Path, seed: int = 0) -> Path:
    """A checkpoint as a trainer of transformers or TRL leaves it: the model, its tokenizer, and what only the trainer reads."""
    directory.mkdir(parents=True)
    initialized.write(
        InitializedModel(kind="initialized", hidden_size=16, layers=1, seed=seed), directory, weights=True
    )
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (directory / name).write_bytes(b"pickle")
    (directory / "trainer_state.json").write_text("{}")
    return directory


def planned(model: str) -> Plan:
    config = load_config(PRESET)
    pipeline = _measurement(model_source(model, config), config)
    return make_plan(config, run="r", store=None, rerun_tokens={}, history=History(), pipeline=pipeline)


# --- what is measured ---------------------------------------------------------------------------------------------------


def test_the_data_is_that_of_a_run_and_the_key_is_that_of_the_content(tmp_path):
    first, other = (planned(str(checkpoint(tmp_path / str(seed), seed))) for seed in (1, 2))
    copy = planned(str(shutil.copytree(tmp_path / "1", tmp_path / "copy")))
    run = make_plan(
        load_config(PRESET), run="r", store=None, rerun_tokens={}, history=History(), pipeline=post_training
    )
    assert first["prepare_data"].key == run["prepare_data"].key, "a run of the preset has made it already"
    keys = [plan["benchmark_evaluation"].key for plan in (first, copy, other)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"no \*\.safetensors file: save the model there with `save_pretrained`"),
        (["config.json", "pytorch_model.bin"], r"no \*\.safetensors file"),
        (["adapter_config.json", "adapter_model.safetensors"], r"an adapter without its model: merge the two"),
        (
            [f"checkpoint-{step}/model.safetensors" for step in (9, 10)],
            r"no weights, but there are some below it: name .*/checkpoint-10$",
        ),
        (
            [f"global_step_5/actor/model_world_size_2_rank_{rank}.pt" for rank in range(2)]
            + ["global_step_5/actor/huggingface/config.json"],
            r"a checkpoint of verl in shards of FSDP, .*`python -m verl\.model_merger merge --backend fsdp --local_dir "
            r".*/global_step_5/actor --target_dir DIR`",
        ),
        (["model_world_size_1_rank_0.pt"], r"--local_dir \S*/model --target_dir DIR`"),
        (
            ["actor/model_world_size_1_rank_0.pt", "actor/huggingface/model.safetensors"],
            r"name .*/actor/huggingface$",
        ),
    ],
)
def test_what_has_no_weights_is_refused_with_the_way_to_them(tmp_path, files, said):
    (tmp_path / "model").mkdir()
    for name in files:
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).touch()
    with pytest.raises(DataError, match=said):
        model_source(str(tmp_path / "model"), load_config(PRESET))


@pytest.mark.parametrize(
    "model", ["org/name", "org/name@main", f"name@{COMMIT}", "", "a b", "./absent", "~/absent", "x" * 300, "0"]
)
def test_what_is_no_model(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"name a directory \(\./name\), org/name@COMMIT of the hub, an s3:// prefix"):
        model_source(model, load_config(PRESET))


def test_a_model_of_the_hub_is_pinned():
    assert model_source(f"org/name@{COMMIT}", load_config(PRESET)) == {
        "kind": "hub",
        "id": "org/name",
        "revision": COMMIT,
    }


def test_a_model_in_object_storage(objects, tmp_path):
    for path in checkpoint(tmp_path / "model").iterdir():
        objects.put_file(path, f"model/{path.name}")
    assert model_source(f"{objects.uri}/model", load_config(PRESET)) == {"kind": "hub", "id": f"{objects.uri}/model"}
    with pytest.raises(DataError, match=r"name .*/model$"):
        model_source(objects.uri, load_config(PRESET))


def test_programs_get_the_results_alone(tmp_path, monkeypatch, capsys):
    """Of a model whose evaluation is in the store."""
    model, made = checkpoint(tmp_path / "model"), tmp_path / "made"
    result = {
        "mean": 0.5,
        "mean_ci": [0.25, 0.75],
        "pass_at_k": {"1": 0.5, "2": 0.625},
        "n_problems": 4,
        "n_samples": 2,
        "per_problem": {"p0": 1},
        "per_problem_maj": {"p0": 0.0},
    }
    of = {"arithmetic": result}
    made.mkdir()
    write_evaluation(
        made / "evaluation.json",
        {"layout": 1, "models": {"warm_start": of, "trained": of}, "weights": {"trained": "sha"}},
    )
    reference = Reference("s3://b/benchmark_evaluation/k/", "k", "d")

    def cached(*arguments, **more):
        plan = make_plan(*arguments, **more | {"store": None})
        return Plan({name: replace(node, reference=reference) for name, node in plan.nodes.items()})

    around = SimpleNamespace(artifact_store=lambda home: SimpleNamespace(fetch=lambda wanted, only: made))
    monkeypatch.setattr(measuring, "services", lambda home: nullcontext(around))
    monkeypatch.setattr(measuring, "make_plan", cached)
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    assert cli.main(["evaluate", str(model), str(PRESET), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (directory,) = (tmp_path / "outputs" / "evaluations").iterdir()
    assert told == {
        "model": str(model),
        "preset": "small",
        "endpoint": None,
        "weights": "sha",
        "key": "k",
        "artifact": "s3://b/benchmark_evaluation/k/",
        "directory": str(directory),
        "confidence": 0.95,
        "results": [
            {"benchmark": "arithmetic", "measure": "mean@2", "value": 0.5, "interval": [0.25, 0.75]},
            {"benchmark": "arithmetic", "measure": "pass@2", "value": 0.625, "interval": None},
        ],
    }


# --- measured -----------------------------------------------------------------------------------------------------------


def evaluate(model: str, home: Path, **environment: str) -> tuple[Path, str]:
    """Run the command; return the directory of the measurement and what was printed."""
    command = ["evaluate", model, "--preset", str(PRESET), "--set", "evaluation.max_tokens=8"]
    told = ngrpo(command, home, **environment)
    return max((home / "evaluations").iterdir()), told


def ngrpo(command: list[str], home: Path, **environment: str) -> str:
    """Run a command in a workspace, and return what was printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "NGRPO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", *command],
        env=kept | {"NGRPO_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_checkpoint_is_measured_once(tmp_path):
    model, home = checkpoint(tmp_path / "mine" / "checkpoint-30"), tmp_path / "outputs"
    began = time.monotonic()
    directory, told = evaluate(str(model), home)
    seconds = time.monotonic() - began
    again, told_again = evaluate(str(model), home)
    seconds_again = time.monotonic() - began - seconds
    print(f"measured in {seconds:.1f} s, again in {seconds_again:.1f} s")
    evaluation = read_evaluation(directory / "evaluation.json", "")
    result = evaluation["models"]["trained"]["arithmetic"]
    assert (result["n_problems"], result["n_samples"]) == (4, 2)
    assert evaluation["models"]["warm_start"] == evaluation["models"]["trained"], "one model, which started as itself"
    assert evaluation["protocols"]["trained"]["arithmetic"]["sampling"]["max_tokens"] == 8
    for text in (told, told_again, (directory / REPORT).read_text()):
        assert "under the protocol of small" in text
        assert "mean@2" in text
        assert f"{100 * result['mean']:.2f}" in text
    assert again != directory
    assert json.loads((again / "evaluation.json").read_text()) == json.loads(
        (directory / "evaluation.json").read_text()
    )
    assert not (again / "logs").exists(), "nothing ran"
    assert seconds_again < seconds / 2
    assert not (tmp_path / "outputs" / "runs").exists(), (
        "a measurement is no run, and the next plan is not compared with it"
    )


@pytest.mark.long
@pytest.mark.timeout(1800)  # eight stages in processes of their own
def test_one_model_measures_the_same_on_the_hub_in_object_storage_and_as_the_champion(database, objects, tmp_path):
    model, home = checkpoint(tmp_path / "model"), tmp_path / "outputs"
    # As `snapshot_download` leaves it, which then needs no network.
    shutil.copytree(model, tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT)
    for path in model.iterdir():
        objects.put_file(path, f"copy/{path.name}")
    crown(model, objects, tmp_path / "manifest.json")
    given = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))}
    given |= {"NGRPO_STORE": objects.uri, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    evaluations = []
    for name in (f"org/name@{COMMIT}", f"{objects.uri}/copy", "champion"):
        directory, told = evaluate(name, home, **given)
        assert f"{name} under the protocol of small" in told
        evaluations.append(read_evaluation(directory / "evaluation.json", ""))
    assert evaluations[0]["models"]["trained"]["arithmetic"]["n_problems"] == 4
    for each in evaluations:
        assert len({*each["weights"].values()}) == 1, "one model, which started as itself"
        for what in ("weights", "models", "protocols"):
            assert each[what] == evaluations[0][what], what


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_starts_from_a_directory_in_object_storage_and_evaluates_as_measured_there(objects, tmp_path):
    model, home = checkpoint(tmp_path / "model"), tmp_path / "outputs"
    for path in model.iterdir():
        objects.put_file(path, f"copy/{path.name}")
    given = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")} | {"NGRPO_STORE": objects.uri}
    there = json.dumps({"kind": "directory", "path": f"{objects.uri}/copy"})
    small = [f"model.source={there}", "training.steps=1", "warm_start.steps=0", "evaluation.max_tokens=8"]
    ngrpo(["run", str(PRESET), *(word for setting in small for word in ("--set", setting))], home, **given)
    summary = json.loads((home / "latest" / "summary.json").read_text())
    directory, _ = evaluate(f"{objects.uri}/copy", home, **given)
    measured = read_evaluation(directory / "evaluation.json", "")["models"]["trained"]["arithmetic"]
    # Without a warm start training begins from the base model.
    assert summary["evaluation"]["warm_start"]["arithmetic"]["mean"] == measured["mean"]


def crown(model: Path, objects: ObjectStore, manifest: Path) -> None:
    """Make a model the champion of the preset's registered model."""
    MlflowClient().create_experiment("ngrpo", "s3://ngrpo/mlflow")
    files = [path for path in model.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")]
    kept = manifest.parent / "registered"
    kept.mkdir()
    for path in files:
        shutil.copy(path, kept)
    entries = {f"model/{path.name}": FileEntry(file_sha256(path), path.stat().st_size) for path in files}
    manifest.write_bytes(Manifest("ngrpo_training", "key", "c", "v", {}, entries).to_bytes())
    registry = ModelRegistry(load_config(PRESET).promotion.model_name)
    version = registry.register(kept, manifest, digest=model_digest(kept), tags={})
    registry.set_alias(CHAMPION, str(version.version))
