"""A model by name: champion, challenger, version, run. Found models are verified, and a missing one is one line with a cure."""

import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ngrpo.config import load_config
from ngrpo.errors import ConfigError, StoreError, TrackingError
from ngrpo.storage.digest import model_digest
from ngrpo.tracking.model_registry import DIGEST, ModelRegistry
from ngrpo_kfp.pipelines.cli import deployment
from ngrpo_kfp.pipelines.local import named_model as module
from ngrpo_kfp.pipelines.local.named_model import NamedModel, named_model, settings_of
from ngrpo_kfp.pipelines.local.services import Services
from ngrpo_kfp.pipelines.local.workspace import Workspace
from promoting import MIDDLE, NAME, PROBLEMS, TINY, candidate, decide
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


@pytest.fixture
def files(tmp_path) -> Path:
    """Where MLflow keeps its files."""
    return tmp_path / "artifacts"


@pytest.fixture
def registry(database, objects, files, monkeypatch):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(files))
    return ModelRegistry(NAME)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "outputs")


@pytest.fixture
def around(registry, objects, database) -> Services:
    return Services(store_uri=objects.uri, tracking_uri=database, artifact_location=None, owns_database=True)


@pytest.fixture
def find(around, workspace):
    def function(what: str, model_name: str | None = NAME) -> NamedModel:
        return named_model(what, model_name, around, workspace)

    return function


@pytest.fixture
def promote(registry, tmp_path):
    def function(name: str, counts: list[int]) -> Path:
        inputs = candidate(tmp_path / "inputs", name, counts)
        decide(inputs, tmp_path / "output")
        return inputs["trained"] / "model"

    return function


@pytest.fixture
def ran(store, workspace, tmp_path):
    """Leave the directory of a run that trained a model."""

    def function(model: Path, name: str = "20260101-000000-000000-tiny", nodes=("ngrpo_training",)) -> Path:
        stages = {}
        payload = tmp_path / "payload"
        shutil.copytree(model, payload / "model", dirs_exist_ok=True)
        for node in nodes:
            reference = store.publish(
                "ngrpo_training", f"key-{node}", payload, config_digest="c", code_version="v", inputs={}
            )
            stages[node] = {"key": f"key-{node}", "artifact": reference.uri}
        run = workspace.new_run(name)
        summary = {"stages": stages, "wall_seconds": 1.0, "mlflow": {"run_id": "r"}}
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "config.json").write_text(load_config(TINY, [f"promotion.model_name={NAME}"]).model_dump_json())
        workspace.set_latest(run)
        return run

    return function


# --- what is found ------------------------------------------------------------------------------------------------------


def test_aliases_and_numbers_name_versions(find, promote):
    first, better, worse = promote("first", MIDDLE), promote("better", [6] * PROBLEMS), promote("worse", MIDDLE)
    for what, number, model in (("champion", 2, better), ("challenger", 3, worse), ("1", 1, first), ("2", 2, better)):
        found = find(what)
        assert (found.name, found.model_name, int(found.version.version)) == (what, NAME, number)
        assert found.digest == model_digest(found.directory) == model_digest(model)
        assert (found.directory / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_copy_is_made_once_and_again_where_it_was_changed(find, promote, monkeypatch):
    promote("first", MIDDLE)
    found = find("champion")
    downloads = []
    original = ModelRegistry.download
    monkeypatch.setattr(ModelRegistry, "download", lambda *given: downloads.append(given) or original(*given))
    assert find("1").directory == found.directory
    assert downloads == []
    (found.directory / "model.safetensors").write_text("changed")
    (found.directory / "more.txt").write_text("added")
    again = find("champion")
    assert len(downloads) == 1
    assert model_digest(again.directory) == found.digest


def test_a_run_names_the_model_that_it_trained(find, promote, ran, workspace, monkeypatch):
    model = promote("first", MIDDLE)
    run = ran(model)
    monkeypatch.chdir(workspace.root)
    for what in (run.name, str(run), "latest", f"runs/{run.name}"):
        found = find(what, None)
        assert (found.name, found.model_name) == (what, NAME)
        assert found.digest == model_digest(found.directory) == model_digest(model)
        assert int(found.version.version) == 1


def test_a_model_that_was_never_registered_has_no_version(find, tmp_path, ran):
    run = ran(candidate(tmp_path / "inputs", "first", MIDDLE)["trained"] / "model")
    assert find(run.name).version is None


def test_without_a_name_the_registered_model_is_that_of_the_latest_run(find, promote, ran):
    ran(promote("first", MIDDLE))
    assert find("champion", None).model_name == NAME


def leave(workspace: Workspace, day: int, name: str, judged: str, model_name: str = NAME) -> None:
    """Leave the directory of a run that trained and evaluated a model."""
    run = workspace.new_run(f"2026010{day}-000000-000000-tiny")
    keys = {"ngrpo_training": f"key-{name}", "benchmark_evaluation": judged}
    stages = {stage: {"key": key, "artifact": "s3://x/y/"} for stage, key in keys.items()}
    (run / "summary.json").write_text(json.dumps({"stages": stages, "wall_seconds": 1.0, "mlflow": {"run_id": "r"}}))
    (run / "config.json").write_text(
        load_config(TINY, [f"seed={day}", f"promotion.model_name={model_name}"]).model_dump_json()
    )


def test_the_settings_of_a_version_are_those_of_the_run_that_made_it(find, promote, workspace, monkeypatch, capsys):
    monkeypatch.setattr(module, "services", lambda workspace: nullcontext())

    def settings(what: str) -> tuple[str, int] | None:
        found = settings_of(find(what), workspace)
        return None if found is None else (found.name, found.config.seed)

    promote("first", MIDDLE)
    promote("better", [6] * PROBLEMS)
    judged = find("1").version.tags["ngrpo.evaluation_key"]
    assert settings("1") is None
    leave(workspace, 1, "first", "another")
    assert settings("1") == ("20260101-000000-000000-tiny", 1)
    leave(workspace, 2, "first", judged)
    leave(workspace, 3, "first", "another")
    leave(workspace, 4, "better", "another")
    assert settings("1") == ("20260102-000000-000000-tiny", 2), "of runs with its training, the one with its evaluation"
    assert settings("champion") == ("20260104-000000-000000-tiny", 4)
    leave(workspace, 5, "nobodys", judged)
    assert settings("1") == ("20260102-000000-000000-tiny", 2)
    cluster = load_config(TINY).cluster
    promote("third", [7] * PROBLEMS)
    deployed = partial(deployment.deployed_configuration, model_name=NAME, workspace=workspace, cluster=cluster)
    seeds = [deployed(what).seed for what in ("1", "2", "champion")]
    assert seeds == [2, 4, 5], "no run here made the third, so that the latest counts"
    assert capsys.readouterr().err.count("no run here made it, so the settings of the latest run are used") == 1


def test_the_same_files_under_two_names_are_two_models(find, promote, workspace, monkeypatch):
    """A run of one model over the results of another: it must not stand in for the run of the other, nor its model for the other model."""
    monkeypatch.setattr(module, "services", lambda workspace: nullcontext())
    promote("first", MIDDLE)
    judged = find("1").version.tags["ngrpo.evaluation_key"]
    for day, name in ((1, NAME), (2, "other")):
        leave(workspace, day, "first", judged, name)
    own = settings_of(find("1"), workspace)
    assert (own.name, own.config.promotion.model_name) == ("20260101-000000-000000-tiny", NAME)
    shutil.rmtree(workspace.runs / own.name)
    there = deployment.deployed_configuration("1", NAME, workspace, load_config(TINY).cluster)
    assert there.promotion.model_name == NAME, "the run that is left has the same results, and another model"


# --- what is not there --------------------------------------------------------------------------------------------------


def test_no_champion(find, promote, registry):
    with pytest.raises(TrackingError, match=f"model {NAME} has no champion: no model is registered yet: run a preset"):
        find("champion")
    promote("first", MIDDLE)
    with pytest.raises(TrackingError, match=f"model other has no champion: it has no version; registered are {NAME}$"):
        find("champion", "other")
    registry.set_alias("champion", None)
    with pytest.raises(
        TrackingError, match=r"has no champion: its versions are 1; promote one .*`ngrpo promote VERSION`"
    ):
        find("champion")
    with pytest.raises(TrackingError, match=r"has no challenger: its versions are 1$"):
        find("challenger")
    with pytest.raises(TrackingError, match=r"has no version 7: its versions are 1$"):
        find("7")


def test_files_that_are_gone_or_are_others(find, promote, files, workspace):
    promote("first", MIDDLE)
    (weights,) = files.rglob("model.safetensors")
    weights.write_text("fir5t")
    with pytest.raises(
        TrackingError, match=r"version 1: the files in .* are not those that were registered .*: restore"
    ):
        find("champion")
    weights.unlink()
    with pytest.raises(TrackingError, match=r"version 1 has lost files \(model/model.safetensors\): restore them, or"):
        find("champion")
    assert not [path for path in workspace.cache.rglob("*") if not path.name.endswith(".lock") and path.is_file()]


def test_a_copy_at_hand_does_not_need_the_files(find, promote, files):
    promote("first", MIDDLE)
    found = find("champion")
    for path in files.rglob("model.safetensors"):
        path.unlink()
    assert find("champion").directory == found.directory


def test_a_version_that_no_run_registered(find, registry, around):
    client = MlflowClient()
    client.create_registered_model(NAME)
    client.create_model_version(NAME, "s3://elsewhere/model")
    with pytest.raises(TrackingError, match=rf"version 1 was not registered by a run \(it has no tag {DIGEST}\)"):
        find("1")


@pytest.mark.parametrize("what", ["", "absent", "./absent", "0", "x" * 300, "nul\0", "champ10n"])
def test_no_such_run(find, what):
    with pytest.raises(ConfigError, match="name champion, challenger, the number of a version, or a run"):
        find(what)


def test_the_directory_of_a_model_needs_no_export(find, tmp_path):
    save_tiny_model(tmp_path / "model")
    with pytest.raises(
        ConfigError,
        match=r"the directory of a model, which needs no export \(`ngrpo evaluate` measures it\); name champion",
    ):
        find(str(tmp_path / "model"))


def test_no_run_to_tell_the_registered_model(find):
    with pytest.raises(ConfigError, match=r"no run there whose settings can be read, .* name it with --model"):
        find("champion", None)


def test_a_run_without_one_model(find, promote, ran, workspace):
    model = promote("first", MIDDLE)
    arms = ran(model, "20260102-000000-000000-tiny", ("ngrpo_training.a", "ngrpo_training.b"))
    with pytest.raises(
        ConfigError, match=r"several trained models \(ngrpo_training.a, ngrpo_training.b\): name a version"
    ):
        find(arms.name)
    none = ran(model, "20260103-000000-000000-tiny", ())
    with pytest.raises(ConfigError, match="it has no trained model"):
        find(none.name)
    (none / "summary.json").unlink()
    with pytest.raises(ConfigError, match="it did not finish"):
        find(none.name)


def test_an_artifact_that_is_gone(find, promote, ran, store):
    run = ran(promote("first", MIDDLE))
    store.discard(store.find("ngrpo_training", "key-ngrpo_training"))
    with pytest.raises(StoreError, match=r"is gone: run the preset of .* again"):
        find(run.name)


def test_what_names_a_version():
    assert [module.is_version(what) for what in ("champion", "challenger", "12", "012", "run")] == [True] * 3 + [
        False
    ] * 2


def test_a_missing_version_is_refused_before_anything_is_started(
    promote, registry, database, workspace, find, monkeypatch
):
    """In the words of the registry, and only if the environment names no other registry."""
    promote("one", MIDDLE)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(Workspace, "database", property(lambda _: Path(database.removeprefix("sqlite:///"))))
    for what in ("1", "champion"):
        module.require_name(what, NAME, workspace)
    said = {}
    for what in ("2", "challenger"):
        with pytest.raises(TrackingError) as refused:
            module.require_name(what, NAME, workspace)
        said[what] = str(refused.value)
    assert not workspace.exists()
    monkeypatch.setattr(Workspace, "database", workspace.root / "no_database")
    module.require_name("2", NAME, workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    for what, words in said.items():
        module.require_name(what, NAME, workspace)
        with pytest.raises(TrackingError) as refused:
            find(what)
        assert str(refused.value) == words
