"""`ngrpo evaluate --endpoint`, end to end: a served model is measured as it is here, anew each time; and `ngrpo deploy` that goes by it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console

from endpoint_stub import EndpointStub, serving
from loopback import QuietHandler, served
from ngrpo.config import DeployConfig, InitializedModel, load_config, select
from ngrpo.contracts.evaluation import read_evaluation
from ngrpo.data import initialized
from ngrpo.errors import ConfigError, DeploymentError, EngineError
from ngrpo.evaluation.endpoint_names import digest_name
from ngrpo.stages import deploy
from ngrpo.stages.context import Context
from ngrpo.stages.surroundings import IMAGES
from ngrpo.tracking.model_registry import ModelRegistry
from ngrpo_kfp.components.serving import attempt
from ngrpo_kfp.components.serving.deployment import SERVICES
from ngrpo_kfp.pipelines.cli import deployment
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.local import measuring
from ngrpo_kfp.pipelines.local.workspace import Workspace
from promoting import MIDDLE, NAME, TINY, candidate, decide
from receiver import receiver

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
PRESET = Path(__file__).with_name("small.toml")


def evaluate(model: Path, home: Path, *options: str) -> tuple[Path, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "NGRPO_"))}
    greedy = ["--set", "evaluation.top_p=1e-6", "--set", "evaluation.batch_size=4"]
    done = subprocess.run(
        [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", "evaluate", str(model), str(PRESET), *greedy, *options],
        env=kept | {"NGRPO_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return max((home / "evaluations").iterdir()), done.stdout


@pytest.mark.long
def test_a_served_model_is_measured_as_it_is_here_and_anew_each_time(tmp_path):
    model, home = tmp_path / "model", tmp_path / "outputs"
    model.mkdir()
    initialized.write(InitializedModel(kind="initialized", hidden_size=16, layers=1, seed=1), model, weights=True)
    here, _ = evaluate(model, home)
    with serving(EndpointStub(model, "mine")) as stub:
        there, told = evaluate(model, home, "--endpoint", stub.url)
        first = len(stub.requests)
        again, _ = evaluate(model, home, "--endpoint", stub.url)
        assert len(stub.requests) == 2 * first, "an endpoint is asked again"
    assert f"served at {stub.url}" in told
    evaluations = [read_evaluation(each / "evaluation.json", "") for each in (here, there, again)]
    models = [each["models"]["trained"]["arithmetic"] for each in evaluations]
    assert models[0] == models[1] == models[2], "greedy, so equal to the digit"
    assert evaluations[0]["protocols"] == evaluations[1]["protocols"], "comparable"
    assert evaluations[0]["weights"] == evaluations[1]["weights"]
    reports = [(each / "report.md").read_text() for each in (here, there, again)]
    keys = {report.partition("Evaluation: ")[2].partition(",")[0] for report in reports}
    assert len(keys) == 3, "none is mistaken for another"


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["mine", digest_name("b" * 64)], None, "serves another model (ngrpo-model-bbb"),
        (["mine"], "yours", "serves mine; name one of these"),
        (["mine", digest_name("a" * 64)], None, None),
        (["mine"], "mine", None),
    ],
)
def test_an_endpoint_that_names_another_model_is_refused_before_anything_is_planned(
    tmp_path, objects, monkeypatch, names, asked, said
):
    class PlannedError(Exception):
        pass

    def plan(*_, **__):
        raise PlannedError

    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    monkeypatch.setattr(measuring, "model_source", lambda *_: {"digest": "a" * 64})
    monkeypatch.setattr(measuring, "read_contents", plan)
    asked_for = []

    class Handler(QuietHandler):
        def do_GET(self):
            asked_for.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": name, "root": "/models"} for name in names]}).encode())

    with served(Handler) as port:
        overrides = [f"evaluation.endpoint.url=http://127.0.0.1:{port}"]
        overrides += [] if asked is None else [f"evaluation.endpoint.model={asked}"]
        with pytest.raises(PlannedError if said is None else ConfigError) as refused:
            measuring.measure(load_config(PRESET, overrides), "champion", Workspace(tmp_path / "home"), Console())
    assert said is None or said in str(refused.value)
    assert asked_for == ["/v1/models"]
    assert not list((tmp_path / "home").glob("evaluations/*"))


# --- deployed -----------------------------------------------------------------------------------------------------------


class Cluster:
    """A cluster with KServe, as far as `ngrpo deploy` asks it."""

    def __init__(self):
        self.services, self.history = {}, []

    def get(self, path):
        return self.services.get(path)

    def create(self, path, body):
        self._put(f"{path}/{body['metadata']['name']}", body)

    def replace(self, path, body):
        self._put(path, body)

    def delete(self, path):
        self.history.append("deleted")
        del self.services[path]

    def _put(self, path, body):
        self.history.append(body["metadata"]["annotations"]["ngrpo/model"])
        status = {
            "url": "http://served.example.com",
            "address": {"url": "http://served.kubeflow.svc.cluster.local"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self.services[path] = json.loads(json.dumps(body)) | {"status": status}
        self.services[path]["metadata"]["resourceVersion"] = "1"


@pytest.fixture
def champion(database, objects, tmp_path, monkeypatch):
    """A registered champion; returns its evaluation."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", f"{objects.uri}/mlflow")
    inputs = candidate(tmp_path / "inputs", "first", MIDDLE)
    decide(inputs, tmp_path / "output")
    assert ModelRegistry(NAME).by_alias("champion") is not None
    return inputs["evaluation"] / "evaluation.json"


@pytest.fixture
def deploying(champion, tmp_path, monkeypatch):
    cluster, asked = Cluster(), []
    (tmp_path / "images.lock").write_text(f'gpu = "registry.example.com/ngrpo-gpu@sha256:{"a" * 64}"\n')
    config = load_config(
        TINY,
        [
            f"promotion.model_name={NAME}",
            "notifications.team.url_from=TEAM_WEBHOOK",
            "resources.benchmark_evaluation.gpus=1",
            "resources.benchmark_evaluation.memory_gib=64",
        ],
    )
    monkeypatch.setattr(deployment, "Kubernetes", lambda: cluster)
    monkeypatch.setattr(deployment, "stored_positions", lambda stored: 64)

    def function(what: str, lost: int | None) -> tuple[bool, str]:
        def measure(config, model, workspace, console):
            assert not any(thread.name == "phase" for thread in threading.enumerate()), "it shows its own progress"
            asked.append((config.evaluation.endpoint.url, model))
            if lost is None:
                raise EngineError("the endpoint said: the moon")
            evaluation = json.loads(champion.read_text())
            counts = evaluation["models"]["trained"]["arithmetic"]["per_problem"]
            evaluation["models"]["trained"]["arithmetic"]["per_problem"] = {
                name: count - lost for name, count in counts.items()
            }
            (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
            return tmp_path

        monkeypatch.setattr(deployment, "measure", measure)
        console = Console(width=300, record=True)
        workspace = Workspace(tmp_path / "outputs")
        kept = deployment.deploy_version(what, config, Images(tmp_path / "images.lock"), workspace, console)
        return kept, console.export_text()

    function.cluster, function.asked = cluster, asked
    return function


def test_a_champion_that_does_as_it_was_evaluated_is_kept(deploying):
    kept, told = deploying("champion", 0)
    assert kept
    assert "deployment kept: endpoint and stage are equal within ±5 points" in told
    assert deploying.asked == [("http://served.example.com/v1", "1")], (
        "the version, whatever becomes champion meanwhile"
    )
    assert deploying.cluster.history == [f"{NAME}/1"]


def test_a_champion_that_does_worse_is_taken_back_and_who_asked_is_told(deploying, monkeypatch):
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        kept, told = deploying("champion", 1)
        assert not kept
        assert "deployment refused: on arithmetic the endpoint is -12.50 points off the stage" in told
        assert deploying.cluster.history == [f"{NAME}/1", "deleted"]
        assert deploying("champion", 0)[0]
        with pytest.raises(EngineError):
            deploying("champion", None)
    refused, kept, failed = there.documents
    assert [each["event"] for each in there.documents] == ["not_deployed", "deployed", "not_deployed"]
    assert refused["summary"].startswith("on arithmetic the endpoint is -12.50 points off the stage")
    assert (refused["version"], refused["facts"]) == (1, {"arithmetic: points off": -12.5})
    assert "the moon" not in failed["summary"], "the error of an engine may quote an answer"


@pytest.mark.parametrize("what", ["nobody", "0", "", "org/name@" + "0" * 40, "s3://bucket/model"])
def test_what_is_not_registered_is_not_deployed(what):
    deployment.require_registered("champion")
    deployment.require_registered("3")
    with pytest.raises(ConfigError, match="a cluster serves what is registered; name champion"):
        deployment.require_registered(what)


def test_the_service_is_printed(deploying, tmp_path, capsys):
    config = load_config(
        TINY,
        [
            f"promotion.model_name={NAME}",
            "resources.benchmark_evaluation.gpus=1",
            "resources.benchmark_evaluation.memory_gib=64",
        ],
    )
    deployment.print_service("champion", config, Images(tmp_path / "images.lock"), Workspace(tmp_path / "outputs"))
    service = yaml.safe_load(capsys.readouterr().out)
    (container,) = service["spec"]["predictor"]["containers"]
    address = next(each["value"] for each in container["env"] if each["name"] == "STORAGE_URI")
    assert address.startswith("s3://")
    assert address.endswith("/model")
    assert "champion" not in address


# --- deployed by the run that promoted it -------------------------------------------------------------------------------

SERVICE = f"{SERVICES.format(namespace='kubeflow')}/{NAME}"


@pytest.fixture
def stage(champion, tmp_path, monkeypatch):
    """Run the stage `deploy` after the promotion of the champion, as its pod does; returns its artifact."""
    cluster, asked, account = Cluster(), [], tmp_path / "account"
    account.mkdir()
    (account / "namespace").write_text("kubeflow")
    monkeypatch.setattr(attempt, "DEPLOYMENT_TOKEN", str(account))
    monkeypatch.setattr(attempt, "KubernetesObjects", lambda account: cluster)
    monkeypatch.setattr(attempt, "stored_positions", lambda model: 64)
    monkeypatch.setenv(IMAGES, json.dumps({"benchmark_evaluation": f"registry.example.com/gpu@sha256:{'a' * 64}"}))
    for name in ("NGRPO_CACHE_DIR", "NGRPO_WORK_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "scratch"))
    run = champion.parent.parent
    overrides = ["resources.benchmark_evaluation.gpus=1", "resources.benchmark_evaluation.memory_gib=64"]
    overrides += [f"promotion.model_name={NAME}", "deployment.after_promotion=true"]
    config = select(load_config(TINY, overrides), DeployConfig)
    inputs = {"dataset": tmp_path, "promotion": tmp_path / "output"}
    inputs |= {"trained": run / "trained", "evaluation": run / "evaluation"}

    def function(lost=0, dies=False, deployer=None):
        def measure(settings, given, output, context):
            assert given["warm_start"] == given["trained"] == inputs["trained"]
            asked.append(settings.evaluation.endpoint.url)
            if dies:
                raise SystemExit(75)
            evaluation = json.loads(champion.read_text())
            counts = evaluation["models"]["trained"]["arithmetic"]["per_problem"]
            evaluation["models"]["trained"]["arithmetic"]["per_problem"] = {
                name: count - lost for name, count in counts.items()
            }
            (output / "evaluation.json").write_text(json.dumps(evaluation))

        monkeypatch.setattr(deploy.benchmark_evaluation, "run", measure)
        output, work = tmp_path / f"deployed-{len(list(tmp_path.iterdir()))}", tmp_path / "work"
        output.mkdir()
        work.mkdir(exist_ok=True)
        context = Context(work, store=os.environ["NGRPO_STORE"], deploy=deployer or attempt.Deployment("run-1"))
        deploy.run(config, inputs, output, context)
        return output

    function.cluster, function.asked = cluster, asked
    return function


def test_a_run_keeps_what_it_deployed_where_that_does_as_it_was_evaluated(stage):
    output = stage()
    assert stage.asked == ["http://served.kubeflow.svc.cluster.local/v1"], "the address inside the cluster"
    assert stage.cluster.history == [f"{NAME}/1"]
    said = json.loads((output / "deployment.json").read_text())
    assert (said["decision"], said["version"]) == ("deployed", 1)
    assert said["differences"]["arithmetic"]["value"] == 0.0
    assert read_evaluation(output / "evaluation" / "evaluation.json", "")["models"]["trained"]


def test_a_run_refuses_what_does_worse_and_goes_back_even_where_an_earlier_try_was_lost(stage, monkeypatch):
    before = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "spec": {"before": True}}
    before["metadata"] = {
        "name": NAME,
        "namespace": "kubeflow",
        "resourceVersion": "1",
        "annotations": {"ngrpo/model": "before"},
    }
    stage.cluster.services[SERVICE] = before
    with monkeypatch.context() as lost:  # a pod that is lost puts nothing back
        lost.setattr("ngrpo_kfp.components.serving.deployment._put_back", lambda *arguments: None)
        with pytest.raises(SystemExit):
            stage(dies=True)
    assert stage.cluster.services[SERVICE]["spec"] != {"before": True}
    with pytest.raises(
        DeploymentError, match=r"version 1 is not deployed: on arithmetic the endpoint is -25\.00 points"
    ) as failure:
        stage(lost=2)
    assert "\n" not in str(failure.value)
    assert stage.cluster.history == [f"{NAME}/1", f"{NAME}/1", "before"]
    assert stage.cluster.services[SERVICE]["spec"] == {"before": True}


def test_a_run_deploys_no_model_that_is_not_the_champion(stage):
    ModelRegistry(NAME).set_alias("champion", None)
    said = json.loads((stage() / "deployment.json").read_text())
    assert (said["decision"], said["reason"]) == ("skipped", "version 1 is not the champion: there is none")
    assert (stage.asked, stage.cluster.history) == ([], [])


def test_without_a_cluster_there_is_no_deployment(tmp_path):
    with pytest.raises(ConfigError, match=r"^deploy: a model is deployed by a run on a cluster"):
        deploy.run(None, {}, tmp_path, Context(tmp_path))
