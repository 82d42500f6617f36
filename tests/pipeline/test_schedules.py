"""Schedules, through kfp's real client, against an API with the rules of the real one."""

import json
import re
from datetime import timedelta

import kubeflow_stub
import pytest
from commanding import IMAGES as LOCK
from golden_ir import CLUSTER, IMAGES

from ngrpo.config import load_config
from ngrpo.config.cluster import TRAINING_TOKEN, RetryConfig
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow import kubernetes_api
from ngrpo_kfp.pipelines.kubeflow.compilation import load_ir
from ngrpo_kfp.pipelines.kubeflow.scheduling.compilation import compile_scheduled_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.cron import check_cron
from ngrpo_kfp.pipelines.kubeflow.scheduling.wishes import Wishes

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

NIGHTLY = ("--cron", "0 0 3 * * *")


def test_a_schedule_runs_one_task_one_at_a_time(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * MON")
    (schedule,) = kubeflow.schedules.values()
    assert schedule.trigger.cron_schedule.cron == "0 0 3 * * MON"
    assert (schedule.no_catchup, schedule.max_concurrency, schedule.status) == (True, "1", "ENABLED")
    first = kubeflow.fire(schedule)
    assert list(kubeflow.tasks(first)) == ["scheduled-run"], "what is cached costs no pod"
    assert "enableCache" not in kubeflow.tasks(first)["scheduled-run"]["cachingOptions"]
    assert kubeflow.parameter(first, "scheduled-run", "key") == first.run_id
    assert kubeflow.fire(schedule) is None


def test_a_schedule_must_know_where_pods_find_the_api(ngrpo, kubeflow, capsys):
    assert cli.main(["schedule", "create", "weekly", *NIGHTLY, *LOCK]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cluster.environment.KF_PIPELINES_ENDPOINT: missing" in line
    assert "http://ml-pipeline.kubeflow.svc:8888" in line
    assert kubeflow.requests == []


def test_what_the_run_of_the_day_would_be_refused_for_is_refused_now(ngrpo, kubeflow):
    told = ngrpo("schedule", "create", "s", *NIGHTLY, "--set", "resources.prepare_data.cpus=65", code=2)
    assert "resources.prepare_data.cpus=65 exceeds" in told
    assert kubeflow.requests == []


@pytest.fixture
def shared(kubeflow, monkeypatch):
    """A Kubeflow of several users."""
    kubeflow.multi_user = True
    for name in ("team", "others"):
        labels = {"app.kubernetes.io/part-of": "kubeflow-profile"}
        kubeflow.objects |= kubeflow_stub.cluster(name)
        kubeflow.objects[f"/api/v1/namespaces/{name}"] = {"metadata": {"name": name, "labels": labels}}
    monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "team")
    return kubeflow


def test_where_pipelines_belong_to_namespaces_ours_is_found_again(shared, ngrpo):
    ngrpo("schedule", "create", "a", *NIGHTLY)
    ngrpo("schedule", "create", "b", *NIGHTLY)
    ngrpo("schedule", "replace", "a", "--seed", "1")
    assert [pipeline.namespace for pipeline in shared.pipelines.values()] == ["team"]
    assert sorted(schedule.display_name for schedule in shared.schedules.values()) == ["a", "b"]


def test_each_namespace_has_its_own_pipeline_and_schedules(shared, ngrpo, monkeypatch):
    ngrpo("schedule", "create", "a", *NIGHTLY)
    monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "others")
    ngrpo("schedule", "create", "a", *NIGHTLY)
    assert [pipeline.namespace for pipeline in shared.pipelines.values()] == ["team", "others"]
    ngrpo("schedule", "delete", "a")
    monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "team")
    assert "│ a " in ngrpo("schedule", "list")


def test_the_version_of_the_pipeline_is_that_of_the_code_and_the_settings(kubeflow, ngrpo):
    for name in ("a", "b"):
        ngrpo("schedule", "create", name, "--cron", "0 0 3 * * *")
    ngrpo("schedule", "create", "c", "--cron", "0 0 3 * * *", "--seed", "1")
    assert len(kubeflow.pipelines) == 1
    assert [version.display_name[:5] for version in kubeflow.versions.values()] == ["tiny-", "tiny-"]
    used = [schedule.pipeline_version_reference.pipeline_version_id for schedule in kubeflow.schedules.values()]
    assert used[0] == used[1] != used[2]


def test_schedules_are_listed_paused_resumed_and_deleted_by_name(kubeflow, ngrpo):
    assert kubeflow.experiments == {}
    ngrpo("schedule", "list")
    for number in range(5):  # more than a page
        ngrpo("schedule", "create", f"s{number}", "--cron", f"0 0 {number} * * *")
    ngrpo("schedule", "pause", "s4")
    (paused,) = [schedule for schedule in kubeflow.schedules.values() if schedule.status == "DISABLED"]
    assert paused.display_name == "s4"
    assert kubeflow.fire(paused) is None
    told = ngrpo("schedule", "list")
    assert re.search(r"│ s4 +│ 0 0 4 \* \* \* +│ disabled", told)
    assert re.search(r"│ s0 +│ 0 0 0 \* \* \* +│ enabled", told)
    ngrpo("schedule", "resume", "s4")
    assert [schedule.status for schedule in kubeflow.schedules.values()] == ["ENABLED"] * 5
    ngrpo("schedule", "delete", "s4")
    assert sorted(schedule.display_name for schedule in kubeflow.schedules.values()) == ["s0", "s1", "s2", "s3"]
    assert "there is no schedule 's4'" in ngrpo("schedule", "pause", "s4", code=2)


def test_a_schedule_is_made_once(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * *")
    assert "there is a schedule 'weekly' already" in ngrpo(
        "schedule", "create", "weekly", "--cron", "0 0 4 * * *", code=2
    )
    assert len(kubeflow.schedules) == 1


@pytest.mark.parametrize("paused", [False, True])
def test_a_schedule_is_replaced_and_stays_as_it_was(kubeflow, ngrpo, paused):
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * *")
    if paused:
        ngrpo("schedule", "pause", "weekly")
    (old,) = kubeflow.schedules.values()
    ngrpo("schedule", "replace", "weekly", "--seed", "7")
    (new,) = kubeflow.schedules.values()
    assert new.recurring_run_id != old.recurring_run_id
    assert new.trigger.cron_schedule.cron == "0 0 3 * * *"
    assert new.status == ("DISABLED" if paused else "ENABLED")
    assert new.pipeline_version_reference != old.pipeline_version_reference
    ngrpo("schedule", "replace", "weekly", "--cron", "0 0 5 * * *")
    (newest,) = kubeflow.schedules.values()
    assert newest.trigger.cron_schedule.cron == "0 0 5 * * *"


def test_a_schedule_that_is_replaced_keeps_the_settings_that_are_not_named(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * *", "smollm2", "--base", "champion", "--seed", "3")

    def parameters():
        (schedule,) = kubeflow.schedules.values()
        run = kubeflow.fire(schedule)
        run.state = "SUCCEEDED"
        spec = next(iter(kubeflow.tasks(run).values()))["inputs"]["parameters"]
        config = json.loads(spec["config"]["runtimeValue"]["constant"])
        return config["preset"], config["seed"], config["training"]["steps"], spec["base"]["runtimeValue"]["constant"]

    steps = parameters()[2]
    ngrpo("schedule", "replace", "weekly", "--cron", "0 0 5 * * *")
    assert parameters() == ("smollm2", 3, steps, "champion")
    ngrpo("schedule", "replace", "weekly", "--seed", "7", "--set", f"training.steps={steps + 1}")
    assert parameters() == ("smollm2", 7, steps + 1, "champion")
    ngrpo("schedule", "replace", "weekly", "tiny")
    assert (parameters()[0], parameters()[3]) == ("tiny", "")


def test_a_schedule_whose_settings_cannot_be_read_needs_its_preset(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * *")
    for version in kubeflow.versions.values():
        spec = version.pipeline_spec
        spec.get("pipeline_spec", spec)["pipelineInfo"]["description"] = '{"of": "an earlier version"}'
    assert "name its preset (--preset PRESET)" in ngrpo("schedule", "replace", "weekly", code=2)
    ngrpo("schedule", "replace", "weekly", "tiny")


def test_a_schedule_that_cannot_be_replaced_is_as_it_was(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * *")
    kubeflow.fail("DELETE", "/recurringruns/", 503)
    assert "failed (503" in ngrpo("schedule", "replace", "weekly", "--seed", "7", code=2)
    (schedule,) = kubeflow.schedules.values()
    assert schedule.status == "ENABLED"


@pytest.mark.parametrize(
    ("cron", "named"),
    [
        ("0 3 * * MON", "write '0 0 3 * * MON'"),
        ("hourly", "1 fields; write six"),
        ("0 60 3 * * *", "minute '60'"),
        ("0 0 24 * * *", "hour '24'"),
        ("0 0 5-3 * * *", "hour '5-3'"),
        ("0 0 3 0 * *", "day of the month '0'"),
        ("0 0 3 * 13 *", "month '13'"),
        ("0 0 3 * * MOON", "day of the week 'MOON'"),
        ("0 */0 3 * * *", "minute '*/0'"),
        ("0 0 3 31 2,4 *", "no year has such a date"),
        # What other readers of cron take, Kubeflow's own (robfig/cron 1.2) does not.
        ("0 0 3 * * 7", "day of the week '7'"),
        ("0 0 3 * * FRI-MON", "day of the week 'FRI-MON'"),
        ("0 0 3 * * 1#2", "day of the week '1#2'"),
        ("0 0 3 L * *", "day of the month 'L'"),
        ("@reboot", "write @hourly"),
        ("@every 12", "'@every 12h'"),
    ],
)
def test_a_cron_that_cannot_be_is_refused_before_anything_is_asked(kubeflow, ngrpo, cron, named):
    assert named in ngrpo("schedule", "create", "weekly", "--cron", cron, code=2)
    assert kubeflow.requests == []


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 3 * * MON",
        "0 0/15 1-5,7 ? JAN-MAR 1",
        "*/5 * * * * *",
        "0 0 3 31 2 FRI",
        "0 0 0 29 2 ?",
        "0 0 3 1 jan sun-sat/2",
        "@daily",
        "@every 1h30m",
    ],
)
def test_a_cron_that_can_be_is_taken_as_it_is(cron):
    assert check_cron(cron) == cron


# --- what was missed --------------------------------------------------------------------------------------------------


def paused(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", *NIGHTLY)
    ngrpo("schedule", "pause", "weekly")
    (schedule,) = kubeflow.schedules.values()
    return schedule


def test_what_a_paused_schedule_missed_is_not_made_up_for(kubeflow, ngrpo):
    schedule = paused(kubeflow, ngrpo)
    assert kubeflow.fire(schedule) is None
    ngrpo("schedule", "resume", "weekly")
    assert kubeflow.runs == {}
    (new,) = kubeflow.schedules.values()
    assert new.status == "ENABLED"
    for name in ("display_name", "experiment_id", "pipeline_version_reference", "max_concurrency", "no_catchup"):
        assert getattr(new, name) == getattr(schedule, name)
    assert new.trigger.cron_schedule.cron == schedule.trigger.cron_schedule.cron
    assert kubeflow.fire(new) is not None


def test_nor_is_what_a_replaced_one_missed(kubeflow, ngrpo):
    kubeflow.fire(paused(kubeflow, ngrpo))
    ngrpo("schedule", "replace", "weekly", "--seed", "7")
    ngrpo("schedule", "resume", "weekly")
    assert kubeflow.runs == {}


def test_a_schedule_that_cannot_be_resumed_is_paused_as_it_was(kubeflow, ngrpo):
    schedule = paused(kubeflow, ngrpo)
    kubeflow.fail("DELETE", "/recurringruns/", 503)
    assert "failed (503" in ngrpo("schedule", "resume", "weekly", code=2)
    assert list(kubeflow.schedules.values()) == [schedule]
    assert schedule.status == "DISABLED"


def test_a_schedule_that_is_not_paused_is_left_alone(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", *NIGHTLY)
    before = dict(kubeflow.schedules)
    assert "weekly is not paused" in ngrpo("schedule", "resume", "weekly")
    assert kubeflow.schedules == before


# --- a run that goes on -----------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_outlives_its_schedule(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", *NIGHTLY)
    (schedule,) = kubeflow.schedules.values()
    run = kubeflow.fire(schedule)
    told = ngrpo("schedule", "replace", "weekly", "--seed", "7")
    assert f"run  {run.run_id} of the old schedule goes on" in told
    (schedule,) = kubeflow.schedules.values()
    kubeflow.fire(schedule)
    ngrpo("schedule", "delete", "weekly")
    assert kubeflow.deleted_workflows == []


def test_a_schedule_whose_run_goes_on_is_resumed_as_it_is_for_a_new_one_would_start_a_second(kubeflow, ngrpo):
    ngrpo("schedule", "create", "weekly", *NIGHTLY)
    (schedule,) = kubeflow.schedules.values()
    run = kubeflow.fire(schedule)
    ngrpo("schedule", "pause", "weekly")
    told = ngrpo("schedule", "resume", "weekly")
    assert f"one run makes up for it after run {run.run_id}" in told
    assert list(kubeflow.schedules.values()) == [schedule]
    assert schedule.status == "ENABLED"
    assert kubeflow.fire(schedule) is None


# --- the clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "named"), [(12, "the cluster's is 12 minutes ahead of"), (-90, "the cluster's is 90 minutes behind")]
)
def test_a_cluster_whose_clock_is_off_is_said_to_be(kubeflow, ngrpo, minutes, named):
    kubeflow.clock_ahead = timedelta(minutes=minutes)
    assert named in ngrpo("schedule", "create", "weekly", *NIGHTLY)
    assert len(kubeflow.schedules) == 1


def test_a_clock_that_is_right_is_not_spoken_of(kubeflow, ngrpo):
    kubeflow.clock_ahead = timedelta(minutes=3)
    assert "clock" not in ngrpo("schedule", "create", "weekly", *NIGHTLY)


# --- the pod of its task ----------------------------------------------------------------------------------------------


def test_the_pod_of_a_scheduled_run_knows_its_namespace_its_tries_and_the_api_and_takes_no_room_in_the_queue():
    address = "http://ml-pipeline.kubeflow.svc:8888"
    overrides = [f"cluster.environment.KF_PIPELINES_ENDPOINT={address}"]
    config = load_config(PRESETS / "tiny.toml", overrides, CLUSTER)
    spec, platform = load_ir(compile_scheduled_run(config, IMAGES, Wishes()))
    container = spec["deploymentSpec"]["executors"]["exec-scheduled-run"]["container"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert environment["KF_PIPELINES_ENDPOINT"] == address
    assert RetryConfig.model_validate_json(environment["NGRPO_TRIES"]) == config.cluster.retry
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-scheduled-run"]
    paths = {item["name"]: item["fieldPath"] for item in placed["fieldPathAsEnv"]}
    assert paths["KF_PIPELINES_NAMESPACE"] == "metadata.namespace"
    assert placed["podMetadata"]["labels"] == {"ngrpo/stage": "scheduled_run"}
    (mounted,) = placed["secretAsVolume"]
    assert (mounted["secretName"], mounted["mountPath"]) == ("ngrpo-training-token", TRAINING_TOKEN)
    assert mounted["optional"], "or the pod would wait for it"


def test_a_pod_with_the_token_of_the_training_account_asks_kubernetes_with_it(monkeypatch, tmp_path):
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text(f"the {name}")
    monkeypatch.setattr(kubernetes_api, "TRAINING_TOKEN", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    settings = kubernetes_api.Kubernetes()._client.configuration
    assert settings.host == "https://127.0.0.1:6443"
    assert settings.ssl_ca_cert == str(tmp_path / "ca.crt")
    assert "the token" in settings.get_api_key_with_prefix("authorization")
