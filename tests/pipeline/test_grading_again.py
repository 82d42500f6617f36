"""A champion from other graders is graded again from its stored samples, and stays comparable."""

import json
import re

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from measuring import OLD, measured, table
from ngrpo.errors import StoreError
from ngrpo.evaluation.protocol import differ_in_graders_alone, grader_version, is_grader_source
from ngrpo.stages import opponent
from ngrpo.stages.keys import source_files
from ngrpo.stages.model_promotion import decide_and_crown
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from promoting import NAME, decide, settings, state

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


@pytest.fixture
def promotions(database, objects, tmp_path, monkeypatch):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    return Promotions.in_store(objects.uri, NAME)


@pytest.fixture
def promote(promotions, store, tmp_path):
    """Measure a candidate and run the stage on it."""

    def function(name: str, plain: int, spelled: int = 0, **options) -> dict:
        return decide(measured(tmp_path, store, name, plain, spelled, **options), tmp_path / "output")

    return function


def by_hand(promotions, number: str, **options) -> dict:
    version = promotions.registry.version(number)
    evaluation = json.loads(promotions.registry.evaluation(version))
    return decide_and_crown(settings().promotion, promotions, version, evaluation, 0, **options)


def test_a_champion_of_other_graders_is_graded_again_without_generating(promotions, promote, tmp_path, capsys):
    # By the graders of then, 1 of 4 samples is right; by those of now, 3 are.
    assert promote("first", 1, 2, grader=OLD)["decision"] == "promoted"
    assert not (tmp_path / "output" / "champion_evaluation.json").exists()
    capsys.readouterr()
    decision = promote("second", 2)
    comparison = decision["comparison"]
    assert (decision["decision"], comparison["candidate"], comparison["champion"]) == ("kept", 50.0, 75.0)
    assert comparison["graded_again"] == {"the champion": {"samples": 80, "changed": 40}}
    told = "80 stored samples of the champion were graded again, for its graders were others: 40 verdicts changed"
    assert decision["reason"].endswith(told)
    said = capsys.readouterr().out
    assert "grading the stored samples of the champion, version 1, again: other graders judged them\n" in said
    assert told in said
    assert told in (tmp_path / "output" / "model_card.md").read_text()
    version = promotions.registry.version("2")
    assert told in version.tags["ngrpo.reason"]
    assert json.loads(version.tags["ngrpo.comparison"]) == comparison
    compared = json.loads((tmp_path / "output" / "champion_evaluation.json").read_text())
    assert compared["models"]["trained"]["arithmetic"]["mean"] == 0.75
    assert set(compared["models"]["trained"]["arithmetic"]["pass_at_k"]) == {"1", "4"}
    assert compared["protocols"]["trained"]["arithmetic"]["grader"] == grader_version()
    stored = json.loads(promotions.registry.evaluation(promotions.registry.version("1")))
    assert stored["models"]["trained"]["arithmetic"]["mean"] == 0.25, "the registry keeps what was found then"
    # Again for the next candidate, which is better by the same measure.
    decision = promote("third", 4)
    assert (decision["decision"], decision["comparison"]["gain"]) == ("promoted", pytest.approx(25.0))
    decision = promote("fourth", 4)
    assert "graded_again" not in decision["comparison"]
    assert "graded again" not in decision["reason"]


LOSSES = {
    "gone": "its samples are gone",
    "an object is gone": r"its samples in s3://\S+ are damaged \(samples/trained/arithmetic\.parquet: missing\)",
    "an object was changed": r"its samples in s3://\S+ are damaged \(samples/trained/arithmetic\.parquet: .*\)",
    "of another evaluation": r"arithmetic\.parquet does not hold the samples that the evaluation counts",
    "no samples": r"arithmetic\.parquet is not a table of samples",
    "without gold answers": r"the gold answers that the samples of arithmetic were graded with are unknown",
}


@pytest.mark.parametrize(("loss", "reason"), LOSSES.items(), ids=LOSSES)
def test_without_its_samples_the_champion_stays_until_a_person_decides(
    promotions, promote, store, objects, tmp_path, loss, reason
):
    known = {"answers": loss != "without gold answers"}
    promote("first", 1, 2, grader=OLD, **known)
    key = promotions.registry.version("1").tags["ngrpo.evaluation_key"]
    found = store.find("benchmark_evaluation", key)
    place = f"benchmark_evaluation/{key}/samples/trained/arithmetic.parquet"
    if loss == "gone":
        store.discard(found)
    elif loss == "an object is gone":
        objects.delete(place)
    elif loss == "an object was changed":
        objects.put_bytes(objects.get_bytes(place)[::-1], place)
    elif loss in ("of another evaluation", "no samples"):
        store.discard(found)
        payload = tmp_path / "other" / "samples" / "trained"
        payload.mkdir(parents=True)
        if loss == "no samples":
            (payload / "arithmetic.parquet").write_text("no Parquet")
        else:
            pq.write_table(table(2, 0, OLD), payload / "arithmetic.parquet")
        store.publish("benchmark_evaluation", key, tmp_path / "other", config_digest="c", code_version="v", inputs={})
    decision = promote("second", 4, **known)
    assert (decision["decision"], decision["comparison"], decision["champion_version"]) == ("kept", None, 1)
    assert decision["reason"].startswith("the champion, version 1, was graded by other graders, and ")
    assert re.search(reason, decision["reason"])
    assert "run the pipeline that made it again" in decision["reason"]
    assert "`ngrpo promote 2 --override REASON`" in decision["reason"]
    assert state(promotions.registry) == {"champion": "1", "challenger": "2"}


def test_a_store_that_fails_says_nothing_about_the_samples(promotions, promote, monkeypatch):
    promote("first", 1, 2, grader=OLD)

    def down(*_, **__):
        raise StoreError("object store: cannot be reached")

    monkeypatch.setattr(ArtifactStore, "fetch", down)
    with pytest.raises(StoreError, match="cannot be reached"):
        promote("second", 4)
    assert state(promotions.registry) == {"champion": "1"}


def test_a_candidate_of_other_graders_is_graded_again_by_hand(promotions, promote, tmp_path, monkeypatch, capsys):
    promote("old", 0, 4, grader=OLD)
    promote("new", 2)
    assert state(promotions.registry) == {"champion": "2", "challenger": "1"}
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "1000")
    capsys.readouterr()
    assert cli.main(["promote", "1", "tiny", "--set", f"promotion.model_name={NAME}"]) == 0
    said = capsys.readouterr().out
    assert "promoted: mean@4 on arithmetic is 100.00 against the champion's 50.00" in said
    assert (
        "80 stored samples of the candidate were graded again, for its graders were others: 80 verdicts changed" in said
    )
    assert state(promotions.registry) == {"champion": "1", "previous_champion": "2"}


def test_two_of_the_same_old_graders_are_compared_as_they_are(promotions, promote):
    promote("first", 1, 2, grader=OLD)
    decision = promote("second", 2, grader=OLD)
    assert (decision["decision"], decision["comparison"]["champion"]) == ("promoted", 25.0)
    assert "graded_again" not in decision["comparison"]


def test_a_champion_that_was_made_while_another_was_graded_is_met_instead(promotions, promote, monkeypatch):
    promote("first", 1, 2, grader=OLD)
    promote("better", 3, 1, grader=OLD)
    promote("third", 2)
    promotions.rollback("to begin with")
    assert state(promotions.registry) == {"champion": "1"}
    grade, met = opponent.grade_again, []

    def slowly(evaluation, *arguments, **options):
        met.append(evaluation["models"]["trained"]["arithmetic"]["mean"])
        if len(met) == 1:
            by_hand(Promotions.in_store(promotions.artifacts, NAME), "2", override="it was faster")
        return grade(evaluation, *arguments, **options)

    monkeypatch.setattr(opponent, "grade_again", slowly)
    decision = by_hand(promotions, "3")
    assert met == [0.25, 0.75]
    assert (decision["decision"], decision["champion_version"]) == ("kept", 2)
    assert decision["comparison"]["champion"] == 100.0
    assert state(promotions.registry)["champion"] == "2"


def test_graders_alone_may_differ():
    old, new = ({"problems": "p", "revision": None, "grader": grader} for grader in "ab")
    assert differ_in_graders_alone(old, new)
    assert not differ_in_graders_alone(old, old)
    assert not differ_in_graders_alone(old, new | {"problems": "q"})
    assert not differ_in_graders_alone(None, new)


def test_promotion_reaches_the_graders():
    """Otherwise the plan could not report that they changed (see `test_plan.py`)."""
    assert any(is_grader_source(path) for path in source_files("ngrpo.stages.model_promotion"))
    assert not is_grader_source("evaluation/grading.py")
