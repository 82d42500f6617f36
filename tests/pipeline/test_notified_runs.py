"""Webhooks are told how a run ended, on this machine and on a cluster, and of manual decisions; no secret is sent."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from golden_ir import CLUSTER, IMAGES, NAMES, compiled
from kfp import components
from mlflow import MlflowClient
from small_house import build
from test_run_experiment import Lab

from measuring import measured
from ngrpo.config import load_config
from ngrpo.contracts.deployment import write_deployment
from ngrpo.contracts.promotion import write_promotion
from ngrpo.errors import ConfigError
from ngrpo.notifications import webhooks
from ngrpo.stages import tries
from ngrpo.stages.end_of_run import tell
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole, load_ir
from ngrpo_kfp.pipelines.kubeflow.graph_check import GraphError, check_graph
from ngrpo_kfp.pipelines.kubeflow.submitted_runs import tasks_of
from ngrpo_kfp.pipelines.local import run_experiment
from promoting import NAME, decide
from receiver import SECRET_PATH, receiver

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]

TEAM = "notifications.team.url_from=TEAM_WEBHOOK"
SECRETS = 'cluster.secrets.hooks={"TEAM_WEBHOOK": "team"}'
CANARIES = {"HF_TOKEN": "canary-of-the-hub", "AWS_SESSION_TOKEN": "", "MY_API_KEY": "canary-of-a-key"}


def hidden(*texts):
    """Make sure that no secret and nothing of the data is in what was sent, said or kept."""
    for text in texts:
        for part in (SECRET_PATH, "canary-of", "the moon"):
            assert part not in text


# --- on this machine ----------------------------------------------------------------------------------------------------


def test_a_local_run_tells_of_its_failure_and_of_its_decision_and_of_nothing_else(tmp_path):
    house = build(tmp_path)
    house.write_stage("prepare_data", "raise ValueError(f'the answer is the moon, {dict(os.environ)}')")
    house.write_stage(
        "ngrpo_training", "open(os.environ['RAN'] + '.reporters', 'w').write(' '.join(context.reporters))"
    )
    with receiver() as there:
        # As on a node of a TrainJob: the address is that of Kubeflow Trainer.
        given = CANARIES | {"TEAM_WEBHOOK": there.url, "KUBEFLOW_TRAINER_SERVER_URL": "https://trainer"}
        failed = house.ngrpo("run", "--set", TEAM, code=2, **given)
        house.write_stage("prepare_data")
        done = house.ngrpo("run", "--set", TEAM, **given)
    assert (house.root / "ran.txt.reporters").read_text() == "mlflow kubeflow"
    failure, promotion = there.documents
    assert (failure["event"], failure["run"].endswith("-small")) == ("failed", True)
    assert failure["summary"] == "prepare_data: ValueError; see the log"
    assert failure["facts"] == {"preset": "small"}
    assert (promotion["event"], promotion["model"], promotion["version"]) == ("promoted", "ngrpo", 1)
    assert promotion["run"] == house.last_run.name
    hidden(*(body.decode() for body in there.bodies))
    kept = [path for path in house.home.rglob("*") if path.is_file() and "prepare_data" not in path.name]
    outputs = [
        failed.stdout,
        failed.stderr,
        done.stdout,
        done.stderr,
        *(path.read_bytes().decode("latin-1") for path in kept),
    ]
    assert not any(SECRET_PATH in text for text in outputs)


def test_a_run_goes_on_without_the_address_and_says_so_at_its_start(house):
    done = house.ngrpo("run", "--set", TEAM)
    assert "notification team: the environment variable TEAM_WEBHOOK is not set" in done.stdout
    assert done.stderr.startswith("notification team: promoted was not delivered: ")


def test_an_experiment_is_one_event(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.write(lab.file.read_text() + '\n[settings.notifications.team]\nurl_from = "TEAM_WEBHOOK"\n')
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        lab.failing = {"ngrpo_training.grpo.seed0": "the answer is the moon"}
        with pytest.raises(run_experiment.ExperimentError):
            lab.run()
        lab.failing = {}
        lab.run()
    failed, finished = there.documents
    assert (failed["event"], failed["summary"]) == (
        "failed",
        "experiment lab: 1 of 4 runs failed: grpo.seed0; the log says why",
    )
    assert (finished["event"], finished["summary"]) == ("finished", "experiment lab: its 4 runs are done and compared")
    hidden(*(body.decode() for body in there.bodies))


def test_decisions_by_hand_are_told(database, objects, store, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    for name, plain in (("first", 1), ("second", 1)):
        decide(measured(tmp_path, store, name, plain), tmp_path / "output")
    assert Promotions.in_store(objects.uri, NAME).registry.aliases()["champion"] == "1"
    settings = ("--set", f"promotion.model_name={NAME}", "--set", TEAM)
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        assert cli.main(["promote", "2", "tiny", *settings]) == 0
        assert cli.main(["promote", "2", "tiny", "--override", "better <!channel> talk", *settings]) == 0
        assert cli.main(["rollback", "worse on real traffic", "tiny", *settings]) == 0
    kept, promoted, rolled_back = there.documents
    assert (kept["event"], kept["version"], kept["run"]) == ("kept", 2, None)
    assert (promoted["event"], promoted["summary"]) == ("promoted", "by hand: better <!channel> talk")
    assert (rolled_back["event"], rolled_back["version"]) == ("rolled_back", 2)
    assert rolled_back["facts"] == {"champion before": "2", "champion": "1"}
    hidden(capfd.readouterr().out)


# --- compiled -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [NAMES[0], "tiny"])
def test_no_exit_task_without_a_notification(preset):
    spec, _ = compiled(preset)
    assert "exit-handler-1" not in spec["root"]["dag"]["tasks"]


def test_the_exit_task_comes_after_every_stage_and_alone_has_the_address():
    spec, platform = compiled("tiny", SECRETS, TEAM)
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"end-of-run", "exit-handler-1"}
    assert tasks["end-of-run"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert tasks["end-of-run"]["dependentTasks"] == ["exit-handler-1"]
    assert len(spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]) == 6
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    variables = {
        name: {each["envVar"] for secret in pod.get("secretAsEnv", ()) for each in secret["keyToEnv"]}
        for name, pod in pods.items()
    }
    assert {name for name, known in variables.items() if "TEAM_WEBHOOK" in known} == {"exec-end-of-run"}
    assert all("NGRPO_S3_SECRET_ACCESS_KEY" in known for known in variables.values())
    assert "kueue.x-k8s.io/queue-name" not in pods["exec-end-of-run"]["podMetadata"]["labels"]


def test_a_template_of_the_user_is_not_filled_in_by_argo():
    template = '{"text": {{ summary | tojson }}}'
    text = compile_whole(
        load_config(
            PRESETS / "tiny.toml", [SECRETS, TEAM, f"notifications.team.template={json.dumps(template)}"], CLUSTER
        ),
        IMAGES,
    )
    assert "{{ summary" not in text
    told = load_ir(text)[0]["root"]["dag"]["tasks"]["end-of-run"]["inputs"]["parameters"]["told"]["runtimeValue"][
        "constant"
    ]
    assert json.loads(told)["notifications"]["team"]["template"] == template
    components.load_component_from_text(text.split("---")[0])


def test_an_address_that_no_secret_has_is_refused():
    with pytest.raises(
        ConfigError, match=r"notifications\.team\.url_from='TEAM_WEBHOOK': no secret of the cluster has it"
    ):
        compiled("tiny", TEAM)


def test_an_exit_task_of_what_is_not_there_is_a_broken_graph():
    spec, platform = compiled("tiny", SECRETS, TEAM)
    spec["root"]["dag"]["tasks"]["end-of-run"]["inputs"]["parameters"]["status"]["taskFinalStatus"]["producerTask"] = (
        "gone"
    )
    with pytest.raises(GraphError, match="input 'status': comes from 'gone'"):
        check_graph(spec, platform)


def test_the_stages_of_a_run_with_an_exit_task_are_found():
    plain, _ = compiled("tiny")
    spec, platform = compiled("tiny", SECRETS, TEAM)

    class Client:
        def get_run(self, run_id):
            return SimpleNamespace(
                pipeline_spec={"pipeline_spec": {"x": plain, "y": spec}[run_id], "platform_spec": platform}
            )

    assert tasks_of(Client(), "y").keys() == tasks_of(Client(), "x").keys()
    assert "ngrpo_training" in tasks_of(Client(), "y")


# --- on a cluster: what the exit task does --------------------------------------------------------------------------------


class Cluster:
    """What a run has left in the store when its exit task starts."""

    def __init__(self, objects, store, folder, monkeypatch):
        self.objects, self.store, self.folder = objects, store, folder
        self.told = {
            "what": "preset tiny",
            "model": "m",
            "nodes": [],
            "notifications": {"team": {"url_from": "TEAM_WEBHOOK"}},
        }
        monkeypatch.setenv("NGRPO_STORE", objects.uri)
        monkeypatch.setenv("NGRPO_CACHE_DIR", str(folder / "cache"))
        monkeypatch.setenv("NGRPO_WORK_DIR", str(folder / "work"))

    def node(self, stage, key="", made=True, promotion=None, deployment=None):
        self.told["nodes"].append({"name": stage, "stage": stage, "key": key})
        if made:
            payload = self.folder / "payload" / stage
            payload.mkdir(parents=True)
            (payload / "metrics.json").write_text("{}")
            if promotion is not None:
                write_promotion(payload, promotion)
            if deployment is not None:
                write_deployment(payload, deployment)
            self.store.publish(stage, key or "run-1", payload, config_digest="c", code_version="v", inputs={})

    def tried(self, stage, key, run="run-1", **ended):
        attempt = tries.begin(stage, key, pipeline_run=run, pod=f"pod-{run}", number=1, of=3)
        tries.keep(self.objects, replace(attempt, **ended))

    def tell(self, state="COMPLETE"):
        tell(json.dumps(self.told), "run-1", state)


@pytest.fixture
def cluster(objects, store, tmp_path, monkeypatch):
    return Cluster(objects, store, tmp_path, monkeypatch)


def decision(kind):
    return {
        "layout": 1,
        "decision": kind,
        "reason": "because",
        "comparison": None,
        "model": "m",
        "version": 3,
        "alias": "champion",
        "champion_version": 2,
    }


@pytest.mark.parametrize("kind", ["promoted", "kept", "unchanged"])
def test_the_decision_of_a_run_is_told_whatever_kubeflow_says_of_it(cluster, monkeypatch, kind):
    cluster.node("ngrpo_training", "k1")
    cluster.node("model_promotion", promotion=decision(kind))
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell("RUNNING")
    if kind == "unchanged":
        assert there.bodies == []
    else:
        (document,) = there.documents
        assert (document["event"], document["run"], document["version"]) == (kind, "run-1", 3)


def deployment(what):
    return {
        "layout": 1,
        "decision": what,
        "reason": "endpoint and stage are equal within ±5 points",
        "model": "m",
        "version": 3,
        "differences": {"arithmetic": {"value": 0.5, "interval": [-1.0, 2.0]}} if what == "deployed" else {},
    }


@pytest.mark.parametrize("form", ["json", "slack", "teams"])
def test_what_became_of_a_deployment_is_told_after_the_decision(cluster, monkeypatch, form):
    refusal = "model m: version 3 is not deployed: on arithmetic the endpoint is -25.00 points off the stage"
    cluster.told["notifications"]["team"]["format"] = form
    cluster.node("model_promotion", promotion=decision("promoted"))
    cluster.node("deploy", made=False)
    cluster.tried("deploy", "run-1", outcome="failed", error="canary-of the moon", reason=refusal)
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell("FAILED")
        cluster.told["nodes"].pop()
        cluster.node("deploy", deployment=deployment("deployed"))
        cluster.tell()
    promoted, refused, again, deployed = (json.dumps(each, ensure_ascii=False) for each in there.documents)
    hidden(promoted, refused, again, deployed)
    if form == "json":
        told = [(each["event"], each["model"], each["version"], each["run"]) for each in there.documents]
        assert told == [(event, "m", 3, "run-1") for event in ("promoted", "not_deployed", "promoted", "deployed")]
        assert there.documents[1]["summary"] == f"deploy: {refusal}"
        assert there.documents[3]["facts"] == {"arithmetic: points off": 0.5}
    else:
        assert "model not deployed: m version 3" in refused
        assert "on arithmetic the endpoint is -25.00 points off" in refused
        assert "model deployed: m version 3" in deployed
        assert "arithmetic: points off: 0.5" in deployed


def test_a_deployment_that_was_skipped_and_a_run_that_failed_before_it_tell_of_none(cluster, monkeypatch):
    cluster.node("model_promotion", promotion=decision("kept"))
    cluster.node("deploy", deployment=deployment("skipped"))
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell()
        cluster.node("ngrpo_training", "k1", made=False)
        cluster.tell("FAILED")
    assert [document["event"] for document in there.documents] == ["kept", "failed"]


@pytest.mark.parametrize(
    ("ended", "summary"),
    [
        (
            {"outcome": "failed", "error": "ValueError: the moon", "reason": "ValueError; see the log"},
            "ngrpo_training: ValueError; see the log",
        ),
        ({"outcome": "failed", "error": "exit code 1; its last words: the moon"}, "ngrpo_training: it failed"),
        ({}, "ngrpo_training: its pod was lost"),
        (None, "ngrpo_training: its pod did not get as far as to start; `ngrpo status run-1` may know more"),
    ],
)
def test_the_stage_that_failed_is_told_with_its_reason(cluster, monkeypatch, capfd, ended, summary):
    cluster.node("prepare_data", "k0")
    cluster.node("ngrpo_training", "k1", made=False)
    cluster.node("model_promotion", made=False)
    cluster.tried("ngrpo_training", "k1", run="another", outcome="failed", reason="of another run")
    if ended is not None:
        cluster.tried("ngrpo_training", "k1", **ended)
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell("FAILED")
    (document,) = there.documents
    assert (document["event"], document["run"], document["summary"]) == ("failed", "run-1", summary)
    assert document["facts"] == {"of": "preset tiny", "missing": 2}
    hidden(there.bodies[0].decode(), *capfd.readouterr())


def test_an_experiment_on_a_cluster_is_finished_when_all_is_there(cluster, monkeypatch):
    cluster.node("ngrpo_training", "k1")
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell()
    (document,) = there.documents
    assert (document["event"], document["summary"]) == ("finished", "preset tiny: its 1 stages are done")


@pytest.mark.parametrize("broken", ["cancelled", "no store", "damaged"])
def test_the_exit_task_never_fails_the_run(cluster, monkeypatch, capfd, broken):
    cluster.node("model_promotion", promotion=decision("promoted"))
    if broken == "no store":
        monkeypatch.delenv("NGRPO_STORE")
    elif broken == "damaged":
        for key in cluster.objects.list("model_promotion/"):
            if key.endswith("promotion.json"):
                cluster.objects.put_bytes(b"{", key)
    with receiver() as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell("CANCELED" if broken == "cancelled" else "COMPLETE")
    assert there.bodies == []
    out, err = capfd.readouterr()
    assert ("nobody is told" in out) if broken == "cancelled" else ("how it ended is not known" in err)


def test_a_receiver_that_is_down_does_not_fail_the_exit_task(cluster, monkeypatch, capfd):
    monkeypatch.setattr(webhooks, "_PAUSE_SECONDS", 0.0)
    cluster.node("model_promotion", promotion=decision("promoted"))
    with receiver("500") as there:
        monkeypatch.setenv("TEAM_WEBHOOK", there.url)
        cluster.tell()
    assert "notification team: promoted was not delivered: the receiver answered with 500" in capfd.readouterr().err
