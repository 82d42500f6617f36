"""Promotion against a real registry: the first, a better, a worse, the same and an incomparable candidate."""

import json

import mlflow.artifacts
import pytest

from ngrpo.config import ModelPromotionConfig, PromotionConfig
from ngrpo.stages.model_promotion import run
from ngrpo.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, ModelRegistry

pytestmark = pytest.mark.pipeline
PROBLEMS, SAMPLES = 60, 8


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)  # the default experiment of a bare database keeps its artifacts in the current directory
    return ModelRegistry("test-model")


def promote(tmp_path, name: str, counts: list[int], *, problems=None, samples=SAMPLES, **gate) -> dict:
    """Run the stage on a candidate that solved `counts[i]` samples of problem i."""
    trained, evaluation, output = (tmp_path / name / part for part in ("trained", "evaluation", "output"))
    for directory in (trained / "model", evaluation, output):
        directory.mkdir(parents=True, exist_ok=True)
    (trained / "model" / "model.safetensors").write_text(name)
    manifest = {
        "key": f"key-{name}",
        "code_version": "v",
        "inputs": {"dataset": "key-data"},
        "files": {"model/model.safetensors": {"sha256": name, "size": len(name)}},
    }
    (trained / "manifest.json").write_text(json.dumps(manifest))
    names = problems or [f"p{number}" for number in range(len(counts))]
    result = {"per_problem": dict(zip(names, counts, strict=True)), "n_samples": samples}
    (evaluation / "evaluation.json").write_text(json.dumps({"models": {"trained": {"arithmetic": result}}}))
    config = PromotionConfig(model_name="test-model", benchmark="arithmetic", **gate)
    run(
        ModelPromotionConfig(seed=0, promotion=config),
        {"trained": trained, "evaluation": evaluation},
        output,
        tmp_path,
    )
    return json.loads((output / "promotion.json").read_text())


def champion(registry) -> str | None:
    version = registry.by_alias(CHAMPION)
    return None if version is None else version.tags["ngrpo.key"]


MIDDLE = [4] * PROBLEMS


def test_the_first_candidate_becomes_champion_and_can_be_downloaded(registry, tmp_path):
    decision = promote(tmp_path, "first", MIDDLE)
    assert (decision["decision"], decision["version"], decision["alias"]) == ("promoted", 1, CHAMPION)
    files = tmp_path / "download"
    mlflow.artifacts.download_artifacts("models:/test-model@champion", dst_path=str(files))
    assert (files / "model" / "model.safetensors").read_text() == "first"
    version = registry.by_alias(CHAMPION)
    assert version.tags["ngrpo.dataset_key"] == "key-data"
    assert version.tags["ngrpo.decision"] == "promoted"
    assert not [path for path in files.rglob("*") if path.suffix in {".pkl", ".pickle", ".bin"}]


def test_a_better_candidate_takes_over_and_the_old_champion_is_remembered(registry, tmp_path):
    promote(tmp_path, "first", MIDDLE)
    decision = promote(tmp_path, "better", [6] * PROBLEMS)
    assert decision["decision"] == "promoted"
    assert decision["comparison"]["difference"] == pytest.approx(25.0)
    assert champion(registry) == "key-better"
    assert registry.by_alias(PREVIOUS_CHAMPION).tags["ngrpo.key"] == "key-first"


@pytest.mark.parametrize(
    ("counts", "gate"),
    [
        ([3] * PROBLEMS, {}),
        ([4] * PROBLEMS, {}),
        # 1.25 points better on average, but half of the problems say the opposite
        ([4 + (3 if number % 2 else -3) for number in range(PROBLEMS - 2)] + [7, 7], {}),
        ([6] * PROBLEMS, {"min_gain": 30.0}),
    ],
    ids=["worse", "equal", "not significant", "less than the minimal gain"],
)
def test_a_candidate_that_is_not_shown_to_be_better_is_kept_as_challenger(registry, tmp_path, counts, gate):
    promote(tmp_path, "first", MIDDLE)
    decision = promote(tmp_path, "second", counts, **gate)
    assert decision["decision"] == "kept"
    assert champion(registry) == "key-first"
    assert registry.by_alias(CHALLENGER).tags["ngrpo.key"] == "key-second"


def test_the_champion_itself_changes_nothing(registry, tmp_path):
    promote(tmp_path, "first", MIDDLE)
    decision = promote(tmp_path, "first", MIDDLE)
    assert (decision["decision"], decision["version"]) == ("unchanged", 1)
    assert len(registry.versions()) == 1


@pytest.mark.parametrize("difference", ["problems", "samples"])
def test_what_cannot_be_compared_is_not_promoted(registry, tmp_path, difference):
    promote(tmp_path, "first", MIDDLE)
    changed = {"problems": [f"q{number}" for number in range(PROBLEMS)]} if difference == "problems" else {"samples": 16}
    decision = promote(tmp_path, "second", [8] * PROBLEMS, **changed)
    assert decision["decision"] == "kept"
    assert decision["comparison"] is None
    assert champion(registry) == "key-first"


def test_a_champion_that_was_deleted_is_no_champion(registry, tmp_path):
    promote(tmp_path, "first", MIDDLE)
    registry._client.delete_model_version("test-model", "1")
    assert champion(registry) is None
    assert promote(tmp_path, "worse", [1] * PROBLEMS)["decision"] == "promoted"
