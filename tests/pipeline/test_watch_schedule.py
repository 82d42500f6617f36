"""A schedule that watches the champion: one task, compiled by kfp's own compiler, made through its real client."""

import json
from pathlib import Path

import pytest
import yaml
from commanding import IMAGES as LOCK
from golden_ir import CLUSTER, IMAGES

from ngrpo.config import load_config
from ngrpo.errors import ConfigError, EngineError
from ngrpo.stages.champion_watch import Seen
from ngrpo.storage.state import write_state
from ngrpo_kfp.components.serving.inference_service import _PORT
from ngrpo_kfp.pipelines.cli import acting
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import load_ir
from ngrpo_kfp.pipelines.kubeflow.scheduling import watch_task
from ngrpo_kfp.pipelines.kubeflow.scheduling.watch_compilation import compile_watch
from ngrpo_kfp.pipelines.local.runs import RunSettings

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]
ROOT = Path(__file__).parents[2]
URL = "http://champion.models.svc:8000/v1"


def test_the_task_has_the_settings_and_no_gpu():
    overrides = [f"watch.endpoint.url={URL}", "resources.benchmark_evaluation.memory_gib=12"]
    config = load_config(PRESETS / "tiny.toml", overrides, CLUSTER)
    spec, platform = load_ir(compile_watch(config, IMAGES))
    (executor,) = spec["deploymentSpec"]["executors"].values()
    assert executor["container"]["resources"]["memoryLimit"] == pytest.approx(12 * 2**30 / 1e9, rel=0.2)
    assert "accelerator" not in executor["container"]["resources"]
    assert URL in str(spec["root"]["dag"]["tasks"]["watch-champion"]["inputs"]["parameters"]["config"])
    assert "enableCache" not in spec["root"]["dag"]["tasks"]["watch-champion"]["cachingOptions"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-watch-champion"]
    assert placed["podMetadata"]["labels"]["ngrpo/stage"] == "watch_champion"


def test_the_policy_for_the_watch_is_for_its_pods_and_the_port_of_the_service_alone():
    policy = yaml.safe_load((ROOT / "k8s" / "components" / "served-models" / "endpoint-access.yaml").read_text())
    _, platform = load_ir(
        compile_watch(load_config(PRESETS / "tiny.toml", [f"watch.endpoint.url={URL}"], CLUSTER), IMAGES)
    )
    (pod,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert labels.items() <= pod["podMetadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Egress"]
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == [_PORT]


def test_a_schedule_is_made_with_the_watch_as_its_only_task(kubeflow, objects, ngrpo):
    store = ("--set", f"cluster.store={objects.uri}")
    ngrpo("watch", "tiny", "--endpoint", URL, "--schedule", "nightly", "--cron", "0 0 4 * * *", *LOCK, *store)
    (schedule,) = kubeflow.schedules.values()
    assert (schedule.display_name, schedule.trigger.cron_schedule.cron) == ("nightly", "0 0 4 * * *")
    assert (schedule.no_catchup, schedule.max_concurrency) == (True, "1")
    run = kubeflow.fire(schedule)
    assert list(kubeflow.tasks(run)) == ["watch-champion"]
    assert "nightly" in ngrpo("schedule", "list")
    ngrpo("schedule", "delete", "nightly")


def test_without_a_preset_the_schedule_has_the_settings_of_the_run_that_made_the_champion(
    kubeflow, objects, ngrpo, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    monkeypatch.setenv("NGRPO_HOME", str(home))
    made, latest = (load_config(PRESETS / "tiny.toml", [f"training.steps={steps}"]) for steps in (5, 7))
    for day, config in ((1, made), (2, latest)):
        write_state(home / "runs" / f"2026010{day}-000000-000000-tiny" / "config.json", config.model_dump(mode="json"))
    monkeypatch.setattr(acting, "looked_up_settings", lambda *_: RunSettings("20260101-000000-000000-tiny", made))
    (tmp_path / "cluster.toml").write_text(f'store = "{objects.uri}"\nrun_as_user = 4321\n')
    cluster = ("--cluster", str(tmp_path / "cluster.toml"))
    told = ngrpo("watch", "--endpoint", URL, "--schedule", "nightly", "--cron", "0 0 4 * * *", *LOCK, *cluster)
    assert "(settings of run 20260101-000000-000000-tiny, which made champion)" in told
    (schedule,) = kubeflow.schedules.values()
    (task,) = kubeflow.tasks(kubeflow.fire(schedule)).values()
    config = json.loads(task["inputs"]["parameters"]["config"]["runtimeValue"]["constant"])
    assert (config["training"]["steps"], config["watch"]["endpoint"]["url"]) == (5, URL)
    assert (config["cluster"]["store"], config["cluster"]["run_as_user"]) == (objects.uri, 4321)


def test_a_watch_that_is_replaced_stays_a_watch_and_keeps_its_settings(kubeflow, objects, ngrpo):
    store = ("--set", f"cluster.store={objects.uri}")
    own = ("--set", "watch.samples=9")
    ngrpo("watch", "tiny", "--endpoint", URL, "--schedule", "nightly", "--cron", "0 0 4 * * *", *LOCK, *store, *own)
    replace = ("schedule", "replace", "nightly", "--cron", "0 0 5 * * *", *store)
    assert "name the endpoint with --endpoint URL" in ngrpo(*replace, "--preset", "tiny", code=2)
    told = ngrpo(*replace, "--base", "champion", code=2)
    assert "--base champion: schedule nightly watches the champion and starts no runs; leave it out" in told
    for changed, url in (((), URL), (("--set", f"watch.endpoint.url={URL}2"), f"{URL}2")):
        ngrpo(*replace, *changed)
        (schedule,) = kubeflow.schedules.values()
        assert schedule.trigger.cron_schedule.cron == "0 0 5 * * *"
        (name, task), *rest = kubeflow.tasks(kubeflow.fire(schedule)).items()
        watch = json.loads(task["inputs"]["parameters"]["config"]["runtimeValue"]["constant"])["watch"]
        assert (name, rest, watch["endpoint"]["url"], watch["samples"]) == ("watch-champion", [], url, 9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--schedule", "s"), "--schedule s: when? Give --cron"),
        (("--schedule", "s", "--cron", "0 3 * * *", "--endpoint", URL), "five fields"),
        (("--schedule", "s", "--cron", "@daily", "--json"), "--json is for a measurement here"),
        (("--schedule", "s", "--cron", "@daily"), "watch: no settings; name the endpoint"),
        (
            ("--schedule", "s", "--cron", "@daily", "--endpoint", "http://127.0.0.1:8000"),
            "in a pod that is the pod itself",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(kubeflow, ngrpo, arguments, said):
    assert said in ngrpo("watch", "tiny", *LOCK, *arguments, code=2)
    assert kubeflow.requests == []


def test_the_task_fails_where_there_is_an_alert_or_an_error(monkeypatch, capsys):
    def look(alert: bool):
        return lambda _: Seen("ngrpo", "1", "what was seen", alert, False, {})

    def down(_):
        raise EngineError("the endpoint cannot be reached")

    tree = load_config(PRESETS / "tiny.toml", [f"watch.endpoint.url={URL}"], CLUSTER).model_dump(mode="json")
    for function, code in ((look(False), 0), (look(True), 1), (down, 2)):
        monkeypatch.setattr(watch_task, "_look", function)
        assert watch_task.watch_in_pod(tree) == code
    said = capsys.readouterr()
    assert said.out.splitlines() == ["watch  what was seen", "alert  what was seen"]
    assert said.err == "the endpoint cannot be reached\n"


def test_the_task_has_the_key_only_where_it_may_roll_back():
    key = ["signing.private_key=$NGRPO_SIGNING_KEY", "cluster.secrets.ngrpo-signing.NGRPO_SIGNING_KEY=signing.pem"]

    def variables(*overrides: str) -> set[str]:
        config = load_config(PRESETS / "tiny.toml", [f"watch.endpoint.url={URL}", *overrides], CLUSTER)
        _, platform = load_ir(compile_watch(config, IMAGES))
        (pod,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        return {pair["envVar"] for secret in pod.get("secretAsEnv", ()) for pair in secret["keyToEnv"]}

    assert "NGRPO_SIGNING_KEY" not in variables(*key)
    assert "NGRPO_SIGNING_KEY" in variables(*key, "watch.action=rollback")
    with pytest.raises(ConfigError, match="pods have no variable NGRPO_SIGNING_KEY"):
        variables(key[0], "watch.action=rollback")


def test_without_settings_there_is_nothing_to_compile():
    with pytest.raises(ConfigError, match="name the endpoint with --endpoint URL, as pods reach it"):
        compile_watch(load_config(PRESETS / "tiny.toml", [], CLUSTER), IMAGES)
