"""`ngrpo watch`: a real champion in a real registry, and an endpoint that serves it or does not."""

import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from rich.console import Console

from endpoint_stub import EndpointStub, serving
from ngrpo.config import (
    BenchmarkEvaluationConfig,
    InitializedModel,
    ModelPromotionConfig,
    RunConfig,
    load_config,
    select,
)
from ngrpo.data.models import materialize
from ngrpo.errors import ConfigError, DataError, EngineError, StoreError, TrackingError
from ngrpo.evaluation.endpoint_names import digest_name
from ngrpo.signing.evidence import registered_evidence
from ngrpo.signing.keys import read_public_key
from ngrpo.signing.verification import examine
from ngrpo.stages import benchmark_evaluation, model_promotion
from ngrpo.stages.champion_watch import Seen
from ngrpo.stages.context import Context
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.digest import model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.kubeflow.scheduling.watch_task import watch_in_pod
from ngrpo_kfp.pipelines.local.watching import watch
from ngrpo_kfp.pipelines.local.workspace import Workspace
from promoting import NAME, write_manifest
from receiver import receiver
from signing_keys import make_keys

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]

PRESET = Path(__file__).with_name("small.toml")
PROBLEMS, SAMPLES, EACH = 6, 4, 2
OTHER = 'data.benchmarks.other={"kind": "arithmetic", "size": 4, "fold": "held_out"}'
SOURCE = {
    "kind": "initialized",
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two models, each with weights of its own."""
    root = tmp_path_factory.mktemp("models")
    return [materialize(InitializedModel.model_validate(SOURCE | {"seed": seed}), root / str(seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("dataset")
    (directory / "benchmarks").mkdir()
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("prompt", turns), ("answer", pa.string())])
    rows = [{"id": f"p{i}", "prompt": [{"role": "user", "content": f"{i}+1"}], "answer": "x"} for i in range(PROBLEMS)]
    for name in ("arithmetic", "other"):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), directory / "benchmarks" / f"{name}.parquet")
    (directory / "sources.json").write_text('{"layout": 1, "tables": {}}')
    (directory / "metrics.json").write_text("{}")
    return directory


@pytest.fixture(scope="module")
def evaluations(models, dataset, tmp_path_factory) -> list[dict]:
    """What the stage says of each model: none of their answers is right."""
    found = []
    for model in models:
        place = tmp_path_factory.mktemp("evaluation")
        inputs = {"dataset": dataset}
        for name in ("warm_start", "trained"):
            (place / name).mkdir()
            (place / name / "model").symlink_to(model)
            inputs[name] = place / name
        (place / "output").mkdir()
        stage = select(settings(), BenchmarkEvaluationConfig)
        stage = stage.model_copy(update={"warm_start": stage.warm_start.model_copy(update={"steps": 0})})
        benchmark_evaluation.run(stage, inputs, place / "output", Context(place, progress=lambda _: None))
        found.append(json.loads((place / "output" / "evaluation.json").read_text()))
    return found


def settings(*more: str) -> RunConfig:
    own = [
        f"promotion.model_name={NAME}",
        f"evaluation.samples={SAMPLES}",
        "evaluation.pass_at=[1]",
        "evaluation.max_tokens=4",
    ]
    return load_config(PRESET, [*own, *more])


class Place:
    """A registry with champions, and an endpoint."""

    def __init__(self, root: Path, objects: ObjectStore, models, evaluations, dataset):
        self.root, self.objects, self.models, self.evaluations = root, objects, models, evaluations
        self.workspace = Workspace(root / "outputs")
        self.registry = ModelRegistry(NAME)
        store = ArtifactStore(objects, root / "cache")
        store.publish("prepare_data", "key-data", dataset, config_digest="c", code_version="v", inputs={})

    def promote(self, number: int, right: int = 0) -> str:
        """Make a model champion, by an evaluation in which so many samples of each problem are right; return its version."""
        place = self.root / f"inputs-{len(list(self.root.glob('inputs-*')))}"
        (place / "trained").mkdir(parents=True)
        (place / "trained" / "model").mkdir()
        for file in self.models[number].iterdir():
            (place / "trained" / "model" / file.name).write_bytes(file.read_bytes())
        write_manifest(place / "trained", f"key-{number}", {"dataset": "key-data"})
        evaluation = json.loads(json.dumps(self.evaluations[number]))
        for result in evaluation["models"]["trained"].values():
            result["per_problem"] = dict.fromkeys(result["per_problem"], right)
            result["mean"] = right / SAMPLES
        (place / "evaluation").mkdir()
        (place / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
        write_manifest(place / "evaluation", f"evaluation-{place.name}", {"trained": f"key-{number}"})
        (place / "output").mkdir()
        config = select(settings("promotion.min_gain=-100.0"), ModelPromotionConfig)
        inputs = {name: place / name for name in ("trained", "evaluation")}
        model_promotion.run(config, inputs, place / "output", Context(place, store=self.objects.uri))
        decision = json.loads((place / "output" / "promotion.json").read_text())
        assert decision["alias"] == CHAMPION, decision
        return str(decision["version"])

    def look(self, url: str, *more: str) -> Seen:
        self.console = Console(file=(self.root / "said.txt").open("a"), width=200)
        return watch(
            settings(f"watch.endpoint.url={json.dumps(url)}", f"watch.samples={EACH}", *more),
            self.workspace,
            self.console,
        )

    @property
    def series(self) -> dict:
        return json.loads(self.objects.get_bytes(f"watches/{NAME}/series.json"))["state"]["series"]


@pytest.fixture
def place(tmp_path, database, objects, models, evaluations, dataset, monkeypatch) -> Place:
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    return Place(tmp_path, objects, models, evaluations, dataset)


@pytest.fixture
def endpoint(models):
    """The endpoint of the first model, under the name of its digest."""
    with serving(EndpointStub(models[0], digest_name(model_digest(models[0])))) as stub:
        yield stub


# --- what is seen -------------------------------------------------------------------------------------------------------


def test_a_champion_that_is_as_it_was_is_no_alert_however_often_it_is_looked_at(place, endpoint):
    version = place.promote(0)
    seen = [place.look(endpoint.url) for _ in range(3)]
    assert [each.alert for each in seen] == [False] * 3
    assert (seen[-1].version, seen[-1].facts["looks"]) == (version, 3)
    assert place.series["alarm"] is None
    seeds = [look["seed"] for look in place.series["looks"]]
    assert len(set(seeds)) == 3, "fresh samples each time"
    asked = [request for request in endpoint.requests if "prompt_logprobs" not in request]
    assert len(asked) == 3 * PROBLEMS * EACH
    assert len({request["seed"] for request in asked}) == len(asked)


def test_one_that_has_become_worse_is_an_alert_and_stays_one(place, endpoint):
    place.promote(0, right=3)
    first = place.look(endpoint.url)
    assert first.alert
    assert not first.rolled_back
    assert "worse by more than 1 points than it was promoted for, at 95% confidence over all looks" in first.summary
    drift = first.facts["benchmarks"]["arithmetic"]
    assert drift["drop"] == pytest.approx(75.0)
    assert 1.0 < drift["interval"][0] < 75.0 < drift["interval"][1]
    assert first.facts["digest"] == model_digest(place.models[0])
    assert "since look 1" in place.look(endpoint.url).summary


def test_where_the_settings_say_so_the_promotion_is_undone_and_that_is_signed(place, endpoint, tmp_path):
    before = place.promote(1)
    version = place.promote(0, right=3)
    private, public = make_keys(tmp_path / "keys")
    asked = len(endpoint.requests)
    with pytest.raises(ConfigError, match="or decide unsigned"):
        place.look(endpoint.url, "watch.action=rollback", f"signing.private_key={tmp_path}/none.pem")
    assert len(endpoint.requests) == asked, "refused before anything is asked"
    seen = place.look(endpoint.url, "watch.action=rollback", f"signing.private_key={private}")
    assert seen.rolled_back
    assert f"rolled back: the champion is version {before}" in seen.summary
    assert f"version {version} is signed by the key sha256" in seen.summary
    evidence = registered_evidence(Promotions.in_store(place.objects.uri, NAME), place.registry.version(version))
    links = examine(place.models[0], evidence, read_public_key(public, "key"))
    assert [link.state for link in links] == ["holds"] * 6
    assert "rolled_back" in links[4].said
    assert place.registry.aliases()[CHAMPION] == before
    (entry,) = [
        each for each in Promotions.in_store(place.objects.uri, NAME).history() if each["decision"] == "rolled_back"
    ]
    assert entry["version"] == version
    assert "the watch found it worse" in entry["reason"]
    again = place.look(endpoint.url, "watch.action=rollback")
    assert "the endpoint does not serve the champion" in again.summary, "the old one is still served"
    assert place.registry.aliases()[CHAMPION] == before


def test_webhooks_are_told_of_an_alert_and_of_the_rollback(place, endpoint, monkeypatch):
    place.promote(1)
    place.promote(0, right=3)
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        seen = place.look(endpoint.url, "watch.action=rollback", "notifications.team.url_from=TEAM_WEBHOOK")
    assert [document["event"] for document in there.documents] == ["watch_alert", "rolled_back"]
    told = there.documents[0]
    assert (told["model"], told["summary"]) == (NAME, seen.summary)
    assert told["facts"]["arithmetic: points lost"] == pytest.approx(75.0)


def test_the_only_champion_is_not_rolled_back(place, endpoint):
    version = place.promote(0, right=3)
    seen = place.look(endpoint.url, "watch.action=rollback")
    assert (seen.alert, seen.rolled_back) == (True, False)
    assert "not rolled back: there is no champion before it" in seen.summary
    assert place.registry.aliases()[CHAMPION] == version


def test_another_champion_than_was_looked_at_is_not_rolled_back(place):
    place.promote(1)
    version = place.promote(0, right=3)
    with pytest.raises(TrackingError, match="version 1 is not the champion any more: nothing is rolled back"):
        Promotions.in_store(place.objects.uri, NAME).rollback("worse", of="1")
    assert place.registry.aliases()[CHAMPION] == version


@pytest.mark.long
@pytest.mark.parametrize("change", [("watch.margin=2.5",), ("watch.confidence=0.9",), ('watch.benchmarks=["other"]',)])
def test_other_terms_start_a_new_series(place, endpoint, change):
    place.promote(0)
    place.look(endpoint.url)
    place.look(endpoint.url)
    place.look(endpoint.url, OTHER, *change)
    assert len(place.series["looks"]) == 1
    place.look(endpoint.url, OTHER, *change, "watch.samples=3")
    assert [look["samples"] for look in place.series["looks"]] == [EACH, 3], "the number of samples may change"


@pytest.mark.long
def test_another_champion_starts_a_new_series(place, endpoint, models):
    place.promote(0)
    place.look(endpoint.url)
    place.promote(1)
    with serving(EndpointStub(models[1], "model")) as other:
        place.look(other.url)
    assert len(place.series["looks"]) == 1
    assert place.series["terms"]["digest"] == model_digest(models[1])


@pytest.mark.long
def test_the_error_is_shared_out_over_benchmarks(place, endpoint):
    place.promote(0)
    one = place.look(endpoint.url).facts["benchmarks"]["arithmetic"]["interval"]
    both = place.look(endpoint.url, OTHER, 'watch.benchmarks=["arithmetic","other"]').facts["benchmarks"]
    assert set(both) == {"arithmetic", "other"}
    assert both["arithmetic"]["interval"][0] < one[0]


# --- what is wrong ------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_serves_another_model_is_an_alert_and_no_look(place, models):
    place.promote(0)
    with serving(EndpointStub(models[1], "mine")) as other:
        seen = place.look(other.url, "watch.action=rollback")
    assert (seen.alert, seen.rolled_back) == (True, False)
    assert "the endpoint does not serve the champion" in seen.summary
    assert "mine is another model than" in seen.facts["problem"]
    assert place.objects.get_bytes(f"watches/{NAME}/series.json") is None


def test_an_endpoint_that_is_down_is_an_error_and_no_look(place, monkeypatch):
    from ngrpo.evaluation import endpoint_client

    monkeypatch.setattr(endpoint_client, "_RETRIES", endpoint_client.Retry(total=0))
    place.promote(0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match="cannot be reached"):
        place.look(f"http://127.0.0.1:{port}")
    assert place.objects.get_bytes(f"watches/{NAME}/series.json") is None


def test_without_a_champion_there_is_nothing_to_watch(place, endpoint):
    with pytest.raises(TrackingError, match="has no champion"):
        place.look(endpoint.url)


def test_a_champion_whose_files_are_gone(place, endpoint):
    place.promote(0)
    for file in (place.root / "artifacts").rglob("model.safetensors"):
        file.unlink()
    with pytest.raises(TrackingError, match="has lost files"):
        place.look(endpoint.url)


def test_an_evaluation_of_other_settings_cannot_be_compared(place, endpoint):
    place.promote(0)
    with pytest.raises(DataError, match="differ on arithmetic in their sampling settings; watch with the preset"):
        place.look(endpoint.url, "evaluation.max_tokens=9")


@pytest.mark.long
def test_an_evaluation_that_does_not_say_how_it_was_made_cannot_be_compared(place, endpoint):
    version = place.registry.version(place.promote(0))
    stored = json.loads(place.registry.evaluation(version))
    del stored["protocols"]
    (place.root / "evaluation.json").write_text(json.dumps(stored))
    place.registry.add_evaluation(version, place.root / "evaluation.json", "of-an-earlier-version")
    with pytest.raises(DataError, match="does not say how arithmetic was measured"):
        place.look(endpoint.url)


@pytest.mark.long
def test_problems_that_are_gone(place, endpoint):
    place.promote(0)
    for key in place.objects.list("prepare_data/"):
        place.objects.delete(key)
    with pytest.raises(StoreError, match=r"the problems that the champion of .* was measured on are gone"):
        place.look(endpoint.url)


def test_a_damaged_series_is_left_as_it_is(place, endpoint):
    place.promote(0)
    place.look(endpoint.url)
    document = json.loads(place.objects.get_bytes(f"watches/{NAME}/series.json"))
    document["state"]["series"]["looks"][0]["correct"]["arithmetic"] = [99] * PROBLEMS
    for damaged in (b"{", json.dumps(document).encode()):
        place.objects.put_bytes(damaged, f"watches/{NAME}/series.json")
        with pytest.raises(DamagedStateError, match=r"series\.json: damaged: .*the next look starts a new series"):
            place.look(endpoint.url)
    place.objects.delete(f"watches/{NAME}/series.json")
    assert place.look(endpoint.url).facts["looks"] == 1


def test_settings_of_the_watch():
    with pytest.raises(ConfigError, match=r"watch.benchmarks: 'absent' is not one of data.benchmarks"):
        settings("watch.endpoint.url=http://a:1", 'watch.benchmarks=["absent"]')
    with pytest.raises(ConfigError, match=r"watch\.endpoint"):
        settings("watch.samples=2")


# --- in a pod, and the command --------------------------------------------------------------------------------------------------------


def test_in_a_pod_the_files_come_from_the_registry(place, endpoint, monkeypatch, capsys):
    tree = settings(f"watch.endpoint.url={json.dumps(endpoint.url)}").model_dump(mode="json")
    monkeypatch.setenv("NGRPO_WORK_DIR", str(place.root / "work"))
    monkeypatch.setenv("NGRPO_CACHE_DIR", str(place.root / "pod-cache"))
    assert watch_in_pod(tree) == 2
    assert "has no champion to watch" in capsys.readouterr().err
    place.promote(0, right=3)
    assert watch_in_pod(tree) == 1
    assert "worse by more than 1 points" in capsys.readouterr().out
    assert place.series["alarm"] == 1
    assert list((place.root / "work").iterdir()) == []
    for file in (place.root / "artifacts").rglob("model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert watch_in_pod(tree) == 2
    assert "has other files than were registered" in capsys.readouterr().err


def test_the_command_ends_with_one_where_there_is_an_alert(place, endpoint, monkeypatch, capsys):
    monkeypatch.setenv("NGRPO_HOME", str(place.workspace.root))
    assert cli.main(["watch", "--endpoint", endpoint.url]) == 2
    assert "no run here whose settings can be read" in capsys.readouterr().err
    stages = {"ngrpo_training": {"key": "key-0", "artifact": "s3://x/y/"}}
    for day, made, config in ((1, stages, settings()), (2, {}, settings("evaluation.max_tokens=9"))):
        run = place.workspace.new_run(f"2026010{day}-000000-000000-small")
        (run / "config.json").write_text(config.model_dump_json())
        (run / "summary.json").write_text(json.dumps({"stages": made, "wall_seconds": 1.0, "mlflow": {"run_id": "r"}}))
    place.workspace.set_latest(run)
    place.promote(0)
    assert cli.main(["watch", "--endpoint", endpoint.url]) == 0, "by the configuration of the run that made it"
    said = " ".join(capsys.readouterr().out.split())
    assert "(settings of run 20260101-000000-000000-small, which made champion)" in said
    assert "as it was" in said
    assert cli.main(["watch", "--endpoint", endpoint.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["version"], told["alert"], told["looks"]) == (NAME, 1, False, 2)
    (of,) = told["benchmarks"].values()
    assert of["now"] == pytest.approx(of["before"] - of["drop"])
    assert of["interval"][0] <= of["drop"] <= of["interval"][1]
    place.promote(1)
    command = ["watch", "--endpoint", endpoint.url, "--set", "evaluation.max_tokens=4"]
    assert cli.main(command) == 1, "no run here made it, so that the latest counts"
    said = " ".join(capsys.readouterr().out.split())
    assert "run 20260102-000000-000000-small, the latest: no run here made champion" in said
    assert "alert model" in said
    assert cli.main([*command, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["version"], told["alert"], told["rolled_back"]) == (NAME, 2, True, False)
    assert told["benchmarks"] == {}
    assert "the model" in told["problem"]
    assert cli.main(["watch"]) == 2
    assert "watch: no settings; name the endpoint with --endpoint URL" in capsys.readouterr().err
    assert cli.main(["watch", "--endpoint", endpoint.url, "--cron", "@daily"]) == 2
    assert "name it with --schedule NAME" in capsys.readouterr().err
