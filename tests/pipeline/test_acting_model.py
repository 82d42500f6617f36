"""Without a preset a command acts on the model of the latest run, in a workspace with runs of two models."""

import json
import os
import pty
import sys

import pytest
from mlflow import MlflowClient

from ngrpo.config import load_config
from ngrpo.storage.digest import model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import ModelRegistry
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import acting
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local import measuring, run_pipeline
from ngrpo_kfp.pipelines.local.runs import RunSettings
from promoting import PROBLEMS, evaluation_of, state

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
OLD, NEW = "old-model", "new-model"
OLD_RUN, NEW_RUN = "20260101-000000-000000-tiny", "20260102-000000-000000-other"


def write_run(home, name, model, *, finished=True):
    directory = home / "runs" / name
    directory.mkdir(parents=True)
    config = load_config(PRESETS / "tiny.toml", [f"promotion.model_name={model}", "training.steps=7"])
    (directory / "config.json").write_text(config.model_dump_json())
    if finished:
        (directory / "summary.json").write_text(
            json.dumps({"stages": {}, "wall_seconds": 1.0, "mlflow": {"run_id": "r", "tracking_uri": "sqlite:///x"}})
        )
        (home / "latest").unlink(missing_ok=True)
        (home / "latest").symlink_to(f"runs/{name}")
    return directory


@pytest.fixture
def home(tmp_path, monkeypatch, objects, database):
    """A workspace with a finished run of one model and a later run of another that failed after registering it."""
    home = tmp_path / "outputs"
    monkeypatch.setenv("NGRPO_HOME", str(home))
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    monkeypatch.setenv("COLUMNS", "200")
    write_run(home, OLD_RUN, OLD)
    write_run(home, NEW_RUN, NEW, finished=False)
    return home


@pytest.fixture
def models(home, objects, tmp_path):
    """Two registered models, each with a version."""
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    found = {}
    for name in (OLD, NEW):
        model = tmp_path / name
        model.mkdir()
        (model / "weights").write_text(name)
        (tmp_path / "manifest.json").write_text(json.dumps({"files": {"model/weights": {"size": len(name)}}}))
        registry, digest = ModelRegistry(name), model_digest(model)
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation_of([4] * PROBLEMS, weights=digest)))
        version = registry.register(model, tmp_path / "manifest.json", digest=digest, tags={})
        registry.add_evaluation(version, tmp_path / "evaluation.json", f"evaluation-{name}")
        found[name] = Promotions(registry, ObjectStore(f"{objects.uri}/promotions"))
    return found


@pytest.fixture
def ngrpo(capsys):
    """Run a command; returns its exit code and what it said."""

    def command(*arguments):
        capsys.readouterr()
        code = cli.main(arguments)
        said = capsys.readouterr()
        return code, said.out + said.err

    return command


def first_line(said):
    return said.partition("\n")[0]


def test_decisions_by_hand_are_on_the_model_of_the_latest_run(models, ngrpo):
    code, said = ngrpo("promote", "1", "--override", "it is good")
    assert (code, first_line(said)) == (0, f"model  {NEW}  (settings of run {NEW_RUN})")
    assert {name: state(each.registry) for name, each in models.items()} == {OLD: {}, NEW: {"champion": "1"}}
    for command, *more in (("history",), ("rollback", "why", "--yes")):
        code, said = ngrpo(command, *more)
        assert (code, first_line(said)) == (0, f"model  {NEW}  (settings of run {NEW_RUN})"), command
    assert state(models[NEW].registry) == {}


def test_a_preset_and_a_setting_that_are_named_win(models, ngrpo):
    code, said = ngrpo("promote", "1", "tiny", "--set", f"promotion.model_name={OLD}", "--override", "it is good")
    assert (code, first_line(said)) == (0, f"model  {OLD}  (settings of preset tiny)")
    code, said = ngrpo("history", "--set", f"promotion.model_name={OLD}")
    assert (code, first_line(said)) == (0, f"model  {OLD}  (settings of run {NEW_RUN})")
    assert "it is good" in said
    assert first_line(ngrpo("history", "tiny")[1]) == "model  ngrpo-tiny  (settings of preset tiny)"
    assert state(models[NEW].registry) == {}


def test_a_model_is_left_without_a_champion_only_if_somebody_says_so(models, ngrpo, monkeypatch):
    ngrpo("promote", "1", "--override", "it is good")
    code, said = ngrpo("rollback", "it is bad")
    assert code == 2
    assert said.endswith(
        f"ngrpo: model {NEW}: rolling back version 1 leaves it without a champion, because it had none before; add --yes to confirm, or "
        "make another version the champion (ngrpo promote VERSION)\n"
    )
    assert state(models[NEW].registry) == {"champion": "1"}
    assert [entry["decision"] for entry in models[NEW].history()] == ["promoted"]
    asked = []
    for answer, after in ((False, {"champion": "1"}), (True, {})):
        monkeypatch.setattr(acting, "confirmed", lambda question, answer=answer: asked.append(question) or answer)
        assert ngrpo("rollback", "it is bad")[0] == (0 if answer else 2)
        assert state(models[NEW].registry) == after
    assert asked == [f"model {NEW} has no champion then. Roll back version 1?"] * 2


def test_a_rollback_to_another_champion_asks_nobody(models, ngrpo, monkeypatch):
    registry = models[NEW].registry
    with models[NEW].turn() as turn:
        turn.promote(registry.version("1"), {"decision": "promoted", "reason": "first", "comparison": None})
    other = MlflowClient().create_model_version(NEW, registry.version("1").source)
    with models[NEW].turn() as turn:
        turn.promote(registry.version(str(other.version)), {"decision": "promoted", "reason": "b", "comparison": None})
    monkeypatch.setattr(acting, "confirmed", lambda question: pytest.fail(question))
    assert ngrpo("rollback", "it is bad")[0] == 0
    assert state(registry) == {"champion": "1"}


def test_without_a_terminal_the_answer_is_no_and_with_one_it_is_what_is_typed(monkeypatch, capfd):
    for typed, answer in ((b"y\n", True), (b"n\n", False), (b"\n", False)):
        controller, terminal = pty.openpty()
        os.write(controller, typed)
        with os.fdopen(terminal, "r", closefd=False) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert acting.confirmed("Sure?") is answer
        os.close(controller)
        os.close(terminal)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert acting.confirmed("Sure?") is False


def test_a_rerun_is_of_the_latest_run_and_an_evaluation_of_the_run_that_made_the_version(home, ngrpo, monkeypatch):
    ran = []
    monkeypatch.setattr(run_pipeline, "run", lambda config, *_, **how: ran.append((config, how["rerun"])))
    monkeypatch.setattr(measuring, "measure", lambda config, model, *_, **__: ran.append((config, model)))
    own = RunSettings("before", load_config(PRESETS / "tiny.toml", [f"promotion.model_name={NEW}", "training.steps=5"]))
    made = {"champion": own, "1": None}
    monkeypatch.setattr(acting, "looked_up_settings", lambda what, model_name, workspace: made[what])
    for command, whose, steps in (
        (("rerun", "ngrpo_training"), NEW_RUN, 7),
        (("evaluate", "champion"), "before, which made champion", 5),
        (("evaluate", "1"), f"{NEW_RUN}, the latest: no run here made 1", 7),
    ):
        code, said = ngrpo(*command)
        assert (code, said) == (0, f"model  {NEW}  (settings of run {whose})\n"), command
        config, what = ran.pop()
        assert what == command[1]
        assert (config.promotion.model_name, config.training.steps, config.preset) == (NEW, steps, "tiny")
    assert ngrpo("evaluate", "champion", "--set", "training.steps=8")[0] == 0
    assert (ran[-1][0].training.steps, ran[-1][0].promotion.model_name) == (8, NEW)
    assert ngrpo("rerun", "ngrpo_training", "--set", "training.steps=8", "--seed", "3")[0] == 0
    assert (ran[-1][0].training.steps, ran[-1][0].seed) == (8, 3)
    assert ngrpo("rerun", "ngrpo_training", "--preset", "tiny")[0] == 0
    assert ran[-1][0].promotion.model_name == "ngrpo-tiny"


def test_a_setting_fits_the_run_that_made_the_version_and_not_the_latest(home, ngrpo, monkeypatch):
    ran, asked = [], []
    monkeypatch.setattr(measuring, "measure", lambda config, *_, **__: ran.append(config))
    own = RunSettings(
        OLD_RUN, load_config(PRESETS / "tiny.toml", ["evaluation.samples=16", "evaluation.pass_at=[1,4]"])
    )
    latest = load_config(PRESETS / "tiny.toml", [f"promotion.model_name={NEW}", "evaluation.pass_at=[1,16]"])
    (home / "runs" / OLD_RUN / "config.json").write_text(own.config.model_dump_json())
    (home / "runs" / NEW_RUN / "config.json").write_text(latest.model_dump_json())

    def looked_up(what, model_name, workspace):
        asked.append(model_name)
        return own

    monkeypatch.setattr(acting, "looked_up_settings", looked_up)
    assert ngrpo("evaluate", "1", "--set", "evaluation.samples=8")[0] == 0
    assert (ran[-1].evaluation.samples, ran[-1].evaluation.pass_at, asked) == (8, (1, 4), [NEW])
    # What fits no run here is refused before anything starts, in the words of the latest.
    code, said = ngrpo("evaluate", "1", "--set", "evaluation.samples=2")
    assert (code, len(asked)) == (2, 1)
    assert "pass_at" in said
    assert "16" in said


def test_any_other_model_is_measured_on_the_benchmarks_of_a_preset(home, ngrpo, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(measuring, "measure", lambda config, *_, **__: measured.append(config.promotion.model_name))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").touch()
    assert ngrpo("evaluate", str(tmp_path / "mine"))[0] == 0
    assert measured == ["ngrpo-tiny"]


def test_samples_are_graded_again_under_the_name_of_their_model(home, objects, store, tmp_path, ngrpo):
    empty = tmp_path / "data"
    (empty / "benchmarks").mkdir(parents=True)
    (empty / "sources.json").write_text("{}")
    reference = store.publish("prepare_data", "k", empty, config_digest="c", code_version="v", inputs={})
    summary = home / "latest" / "summary.json"
    tree = json.loads(summary.read_text())
    summary.write_text(json.dumps(tree | {"stages": {"prepare_data": {"key": "k", "artifact": reference.uri}}}))
    code, said = ngrpo("regrade")
    assert (code, first_line(said)) == (0, f"model  {OLD}  (settings of run {OLD_RUN})")


@pytest.mark.parametrize(
    "command",
    [("promote", "1"), ("rollback", "why"), ("history",), ("rerun", "ngrpo_training"), ("evaluate", "champion")],
)
def test_a_workspace_without_runs_has_no_model_to_act_on(tmp_path, monkeypatch, ngrpo, command):
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "empty"))
    assert ngrpo(*command) == (
        2,
        f"ngrpo: workspace {tmp_path / 'empty'}: no run here whose settings can be read, so it is not known which model is meant; name a "
        "preset (--preset NAME)\n",
    )
    assert not (tmp_path / "empty").exists()


def test_settings_that_cannot_be_read_are_said_and_those_before_them_count(home, ngrpo, monkeypatch):
    monkeypatch.setattr(run_pipeline, "run", lambda *_, **__: None)
    path = home / "runs" / NEW_RUN / "config.json"
    for damage in ("{", '{"preset": "x", "nonsense": 1}'):
        path.write_text(damage)
        code, said = ngrpo("rerun", "ngrpo_training")
        assert code == 0
        assert f"ignored: {path}: " in said
        assert f"model  {OLD}  (settings of run {OLD_RUN})" in said
    path.unlink()
    assert ngrpo("rerun", "ngrpo_training")[1] == f"model  {OLD}  (settings of run {OLD_RUN})\n"
