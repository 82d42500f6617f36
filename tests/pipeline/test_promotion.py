"""Promotion against a real registry: the first, a better, a worse, the same and an incomparable candidate."""

import hashlib
import json
import shutil
from pathlib import Path

import mlflow.artifacts
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ngrpo.config import ModelPromotionConfig, PromotionConfig
from ngrpo.errors import DataError, TrackingError
from ngrpo.stages.model_promotion import model_digest, run
from ngrpo.tracking.registry import CHALLENGER, CHAMPION, DIGEST, PREVIOUS_CHAMPION, ModelRegistry
from ngrpo.tracking.runs import parent_run, stage_run

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]

NAME = "test-model"
PROBLEMS, SAMPLES = 60, 8
MIDDLE = [4] * PROBLEMS


@pytest.fixture
def registry(database, tmp_path):
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    return ModelRegistry(NAME)


def write_manifest(directory: Path, key: str, inputs: dict[str, str]) -> dict:
    files = {
        str(path.relative_to(directory)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"stage": "…", "key": key, "config_digest": "c", "code_version": "v", "inputs": inputs, "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def candidate(directory: Path, name: str, counts: list[int], *, weights=None, problems=None, samples=SAMPLES, of=None):
    """Write the artifacts of a candidate that solved `counts[i]` samples of problem i; return the stage's inputs."""
    place = directory / f"{name}-{len(list(directory.glob('*')))}"
    trained, evaluation = place / "trained", place / "evaluation"
    (trained / "model" / "more").mkdir(parents=True)
    (trained / "model" / "model.safetensors").write_text(weights or name)
    (trained / "model" / "more" / "config.json").write_text("{}")
    write_manifest(trained, f"key-{name}", {"dataset": "key-data", "warm_start": "key-warm"})
    evaluation.mkdir()
    names = problems or [f"p{number}" for number in range(len(counts))]
    result = {"per_problem": dict(zip(names, counts, strict=True)), "n_samples": samples}
    (evaluation / "evaluation.json").write_text(json.dumps({"models": {"trained": {"arithmetic": result}}}))
    write_manifest(evaluation, f"evaluation-of-{place.name}", {"trained": of or f"key-{name}"})
    return {"trained": trained, "evaluation": evaluation}


def decide(inputs, output: Path, benchmark="arithmetic", **gate) -> dict:
    """Run the stage."""
    output.mkdir(exist_ok=True)
    config = PromotionConfig(model_name=NAME, benchmark=benchmark, **gate)
    run(ModelPromotionConfig(seed=0, promotion=config), inputs, output, output)
    return json.loads((output / "promotion.json").read_text())


@pytest.fixture
def promote(registry, tmp_path):
    """Make a candidate and run the stage on it."""

    def function(name: str, counts: list[int], *, gate=(), **options) -> dict:
        (tmp_path / "inputs").mkdir(exist_ok=True)
        return decide(candidate(tmp_path / "inputs", name, counts, **options), tmp_path / "output", **dict(gate))

    return function


def holder(registry, alias: str = CHAMPION) -> str | None:
    version = registry.by_alias(alias)
    return None if version is None else version.tags["ngrpo.key"]


# --- decisions ----------------------------------------------------------------------------------------------------------


def test_the_first_candidate_becomes_champion(registry, promote, tmp_path):
    assert registry.by_alias(CHAMPION) is None
    decision = promote("first", MIDDLE)
    assert decision == {
        "decision": "promoted",
        "reason": "it is the first",
        "model": NAME,
        "version": 1,
        "alias": CHAMPION,
        "champion_version": None,
        "comparison": None,
    }
    assert json.loads((tmp_path / "output" / "metrics.json").read_text()) == {"promoted": 1.0, "version": 1.0}
    tags = registry.by_alias(CHAMPION).tags
    assert tags["ngrpo.input.dataset"] == "key-data"
    assert tags["ngrpo.decision"] == "promoted"


def test_a_better_candidate_takes_over_and_the_old_champion_is_remembered(registry, promote, tmp_path):
    promote("first", MIDDLE)
    decision = promote("better", [6] * PROBLEMS)
    assert (decision["decision"], decision["version"], decision["champion_version"]) == ("promoted", 2, 1)
    assert decision["comparison"]["gain"] == pytest.approx(25.0)
    assert decision["comparison"]["n_problems"] == PROBLEMS
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["gain"] == pytest.approx(25.0)
    assert holder(registry) == "key-better"
    assert holder(registry, PREVIOUS_CHAMPION) == "key-first"
    assert json.loads(registry.by_alias(CHAMPION).tags["ngrpo.comparison"]) == decision["comparison"]


@pytest.mark.parametrize(
    ("counts", "gate"),
    [
        ([3] * PROBLEMS, {}),
        (MIDDLE, {}),
        # Better on one problem alone: most draws of the bootstrap do not hold it, so the lower bound is 0.
        ([8, *MIDDLE[1:]], {}),
        # 1.25 points better on average, but half of the problems say the opposite.
        ([4 + (3 if number % 2 else -3) for number in range(PROBLEMS - 2)] + [7, 7], {}),
        ([6] * PROBLEMS, {"min_gain": 30.0}),
    ],
    ids=["worse", "equal", "one problem", "not significant", "less than the minimal gain"],
)
def test_a_candidate_that_is_not_shown_to_be_better_is_kept_as_challenger(registry, promote, counts, gate):
    promote("first", MIDDLE)
    decision = promote("second", counts, gate=gate)
    assert (decision["decision"], decision["alias"]) == ("kept", CHALLENGER)
    assert holder(registry) == "key-first"
    assert holder(registry, CHALLENGER) == "key-second"


def test_the_bound_is_one_sided(registry, promote):
    promote("first", MIDDLE)
    # 4.6 % of the draws hold none of the three problems on which it is better: more than the tail of a two-sided interval.
    assert promote("second", [5, 5, 5, *MIDDLE[3:]])["decision"] == "promoted"


def test_a_slightly_worse_candidate_passes_a_gate_that_allows_it(registry, promote):
    promote("first", MIDDLE)
    counts = [3, 3, *MIDDLE[2:]]
    assert promote("second", counts, gate={"min_gain": -2.0})["decision"] == "promoted"


def test_the_champion_itself_changes_nothing(registry, promote):
    promote("first", MIDDLE)
    decision = promote("first", MIDDLE)
    assert (decision["decision"], decision["version"], decision["alias"]) == ("unchanged", 1, CHAMPION)
    # The same weights under another key, for example after an edit that changed no number.
    assert promote("again", MIDDLE, weights="first")["decision"] == "unchanged"
    assert len(registry.versions()) == 1
    assert registry.by_alias(PREVIOUS_CHAMPION) is None


def test_a_candidate_that_comes_again_is_not_registered_twice_and_may_win_by_another_gate(registry, promote):
    promote("first", MIDDLE)
    better = [6] * PROBLEMS
    assert promote("second", better, gate={"min_gain": 30.0})["version"] == 2
    decision = promote("second", better)
    assert (decision["decision"], decision["version"]) == ("promoted", 2)
    assert len(registry.versions()) == 2
    assert registry.by_alias(CHALLENGER) is None, "a champion is no challenger"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"problems": [f"q{number}" for number in range(PROBLEMS)]}, "on other problems of arithmetic"),
        ({"samples": 16}, "with 8 samples a problem, not 16"),
    ],
)
def test_what_cannot_be_compared_is_kept_until_the_champion_is_evaluated_alike(registry, promote, changed, reason):
    promote("first", MIDDLE)
    decision = promote("second", [8] * PROBLEMS, **changed)
    assert (decision["decision"], decision["comparison"]) == ("kept", None)
    assert reason in decision["reason"]
    assert holder(registry) == "key-first"
    assert promote("first", MIDDLE, **changed)["decision"] == "unchanged"
    assert promote("second", [8] * PROBLEMS, **changed)["decision"] == "promoted"


def test_a_champion_that_was_deleted_is_no_champion(registry, promote):
    promote("first", MIDDLE)
    MlflowClient().delete_model_version(NAME, "1")
    assert registry.by_alias(CHAMPION) is None
    decision = promote("worse", [1] * PROBLEMS)
    assert (decision["decision"], decision["champion_version"]) == ("promoted", None)
    assert decision["reason"] == "version 1, the last champion, was deleted"


@pytest.mark.parametrize("lost", ["model/model.safetensors", "manifest.json", "."])
def test_a_champion_without_its_files_is_replaced(registry, promote, tmp_path, lost):
    promote("first", MIDDLE)
    (files,) = (tmp_path / "artifacts" / "models").glob("*/artifacts")
    shutil.rmtree(files) if lost == "." else (files / lost).unlink()
    decision = promote("worse", [1] * PROBLEMS)
    assert (decision["decision"], decision["champion_version"]) == ("promoted", 1)
    assert "the files of the champion, version 1, are gone" in decision["reason"]


def test_a_version_without_its_files_is_registered_anew(registry, promote, tmp_path):
    promote("first", MIDDLE)
    (weights,) = (tmp_path / "artifacts" / "models").glob("*/artifacts/model/model.safetensors")
    weights.write_text("cut")
    decision = promote("first", MIDDLE)
    assert (decision["decision"], decision["version"]) == ("promoted", 2)
    assert registry.missing(registry.by_alias(CHAMPION)) == []


def test_a_champion_that_was_not_made_here_is_not_touched(registry, promote, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    client = MlflowClient()
    client.create_registered_model(NAME)
    client.create_model_version(NAME, source=str(tmp_path / "elsewhere"))
    client.set_registered_model_alias(NAME, CHAMPION, "1")
    decision = promote("second", [8] * PROBLEMS)
    assert (decision["decision"], decision["champion_version"]) == ("kept", 1)
    assert "the champion was not evaluated on arithmetic" in decision["reason"]


# --- inputs ------------------------------------------------------------------------------------------------------------


def test_the_evaluation_of_another_model_is_refused(registry, promote):
    with pytest.raises(DataError, match="is of the model key-other, not of key-first"):
        promote("first", MIDDLE, of="key-other")
    assert registry.versions() == []


def test_a_benchmark_that_was_not_evaluated_is_refused(registry, promote):
    with pytest.raises(DataError, match=r"promotion\.benchmark='algebra' was not evaluated"):
        promote("first", MIDDLE, gate={"benchmark": "algebra"})


def test_an_input_that_is_no_artifact_is_refused(registry, tmp_path):
    inputs = candidate(tmp_path, "first", MIDDLE)
    (inputs["evaluation"] / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        decide(inputs, tmp_path / "output")


# --- the files of a version --------------------------------------------------------------------------------------------


def test_a_champion_in_object_storage_is_the_model_that_was_evaluated(database, objects, tmp_path):
    inputs = candidate(tmp_path, "real", MIDDLE)
    shutil.rmtree(inputs["trained"] / "model")
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(inputs["trained"] / "model")
    evaluated = model_digest(write_manifest(inputs["trained"], "key-real", {"dataset": "key-data"})["files"])
    whole = parent_run("ngrpo", "whole", {}, f"{objects.uri}/mlflow")
    with whole as parent, stage_run("model_promotion", parent.run_id, {}) as stage:
        decide(inputs, tmp_path / "output")

    download = Path(
        mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion", dst_path=str(tmp_path / "download"))
    )
    again = AutoModelForCausalLM.from_pretrained(download / "model")
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    assert not [path for path in download.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".bin"}]
    version = ModelRegistry(NAME).by_alias(CHAMPION)
    (download / "manifest.json").unlink()
    assert version.tags[DIGEST] == evaluated == model_digest(write_manifest(download, "any", {})["files"])
    assert version.run_id == stage.run_id

    logged_model = version.source.removeprefix("models:/")
    objects.delete(f"mlflow/models/{logged_model}/artifacts/model/model.safetensors")
    assert ModelRegistry(NAME).missing(version) == ["model/model.safetensors"]


def test_object_storage_that_fails_is_not_taken_for_lost_files(
    database, s3_environment, objects, tmp_path, monkeypatch
):
    MlflowClient().create_experiment("ngrpo", f"{objects.uri}/mlflow")
    decide(candidate(tmp_path, "first", MIDDLE), tmp_path / "output")
    registry = ModelRegistry(NAME)
    champion = registry.by_alias(CHAMPION)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    for question in (registry.missing, registry.evaluation):
        with pytest.raises(TrackingError, match="object storage of MLflow: Could not connect to the endpoint URL"):
            question(champion)
    with pytest.raises(TrackingError, match="Could not connect to the endpoint URL"):
        decide(candidate(tmp_path, "second", [1] * PROBLEMS), tmp_path / "output")
    assert len(registry.versions()) == 1
