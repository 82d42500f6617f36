"""Promotion against a real registry and a real lock: the first, a better, a worse, the same and an incomparable candidate."""

import json
import shutil
from pathlib import Path

import mlflow.artifacts
import pytest
import torch
import yaml
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ngrpo.errors import DataError, StoreError, TrackingError
from ngrpo.stages.context import Context
from ngrpo.stages.model_promotion import run
from ngrpo.storage.digest import model_digest
from ngrpo.tracking.mlflow_runs import parent_run, stage_run
from ngrpo.tracking.model_registry import CHALLENGER, CHAMPION, DIGEST, PREVIOUS_CHAMPION, ModelRegistry
from ngrpo.tracking.promotions import Promotions
from promoting import MIDDLE, NAME, PROBLEMS, candidate, decide, settings, state, write_manifest

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


@pytest.fixture
def promotions(database, objects, tmp_path, monkeypatch):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    return Promotions.in_store(objects.uri, NAME)


@pytest.fixture
def registry(promotions):
    return promotions.registry


@pytest.fixture
def promote(registry, tmp_path):
    """Make a candidate and run the stage on it."""

    def function(name: str, counts: list[int], *, gate=(), **options) -> dict:
        return decide(candidate(tmp_path / "inputs", name, counts, **options), tmp_path / "output", **dict(gate))

    return function


def holder(registry, alias: str = CHAMPION) -> str | None:
    version = registry.by_alias(alias)
    return None if version is None else version.tags["ngrpo.key"]


# --- decisions ----------------------------------------------------------------------------------------------------------


def test_the_first_candidate_becomes_champion_if_it_beats_what_it_started_from(registry, promote, tmp_path):
    assert registry.by_alias(CHAMPION) is None
    assert promote("idle", MIDDLE, start=MIDDLE)["decision"] == "kept"
    assert state(registry) == {CHALLENGER: "1"}
    decision = promote("first", MIDDLE)
    assert (decision["decision"], decision["version"], decision["alias"]) == ("promoted", 2, CHAMPION)
    assert (decision["champion_version"], decision["comparison"]["against"]) == (None, "the warm start")
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert metrics == {"promoted": 1.0, "version": 2.0, "gain": 37.5, "gain_lower_bound": 37.5}
    tags = registry.by_alias(CHAMPION).tags
    assert tags["ngrpo.input.dataset"] == "key-data"
    assert tags["ngrpo.decision"] == "promoted"


def test_a_version_names_the_version_that_its_run_started_from(registry, objects, tmp_path):
    source = {"kind": "registered", "name": NAME, "version": 7, "id": "s3://bucket/models/m-7", "digest": "0" * 64}
    config = settings()
    config = config.model_copy(update={"model": config.model.model_validate({"source": source})})
    (tmp_path / "output").mkdir()
    run(
        config,
        candidate(tmp_path / "inputs", "first", MIDDLE),
        tmp_path / "output",
        Context(tmp_path, store=objects.uri),
    )
    assert registry.by_alias(CHAMPION).tags["ngrpo.base_model"] == f"models:/{NAME}/7"


def test_a_better_candidate_takes_over_and_the_old_champion_is_remembered(registry, promote, tmp_path):
    promote("first", MIDDLE)
    promote("first", MIDDLE)
    met = tmp_path / "output" / "champion_evaluation.json"
    assert not met.exists(), "it has met no champion but itself"
    decision = promote("better", [6] * PROBLEMS)
    assert (decision["decision"], decision["version"], decision["champion_version"]) == ("promoted", 2, 1)
    assert decision["comparison"]["gain"] == pytest.approx(25.0)
    assert decision["comparison"]["n_problems"] == PROBLEMS
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["gain"] == pytest.approx(25.0)
    theirs = json.loads(met.read_text())["models"]["trained"]["arithmetic"]
    assert set(theirs["per_problem"].values()) == {MIDDLE[0]}
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
        ({"problems": "other"}, "differ in their problems or gold answers"),
        ({"revision": "other"}, "differ in their data revision"),
        ({"prompts": "other"}, "differ in their prompts"),
        ({"samples": 16, "sampling": {"samples": 16}}, "differ in their sampling settings"),
        ({"grader": "other"}, "was graded by other graders, and its samples are gone"),
        ({"prefix": "q"}, "have different problems"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(registry, promote, changed, reason):
    promote("first", MIDDLE)
    decision = promote("second", [8] * PROBLEMS, **changed)
    assert (decision["decision"], decision["comparison"]) == ("kept", None)
    assert reason in decision["reason"]
    assert holder(registry) == "key-first"
    assert promote("first", MIDDLE, **changed)["decision"] == "unchanged"
    assert promote("second", [8] * PROBLEMS, **changed)["decision"] == "promoted"


@pytest.mark.parametrize(("others", "decision"), [([3] * PROBLEMS, "kept"), ([4] * PROBLEMS, "promoted")])
def test_a_loss_on_another_benchmark_is_tolerated_up_to_a_limit(promote, others, decision):
    gate = {"tolerated_regression": {"words": 5.0}}
    promote("first", MIDDLE, others={"words": MIDDLE})
    verdict = promote("second", [6] * PROBLEMS, others={"words": others}, gate=gate)
    assert verdict["decision"] == decision
    assert verdict["comparison"]["regressions"]["words"]["gain"] == pytest.approx(100 * (others[0] - 4) / 8)
    assert ("on words it may have lost up to 12.50 points, more than the 5.00" in verdict["reason"]) == (
        decision == "kept"
    )


def test_another_statistic_may_decide(promote):
    # Fewer samples are right, but on more problems one is.
    spread, focused = [1] * PROBLEMS, [8, 8, 8, 0] * (PROBLEMS // 4)
    promote("first", focused, start=[0] * PROBLEMS)
    assert promote("second", spread)["decision"] == "kept"
    verdict = promote("second", spread, gate={"statistic": "pass@8"})
    assert verdict["decision"] == "promoted"
    assert (verdict["comparison"]["candidate"], verdict["comparison"]["champion"]) == (100.0, 75.0)
    assert promote("first", focused, gate={"statistic": "maj"})["comparison"]["gain"] == pytest.approx(75.0)


def test_a_champion_that_was_deleted_is_no_champion(registry, promote):
    promote("first", MIDDLE)
    MlflowClient().delete_model_version(NAME, "1")
    assert state(registry) == {}
    assert promote("idle", [1] * PROBLEMS)["decision"] == "kept", "nobody is promoted for want of an opponent"
    decision = promote("second", [2] * PROBLEMS)
    assert (decision["decision"], decision["champion_version"]) == ("promoted", None)


@pytest.mark.parametrize("lost", ["model/model.safetensors", "manifest.json", "."])
def test_a_champion_without_its_files_stays_until_a_person_decides(registry, promote, tmp_path, lost):
    promote("first", MIDDLE)
    (files,) = (tmp_path / "artifacts" / "models").glob("*/artifacts")
    shutil.rmtree(files) if lost == "." else (files / lost).unlink()
    decision = promote("better", [8] * PROBLEMS)
    assert (decision["decision"], decision["champion_version"]) == ("kept", 1)
    assert "the files of the champion, version 1, are gone" in decision["reason"]
    assert "`ngrpo promote 2 --override REASON`" in decision["reason"]


@pytest.mark.parametrize("damage", ["cut", "first"[::-1]], ids=["shorter", "other bytes of the same size"])
def test_a_version_whose_files_changed_is_registered_anew(registry, promote, tmp_path, damage):
    promote("first", MIDDLE)
    (weights,) = (tmp_path / "artifacts" / "models").glob("*/artifacts/model/model.safetensors")
    weights.write_text(damage)
    promote("first", MIDDLE)
    (new, old) = registry.versions()
    assert registry.stored_digest(new) == new.tags[DIGEST] == old.tags[DIGEST] != registry.stored_digest(old)


def test_a_champion_that_was_not_made_here_is_not_touched(registry, promote, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    client = MlflowClient()
    client.create_registered_model(NAME)
    client.create_model_version(NAME, source=str(tmp_path / "elsewhere"))
    client.set_registered_model_alias(NAME, CHAMPION, "1")
    decision = promote("second", [8] * PROBLEMS)
    assert (decision["decision"], decision["champion_version"]) == ("kept", 1)
    assert "the champion, version 1, has no evaluation" in decision["reason"]


# --- inputs ------------------------------------------------------------------------------------------------------------


def test_the_evaluation_of_another_model_is_refused(registry, promote):
    with pytest.raises(DataError, match="is of the model key-other, not of key-first"):
        promote("first", MIDDLE, of="key-other")
    assert registry.versions() == []


def test_a_benchmark_that_was_not_evaluated_is_refused(registry, promote):
    with pytest.raises(DataError, match=r"promotion\.benchmark='algebra' was not evaluated"):
        promote("first", MIDDLE, gate={"benchmark": "algebra"})


def test_the_evaluation_of_other_weights_under_the_same_key_is_refused(registry, tmp_path):
    inputs = candidate(tmp_path / "inputs", "first", MIDDLE)
    (inputs["trained"] / "model" / "model.safetensors").write_text("trained again")
    with pytest.raises(DataError, match=r"is of other weights .* `ngrpo rerun benchmark_evaluation`"):
        decide(inputs, tmp_path / "output")
    assert registry.versions() == []


def test_without_an_object_store_there_is_no_lock_and_no_promotion(registry, promote, monkeypatch):
    monkeypatch.delenv("NGRPO_STORE")
    with pytest.raises(StoreError, match="NGRPO_STORE is not set: the lock"):
        promote("first", MIDDLE)


def test_the_lock_of_another_store_is_refused(registry, promote, objects, monkeypatch):
    promote("first", MIDDLE)
    monkeypatch.setenv("NGRPO_STORE", f"{objects.uri}/another")
    with pytest.raises(TrackingError, match=r"guarded by the lock s3://.* delete the model's tag ngrpo\.promotions"):
        promote("second", [8] * PROBLEMS)
    assert holder(registry) == "key-first"


def test_an_input_that_is_no_artifact_is_refused(registry, tmp_path):
    inputs = candidate(tmp_path / "inputs", "first", MIDDLE)
    (inputs["evaluation"] / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        decide(inputs, tmp_path / "output")


# --- the files of a version --------------------------------------------------------------------------------------------


def test_a_champion_in_object_storage_is_the_model_that_was_evaluated(database, objects, tmp_path, monkeypatch):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    inputs = candidate(tmp_path / "inputs", "real", MIDDLE)
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
    write_manifest(inputs["trained"], "key-real", {"dataset": "key-data"})
    evaluated = model_digest(inputs["trained"] / "model")
    evaluation = inputs["evaluation"] / "evaluation.json"
    evaluation.write_text(json.dumps(json.loads(evaluation.read_text()) | {"weights": {"trained": evaluated}}))
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
    assert version.tags[DIGEST] == evaluated == model_digest(download / "model")
    card = (download / "README.md").read_text()
    assert card == (tmp_path / "output" / "model_card.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"][0]["value"] == 50.0
    for fact in (
        "version 1",
        "N-GRPO",
        "| arithmetic | trained | 50.0 [50.0, 50.0] |",
        "**promoted**",
        "key-data",
        evaluated,
    ):
        assert fact in card
    assert version.run_id == stage.run_id

    logged_model = version.source.removeprefix("models:/")
    objects.delete(f"mlflow/models/{logged_model}/artifacts/model/model.safetensors")
    assert ModelRegistry(NAME).missing(version) == ["model/model.safetensors"]


def test_object_storage_that_fails_is_not_taken_for_lost_files(
    database, s3_environment, objects, tmp_path, monkeypatch
):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", f"{objects.uri}/mlflow")
    decide(candidate(tmp_path / "inputs", "first", MIDDLE), tmp_path / "output")
    registry = ModelRegistry(NAME)
    champion = registry.by_alias(CHAMPION)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    for question in (registry.missing, registry.evaluation):
        with pytest.raises(TrackingError, match="object storage of MLflow: Could not connect to the endpoint URL"):
            question(champion)
    with pytest.raises(TrackingError, match="Could not connect to the endpoint URL"):
        decide(candidate(tmp_path / "inputs", "second", [1] * PROBLEMS), tmp_path / "output")
    assert len(registry.versions()) == 1
