"""`ngrpo prune`: what is removed and what is kept, on a real object store and a real registry, even if it is killed."""

import json
import os
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from made_up_workspace import MadeUpWorkspace, tree
from mlflow import MlflowClient
from rich.console import Console

from ngrpo.errors import ConfigError
from ngrpo.evaluation.verdicts import SAMPLES
from ngrpo.stages.declarations import STAGES
from ngrpo.stages.tries import begin, keep
from ngrpo.storage.digest import model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.local import pruning, regrading
from ngrpo_kfp.pipelines.local.pruning import Wish, plan_pruning
from ngrpo_kfp.pipelines.local.services import Services

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
MODEL = "made-up"


@pytest.fixture
def home(tmp_path, objects):
    return MadeUpWorkspace(tmp_path / "outputs", objects)


@pytest.fixture
def around(objects, monkeypatch):
    """Services whose store nobody else uses, without a database."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    return Services(objects.uri, "sqlite:///absent", f"{objects.uri}-mlflow", owns_database=True)


@pytest.fixture
def prune(home, around):
    """Prune; returns what goes, as `what name`."""

    def carry_out(keep=1, *, ours_alone=True, really=True, **wish):
        plan = plan_pruning(home.workspace, Wish(keep, **wish), around, ours_alone=ours_alone)
        for item in plan.items if really else ():
            item.remove()
        return [f"{item.what} {item.name}" for item in plan.items]

    return carry_out


@pytest.fixture
def artifacts(objects):
    """The artifacts that are in the store, as stage and letter of the key; each is whole."""

    def there():
        files = {}
        for stage, key, *name in (key.split("/") for key in objects.list()):
            if stage in STAGES:
                files.setdefault((stage, key), set()).add(*name)
        assert all(names == {"manifest.json", "payload.txt"} for names in files.values()), "half of one is left"
        return {f"{stage} {key[8]}" for stage, key in files}

    return there


def of_run(**letters):
    """All results of a run, as `artifacts` has them."""
    stages = ("prepare_data", "neighbor_index", "sft_warm_start", "ngrpo_training")
    return {f"{stage} {letters.get(stage, 'a')}" for stage in (*stages, "benchmark_evaluation", "model_promotion")}


def later(letter):
    return {stage: letter for stage in ("ngrpo_training", "benchmark_evaluation", "model_promotion")}


# --- what goes ----------------------------------------------------------------------------------------------------------


def test_the_newest_runs_and_those_named_stay_with_all_they_need(home, prune, artifacts):
    runs = [home.run(later(letter) if letter != "a" else {}) for letter in "abcde"]
    for letter in "abcde":
        home.copy("ngrpo_training", letter)
    before = tree(home.workspace.root)
    shown = prune(2, keep_runs=[runs[1].name], really=False)
    assert tree(home.workspace.root) == before, "a plan changes nothing"
    assert len(artifacts()) == 3 + 5 * 3
    assert prune(2, keep_runs=[runs[1].name]) == shown
    stages = ("benchmark_evaluation", "model_promotion", "ngrpo_training")
    gone = [f"{stage}/{home.key(stage, letter)}" for stage in stages for letter in "ac"]
    assert shown == [
        *(f"copy {name}" for name in gone[4:]),
        *(f"artifact {name}" for name in gone),
        *(f"run {run.name}" for run in (runs[2], runs[0])),
    ]
    assert artifacts() == {f"{stage} a" for stage in ("prepare_data", "neighbor_index", "sft_warm_start")} | {
        f"{stage} {letter}" for stage in later("") for letter in "bde"
    }
    assert sorted(home.workspace.runs.iterdir()) == [runs[1], runs[3], runs[4]]
    assert home.workspace.latest.resolve() == runs[4]
    assert prune(2, keep_runs=[runs[1].name]) == []
    assert not (home.workspace.root / "pruned").exists()


def test_a_result_that_a_rerun_replaced_goes_and_so_does_what_was_left_half_uploaded(home, prune, artifacts, objects):
    home.run({})
    home.publish("ngrpo_training", home.key("ngrpo_training", "z"), {})
    objects.put_bytes(b"half", f"sft_warm_start/{home.key('sft_warm_start', 'y')}/model/weights")
    for other in ("promotions/made-up/lock.json", "tries/prepare_data/k/x.json", "mine/data.parquet", "README"):
        objects.put_bytes(b"mine", other)
    assert prune() == [
        f"artifact ngrpo_training/{home.key('ngrpo_training', 'z')}",
        f"artifact sft_warm_start/{home.key('sft_warm_start', 'y')}",
    ]
    assert {key for key in objects.list() if objects.get_bytes(key) == b"mine"} == {
        "promotions/made-up/lock.json",
        "tries/prepare_data/k/x.json",
        "mine/data.parquet",
        "README",
    }


def test_what_the_ledger_the_watch_and_promotions_keep_stays(home, prune, objects):
    old = home.run({"ngrpo_training": "b"}).name
    home.run({})
    key = home.key("ngrpo_training", "b")
    kept = (
        f"spent/ngrpo_training/{key}/20260101T000000Z-m-1.json",
        f"spent/shapes/ngrpo_training/0123456789abcdef/20260101T000000Z-m-1/{key}",
        "watches/made-up.json",
        "promotions/made-up/lock.json",
        "promotions/made-up/history/00000001.json",
    )
    for place in kept:
        objects.put_bytes(b"{}", place)
    gone = prune(keep=1)
    assert {f"artifact ngrpo_training/{key}", f"run {old}"} <= set(gone)
    assert set(kept) <= set(objects.list(""))


@pytest.mark.parametrize("ours_alone", [True, False])
def test_of_services_that_deployments_replaced_the_newest_stays(home, prune, objects, ours_alone):
    def deployed(run, day, service="ngrpo.json", **ended):
        objects.put_bytes(b"{}", f"deployments/{run}/{service}")
        attempt = begin("deploy", run, pipeline_run=run, pod="pod", number=1, of=3)
        keep(objects, replace(attempt, name=f"2026010{day}T000000000000Z-pod", **({"outcome": "succeeded"} | ended)))
        objects.put_bytes(b"{}", f"deploy/{run}/manifest.json")

    home.run({})
    deployed("z-first", 1)
    deployed("a-second", 2, outcome="failed")
    deployed("m-third", 3)
    deployed("other", 1, "another.json")
    deployed("lost", 1, outcome="running")
    objects.put_bytes(b"{}", "deployments/unknown/ngrpo.json")
    everything = objects.list("deployments/")
    gone = [f"replaced service deployments/{run}/ngrpo.json" for run in ("a-second", "z-first")]
    shown = prune(1, ours_alone=ours_alone, really=False)
    assert [line for line in shown if line.startswith("replaced")] == gone
    assert objects.list("deployments/") == everything, "a plan changes nothing"
    prune(1, ours_alone=ours_alone)
    assert sorted(set(everything) - set(objects.list("deployments/"))) == [line.split()[-1] for line in gone]


def test_the_latest_finished_run_stays_behind_runs_that_failed(home, prune, artifacts):
    finished = home.run({})
    failed = [home.run(later(letter), until="ngrpo_training") for letter in "bc"]
    assert prune(1) == [f"run {failed[0].name}"]
    assert artifacts() == of_run()
    assert home.workspace.latest.resolve() == finished
    assert prune(0, drop=[finished.name, failed[1].name])[-2:] == [f"run {failed[1].name}", f"run {finished.name}"]
    assert artifacts() == set()


def test_measurements_are_counted_apart_and_experiments_stay_until_they_are_dropped(home, prune, artifacts):
    measured = [home.run(later(letter), folder="evaluations") for letter in "ab"]
    arm = home.run(later("d"))
    newest = home.run(later("e"))
    place = home.workspace.experiments / "mine"
    shutil.copytree(arm, place / "20250101-000000-000000" / "arm.seed0")
    shutil.copy(arm / "plan.json", place / "plan.json")
    gone = prune(1)
    assert [line for line in gone if not line.startswith(("artifact", "copy"))] == [
        f"run {arm.name}",
        f"evaluation {measured[0].name}",
    ]
    assert newest.exists()
    assert {"ngrpo_training b", "ngrpo_training d", "ngrpo_training e"} <= artifacts()
    assert "ngrpo_training a" not in artifacts()
    assert "experiment mine/20250101-000000-000000" in prune(1, drop=["mine"])
    assert "ngrpo_training d" not in artifacts()
    assert not place.exists()


# --- what could go on ---------------------------------------------------------------------------------------------------


def test_what_can_go_on_from_a_checkpoint_stays_until_it_is_dropped(home, prune, artifacts, objects):
    stopped, hopeless = (home.run(later(letter), until="ngrpo_training") for letter in "bc")
    there, empty = home.work("ngrpo_training", "b", checkpoint=True), home.work("ngrpo_training", "c", checkpoint=False)
    stray = home.work("ngrpo_training", "x", checkpoint=True)
    place = f"checkpoints/ngrpo_training/{home.key('ngrpo_training', 'b')}/000000003-ab/0of1/manifest.json"
    lost = f"checkpoints/ngrpo_training/{home.key('ngrpo_training', 'y')}/000000003-ab/0of1"
    for key in (place, f"{lost}/manifest.json", f"{lost}/weights"):
        objects.put_bytes(b"{}", key)
    home.run({})
    gone = prune(1)
    assert f"run {hopeless.name}" in gone
    assert [line.split("/")[-1][8] for line in gone if line.startswith("unfinished work")] == ["c", "x"]
    assert [place.exists() for place in (there, stopped, empty, stray)] == [True, True, False, False]
    assert objects.list("checkpoints/") == [place]
    assert "sft_warm_start a" in artifacts()
    assert prune(1, drop=[stopped.name]) == [
        f"unfinished work ngrpo_training/{home.key('ngrpo_training', 'b')}",
        f"checkpoints checkpoints/ngrpo_training/{home.key('ngrpo_training', 'b')}",
        f"run {stopped.name}",
    ]
    assert not there.exists()


def test_of_several_runs_that_stopped_at_the_same_result_the_newest_stays(home, prune):
    older, newer = (home.run(later("b"), until="ngrpo_training") for _ in range(2))
    home.work("ngrpo_training", "b", checkpoint=True)
    home.run({})
    assert prune(1) == [f"run {older.name}"]
    assert newer.exists()


def test_a_kept_run_of_which_nobody_knows_what_it_needs_is_named(home, prune, artifacts):
    home.run({})
    run = home.run(later("b"), until="ngrpo_training")
    (run / "plan.json").write_text("{")
    before = artifacts()
    with pytest.raises(
        ConfigError, match=f"run {run.name} is kept, but what it needs is not known: .*plan.json: dam"
    ) as error:
        prune(1)
    assert "--drop" in str(error.value)
    assert artifacts() == before
    (older,) = (path for path in home.workspace.runs.iterdir() if path != run)
    (older / "plan.json").write_text("{")
    assert prune(1, drop=[run.name])[-1] == f"run {run.name}"
    assert artifacts() == of_run(), "a summary says it too"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"keep_runs": ["nobody"]}, "--keep-run 'nobody': no run of .* has that name; `ngrpo runs` lists them"),
        ({"drop": ["nobody"]}, "--drop 'nobody': no run of"),
        ({"drop": ["2026010"]}, "no run of"),
        ({"drop": ["20260102"], "keep_runs": ["20260102"]}, "--keep-run 20260102: --drop names it too"),
    ],
)
def test_wishes_that_cannot_be(home, prune, wish, said):
    home.run({})
    with pytest.raises(ConfigError, match=said):
        prune(1, **wish)


# --- the registry -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(home, around, database, objects, tmp_path, monkeypatch):
    """A registry with versions of the results b and c, c the champion, and what a registration that was killed left."""
    home.workspace.root.mkdir(exist_ok=True)
    home.workspace.database.touch()
    MlflowClient().create_experiment("ngrpo", around.artifact_location)
    registry = ModelRegistry(MODEL)
    model, manifest = tmp_path / "model", tmp_path / "manifest.json"
    model.mkdir()
    for letter in "bc":
        (model / "weights").write_text(letter)
        manifest.write_text(json.dumps({"files": {"model/weights": {"size": 1}}}))
        tags = {
            "ngrpo.key": home.key("ngrpo_training", letter),
            "ngrpo.input.dataset": home.key("prepare_data", "a"),
            "ngrpo.input.neighbor_index": home.key("neighbor_index", "a"),
            "ngrpo.input.warm_start": home.key("sft_warm_start", letter),
        }
        version = registry.register(model, manifest, digest=model_digest(model), tags=tags)
        (tmp_path / "evaluation.json").write_text("{}")
        registry.add_evaluation(version, tmp_path / "evaluation.json", home.key("benchmark_evaluation", letter))
    registry.set_alias(CHAMPION, "2")
    client = MlflowClient()
    left = client.create_logged_model(client.get_experiment_by_name("ngrpo").experiment_id, name=MODEL)
    client.log_model_artifacts(left.model_id, str(model), "model")
    return registry, left.model_id


def all_of(letter):
    return {stage: letter for stage in ("sft_warm_start", "ngrpo_training", "benchmark_evaluation", "model_promotion")}


def test_a_champion_keeps_its_lineage_and_every_version_the_samples_it_was_judged_by(
    home, prune, artifacts, registered, around
):
    registry, left = registered
    runs = [home.run({}), home.run(all_of("b")), home.run(all_of("c")), home.run(all_of("d")), home.run(all_of("e"))]
    copies = [
        home.workspace.cache / "registered_models" / version.tags["ngrpo.digest"] for version in registry.versions()
    ]
    for copy in copies:
        copy.mkdir(parents=True)
    gone = prune(1)
    assert [copy.exists() for copy in copies] == [True, False], "the champion's is still of use"
    assert artifacts() == {
        *("prepare_data a", "neighbor_index a"),
        *("benchmark_evaluation b",),
        *("sft_warm_start c", "ngrpo_training c", "benchmark_evaluation c"),
        *(f"{stage} e" for stage in all_of("")),
    }
    assert sorted(home.workspace.runs.iterdir()) == runs[-1:]
    assert f"model files models/{left}" in gone
    logged = ObjectStore(around.artifact_location).list("models/")
    assert {key.split("/")[1] for key in logged} == {
        str(version.source).removeprefix("models:/") for version in registry.versions()
    }
    for version in registry.versions():
        assert registry.stored_digest(version) == version.tags["ngrpo.digest"]
        assert registry.missing(version) == []
        assert registry.evaluation(version) == b"{}"
    assert left not in [model.model_id for model in MlflowClient().search_logged_models(["1"])]
    assert prune(1) == []


def test_files_of_a_model_whose_deletion_was_killed_are_found_again(home, prune, registered, around, monkeypatch):
    _, left = registered
    home.run({})
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "_remove", _killed)
        with pytest.raises(KeyboardInterrupt):
            prune(1)
    assert ObjectStore(around.artifact_location).list(f"models/{left}/") != []
    assert prune(1) == [f"model files models/{left}"]
    assert ObjectStore(around.artifact_location).list(f"models/{left}/") == []


def _killed(*_):
    raise KeyboardInterrupt


def test_files_of_models_in_a_shared_store_may_be_of_another_registry(home, prune, registered, around):
    home.run({})
    assert prune(1, ours_alone=False) == []
    assert ObjectStore(around.artifact_location).list(f"models/{registered[1]}/") != []


def test_the_files_that_a_kept_run_started_from_stay(home, prune, registered, around):
    _, left = registered
    source = (
        f'{{"kind":"registered","name":"m","version":9,"id":"{around.artifact_location}/models/{left}/artifacts/model",'
    )
    source += f'"digest":"{"a" * 64}"}}'
    home.run({}, model__source=source, warm_start__steps=0)
    assert prune(1) == []


# --- killed -------------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_it_leaves_nothing_half_and_the_next_one_finishes(
    home, prune, objects, store, monkeypatch
):
    home.run({})
    home.run(later("b"))
    home.work("ngrpo_training", "x", checkpoint=True)
    home.copy("ngrpo_training", "a")
    kept = [store.find(stage, home.key(stage, letter)) for stage, letter in map(str.split, of_run(**later("b")))]
    deleted, original = [], ObjectStore.delete

    def dying(self, key):
        if len(deleted) % 2 == 1:  # every second is the last of its process
            deleted.append("")
            raise KeyboardInterrupt
        deleted.append(key)
        original(self, key)

    monkeypatch.setattr(ObjectStore, "delete", dying)
    deaths = 0
    for _ in range(30):
        try:
            gone = prune(1)
        except KeyboardInterrupt:
            deaths += 1
            places = {tuple(key.split("/")[:2]) for key in objects.list("ngrpo_training/")}
            for stage, key in places:
                found = store.find(stage, key)
                assert found is None or store.verify(found) == []
            assert len(list(home.workspace.runs.iterdir())) == 2, "what is known of the run goes last"
        else:
            break
    assert deaths > 3
    assert all(store.verify(reference) == [] for reference in kept)
    assert gone[-1].startswith("run ")
    assert prune(1) == []
    assert {key.split("/")[1][8] for key in objects.list("ngrpo_training/")} == {"b"}


def test_a_run_that_was_put_out_of_the_way_is_deleted_by_the_next_one(home, around, prune, monkeypatch):
    home.run({})
    home.run(later("b"))
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "_finish", _killed)
        with pytest.raises(KeyboardInterrupt):
            prune(1)
    assert len(list((home.workspace.root / "pruned").iterdir())) == 1
    pruning.prune(home.workspace, Wish(1, shared=True), lambda plan: None, Console(), really=True)
    assert not (home.workspace.root / "pruned").exists()


def test_while_a_run_goes_on_nothing_is_removed(home, around, artifacts, monkeypatch, capsys):
    home.run({})
    home.run(later("b"))
    before = tree(home.workspace.root), artifacts()
    monkeypatch.setenv("NGRPO_HOME", str(home.workspace.root))
    with FileLock(home.workspace.root / "run.lock"):
        assert cli.main(["prune", "--keep", "0", "--shared", "--yes"]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert (tree(home.workspace.root), artifacts()) == before


def test_programs_are_told_what_goes_and_once_it_is_gone(home, around, artifacts, monkeypatch, capsys):
    home.run({})
    run = home.run(later("b"))
    monkeypatch.setenv("NGRPO_HOME", str(home.workspace.root))
    told = []
    for more in ((), ("--yes",)):
        assert cli.main(["prune", "--keep", "1", "--shared", "--json", *more]) == 0
        told.append(json.loads(capsys.readouterr().out))
    shown, removed = told
    assert removed == shown | {"removed": True, "freed": True}
    assert shown["bytes"] == sum(item["bytes"] for item in shown["items"]) > 0
    assert [f"{item['what']} {item['name']}" for item in shown["items"] if item["what"] == "artifact"] == [
        f"artifact {stage}/{home.key(stage, 'a')}" for stage in sorted(later("b"))
    ]
    assert shown["kept"] == {run.name: "among the 1 newest"}
    assert artifacts() == of_run(**later("b"))
    monkeypatch.setenv("NGRPO_HOME", str(home.workspace.root / "none"))
    assert cli.main(["prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == []


# --- a store with other users -------------------------------------------------------------------------------------------


def test_a_store_that_others_may_use_is_left_alone_unless_somebody_says_so(
    home, around, artifacts, monkeypatch, capsys
):
    home.run({})
    home.run(later("b"))
    before = artifacts()
    monkeypatch.setenv("NGRPO_HOME", str(home.workspace.root))
    for more in ((), ("--yes",)):
        assert cli.main(["prune", "--keep", "1", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "may have other users: add --shared" in line
    assert artifacts() == before


def test_of_a_shared_store_goes_what_was_made_here_and_nobody_else_has_built_on(home, prune, artifacts):
    home.run({}, made=["sft_warm_start", "ngrpo_training", "benchmark_evaluation", "model_promotion"])
    home.publish("prepare_data", home.key("prepare_data", "a"), {})
    home.run(later("b"))
    home.run(later("c"))
    dataset, warm = home.key("prepare_data", "a"), home.key("sft_warm_start", "a")
    inputs = {"dataset": dataset, "warm_start": warm, "trained": home.key("ngrpo_training", "b")}
    home.publish("benchmark_evaluation", home.key("benchmark_evaluation", "q"), inputs)  # on another machine
    home.publish("sft_warm_start", home.key("sft_warm_start", "r"), {"dataset": dataset})
    gone = prune(0, ours_alone=False, drop=[run.name for run in home.workspace.runs.iterdir()])
    assert {
        f"{stage.removeprefix('artifact ')} {key[8]}"
        for stage, key in (line.split("/") for line in gone if line[:8] == "artifact")
    } == {
        *(f"ngrpo_training {letter}" for letter in "ac"),
        *(f"{stage} {letter}" for stage in ("benchmark_evaluation", "model_promotion") for letter in "abc"),
    }
    assert artifacts() == {
        "prepare_data a",
        "sft_warm_start a",
        "sft_warm_start r",
        "ngrpo_training b",
        "benchmark_evaluation q",
    }


def test_while_a_stage_runs_on_a_cluster_with_that_store_nothing_is_removed(home, prune, artifacts, objects):
    home.run({})
    home.run(later("b"))
    before = artifacts()
    attempt = begin("ngrpo_training", "0" * 32, pipeline_run="r-1", pod="pod-0", number=1, of=2)
    keep(objects, attempt)
    with pytest.raises(
        ConfigError, match="ngrpo_training of run r-1 is running on a cluster that uses this store: wait"
    ):
        prune(1, ours_alone=False)
    assert artifacts() == before
    home.publish("ngrpo_training", "0" * 32, {})
    assert prune(1, ours_alone=False) != []


# --- the embedded store -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_workspace_with_its_own_store_gives_the_room_back_and_what_is_kept_is_still_cached(
    house, monkeypatch, capsys
):
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "NGRPO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NGRPO_HOME", str(house.home))
    house.write_stage("ngrpo_training", "(output / 'weights').write_bytes(os.urandom(4_000_000))")
    for steps in (3, 4):
        house.ngrpo("run", "--set", f"training.steps={steps}")
    stored = sum(path.stat().st_size for path in (house.home / "store").glob("*.dat"))
    assert cli.main(["prune", "--keep", "1"]) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert cli.main(["prune", "--keep", "1", "--yes"]) == 0
    assert "removed: " in capsys.readouterr().out
    assert sum(path.stat().st_size for path in (house.home / "store").glob("*.dat")) < stored - 3_500_000
    assert len(list((house.home / "runs").iterdir())) == 1
    house.ran()
    house.ngrpo("report")
    house.ngrpo("run", "--set", "training.steps=4")
    assert house.ran() == ["model_promotion"]
    house.ngrpo("rerun", "benchmark_evaluation", "--set", "training.steps=4")
    assert house.ran() == ["benchmark_evaluation", "model_promotion"]
    house.ngrpo("run", "--set", "training.steps=3")
    assert house.ran() == ["ngrpo_training", "benchmark_evaluation", "model_promotion"]


# --- after it -----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_kept_can_be_graded_again(home, prune, store, tmp_path, monkeypatch, capsys):
    run = home.run({}, made=["prepare_data"])
    home.run(later("b"))
    home.run(later("c"))
    benchmarks, samples = tmp_path / "d" / "benchmarks", tmp_path / "e" / "samples" / "trained"
    for place in (benchmarks, samples):
        place.mkdir(parents=True)
    problems = {"id": ["p"], "prompt": [[{"role": "user", "content": "3 + 4 ="}]], "answer": ["7"]}
    raw = {"problem_id": "p", "sample_id": 0, "text": r"\boxed{7}", "tokens": 3, "finish_reason": "stop"}
    raw |= {"extracted": None, "correct": False, "grader_error": None}
    for name in ("arithmetic", "validation"):
        pq.write_table(pa.table(problems), benchmarks / f"{name}.parquet")
        pq.write_table(pa.Table.from_pylist([raw], schema=SAMPLES), samples / f"{name}.parquet")
    summary = json.loads((run / "summary.json").read_text())
    summary["stages"] = {}
    for stage, payload in (("prepare_data", "d"), ("benchmark_evaluation", "e")):
        reference = store.publish(stage, payload * 32, tmp_path / payload, config_digest="", code_version="", inputs={})
        summary["stages"][stage] = {"key": reference.key, "artifact": reference.uri}
    (run / "summary.json").write_text(json.dumps(summary))
    again = []
    monkeypatch.setattr(regrading, "run", lambda *_, rerun: again.append(rerun))
    assert prune(1, keep_runs=[run.name]) != []
    regrading.regrade_run(run, home.workspace, Console(highlight=False))
    assert again == ["benchmark_evaluation"]
