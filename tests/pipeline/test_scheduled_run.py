"""The task of a schedule: the run of the day is planned when it starts, submitted once, and uses the current champion if requested."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import torch
from kfp_server_api import V2beta1RecurringRun, V2beta1Run
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from ngrpo.config import load_config
from ngrpo.data.embedding import load_embedding
from ngrpo.data.models import materialize, materialize_tokenizer
from ngrpo.errors import ClusterError, DataError, TrackingError
from ngrpo.stages.declarations import STAGES as STAGES_OF_A_RUN
from ngrpo.stages.keys import config_json
from ngrpo.stages.tries import tries_of
from ngrpo.storage.digest import file_sha256, model_digest
from ngrpo.storage.manifest import FileEntry, Manifest
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.client import connect, experiment_id
from ngrpo_kfp.pipelines.kubeflow.scheduling import planning_task as scheduled_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.planning_task import EndedError, submit_and_wait
from ngrpo_kfp.pipelines.kubeflow.scheduling.runs_of_the_day import cancel_with_related, name_of_the_day
from ngrpo_kfp.pipelines.planning.base_model import from_champion
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding", "mlflow_database"]

EMPTY = {"pipeline_spec": {}}
CONFIG = load_config(PRESETS / "tiny.toml")
STAGES = [name.replace("_", "-") for name in STAGES_OF_A_RUN]


@pytest.fixture
def registry(database, objects, monkeypatch) -> ModelRegistry:
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", f"{objects.uri}/mlflow")
    return ModelRegistry(CONFIG.promotion.model_name)


@pytest.fixture
def crown(registry, tmp_path):
    """Register a random model and make it champion."""

    def crowned(seed: int):
        model = save_tiny_model(tmp_path / f"model-{seed}", seed=seed)
        entries = {f"model/{path.name}": FileEntry(file_sha256(path), path.stat().st_size) for path in model.iterdir()}
        manifest = Manifest("ngrpo_training", "key", "c", "v", {}, entries)
        (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
        version = registry.register(model, tmp_path / "manifest.json", digest=model_digest(model), tags={})
        registry.set_alias(CHAMPION, str(version.version))
        return model

    return crowned


def keys(config) -> dict[str, str]:
    plan = make_plan(config, run="", store=None, rerun_tokens={}, history=History())
    return {stage.name: stage.key for stage in plan}


def test_a_run_starts_from_the_files_of_the_champion(crown, tmp_path):
    model = crown(1)
    config = from_champion(CONFIG)
    assert config.model.source.version == 1
    assert config.warm_start.steps == 0
    found = materialize(config.model.source, tmp_path / "found")
    assert model_digest(found) == model_digest(model) == config.model.source.digest
    embedding, _ = load_embedding(config.model.source, tmp_path / "read")
    assert torch.equal(embedding, AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight)


def test_the_same_champion_has_the_same_keys_and_another_has_others(crown):
    crown(1)
    first = keys(from_champion(CONFIG))
    assert keys(from_champion(CONFIG)) == first
    crown(2)
    second = keys(from_champion(CONFIG))
    assert all(second[name] != key != keys(CONFIG)[name] for name, key in first.items())


def test_what_cannot_be_started_from_is_one_clear_error(crown, registry, tmp_path):
    with pytest.raises(TrackingError, match="has no champion to start from: run once without"):
        from_champion(CONFIG)
    crown(1)
    source = from_champion(CONFIG).model.source
    files = ObjectStore(source.id)
    weights = files.get_bytes("model.safetensors")
    files.put_bytes(weights[:-1] + b"!", "model.safetensors")
    with pytest.raises(DataError, match=r"version 1: the files in s3://.* are not those that were registered"):
        materialize(source, tmp_path / "changed")
    files.delete("model.safetensors")
    with pytest.raises(TrackingError, match=r"the champion, version 1, has lost files \(model/model.safetensors\)"):
        from_champion(CONFIG)


def test_a_tokenizer_that_was_changed_is_refused_without_reading_the_weights(crown, tmp_path, monkeypatch):
    crown(1)
    source = from_champion(CONFIG).model.source
    files, read = ObjectStore(source.id), []
    get_file = ObjectStore.get_file
    monkeypatch.setattr(ObjectStore, "get_file", lambda self, key, path: read.append(key) or get_file(self, key, path))
    materialize_tokenizer(source, tmp_path / "sound")
    assert "tokenizer.json" in read
    assert "model.safetensors" not in read
    files.put_bytes(files.get_bytes("tokenizer.json") + b" ", "tokenizer.json")
    with pytest.raises(DataError, match=r"version 1: the files in s3://.* are not those that were registered"):
        materialize_tokenizer(source, tmp_path / "changed")


def test_a_champion_out_of_the_stages_reach_is_refused(crown, monkeypatch):
    crown(1)
    monkeypatch.setattr(ModelRegistry, "location", lambda *_: "mlflow-artifacts:/1/models/m-1/artifacts/model")
    with pytest.raises(TrackingError, match=r"kept in mlflow-artifacts:.*, where stages cannot read it"):
        from_champion(CONFIG)


def test_a_submitted_run_holds_the_champion_of_now(kubeflow, ngrpo, crown):
    crown(1)
    ngrpo("submit", "--base", "champion")
    settings = json.loads(kubeflow.parameter(kubeflow.run(), "sft-warm-start", "config"))
    assert (settings["model"]["source"]["kind"], settings["model"]["source"]["version"]) == ("registered", 1)
    assert settings["warm_start"]["steps"] == 0


def test_a_dry_run_asks_nobody(capsys):
    assert cli.main(["run", "--dry-run", "--base", "champion"]) == 2
    assert "use `ngrpo plan`" in capsys.readouterr().err


# --- the run of the day -----------------------------------------------------------------------------------------------


@pytest.fixture
def pod(objects, monkeypatch, tmp_path):
    """The environment of the pod of a run of the schedule."""
    for name in ("NGRPO_CACHE_DIR", "NGRPO_WORK_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NGRPO_STORE", objects.uri)


@pytest.fixture
def weekly(kubeflow, ngrpo, pod):
    """Let a schedule fire, made with some arguments; returns its run and what its task is given."""

    def fire(*arguments):
        if not kubeflow.schedules:
            ngrpo("schedule", "create", "weekly", "--cron", "0 0 3 * * MON", *arguments)
        (schedule,) = kubeflow.schedules.values()
        run = kubeflow.fire(schedule)
        assert list(kubeflow.tasks(run)) == ["scheduled-run"]
        inputs = {name: kubeflow.parameter(run, "scheduled-run", name) for name in ("config", "images", "base", "key")}
        return run, inputs

    return fire


@pytest.fixture
def monday(kubeflow, objects, pod, monkeypatch):
    """A run of the schedule and what its task is given; what the task submits is not planned, and has no stages."""
    experiment = experiment_id(connect())

    def run_named(name):
        return kubeflow._create_run(V2beta1Run(display_name=name, experiment_id=experiment, pipeline_spec=EMPTY))

    def submit(config, images, console, *, cache, name):
        return run_named(name).run_id

    monkeypatch.setattr(scheduled_run, "submit", submit)
    parent = run_named("Run of weekly")
    config = load_config(PRESETS / "tiny.toml", [f"cluster.store={objects.uri}"])
    return parent, {"config": config_json(config), "images": "", "base": "", "key": parent.run_id}


def given(inputs: dict[str, str]) -> dict[str, str]:
    """Return what the component hands on."""
    return {
        "config_json": inputs["config"],
        "images": inputs["images"],
        "base": inputs["base"],
        "parent": inputs["key"],
        "pause_seconds": 0.05,
    }


def start(inputs: dict[str, str]) -> subprocess.Popen:
    """Start what the component starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ngrpo_kfp.pipelines.kubeflow.scheduling.planning_task"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps(given(inputs)))
    process.stdin.close()
    process.stdin = None
    return process


def of_the_day(kubeflow, parent):
    """Return the runs that a run of the schedule has submitted."""
    return [run for run in kubeflow.runs.values() if run.display_name.endswith(parent.run_id)]


def submitted(kubeflow, parent, over):
    """Wait for the run of the day; `over` says whether there will be none."""
    deadline = time.monotonic() + 120
    while not of_the_day(kubeflow, parent):
        assert not over()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (run,) = of_the_day(kubeflow, parent)
    return run


@contextmanager
def ending(kubeflow, outcome):
    """End every run of the day as soon as it is submitted."""
    over = threading.Event()

    def end():
        while not over.wait(0.02):
            for run in list(kubeflow.runs.values()):
                if "-of-" in run.display_name and run.state == "RUNNING":
                    run.state = outcome

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


COMPONENT = """
import json, sys
from kfp import local
from ngrpo_kfp.pipelines.kubeflow.scheduling.component import scheduled_run
from ngrpo_kfp.pipelines.local.kept_arguments import kept_arguments
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=False)
with kept_arguments():
    scheduled_run(**json.load(sys.stdin))
"""


def test_the_component_submits_through_kfps_runner_which_says_that_it_is_a_components_process(
    kubeflow, weekly, objects, tmp_path, monkeypatch
):
    """Under `_KFP_RUNTIME=true`, `import kfp.client` ends in a circular import."""
    parent, inputs = weekly()
    monkeypatch.setenv("NGRPO_TRIES", json.dumps({"times": 1, "backoff_seconds": 1, "backoff_factor": 1}))
    for name in [name for name in os.environ if name.startswith("AWS_")]:  # as a pod has them
        ours = name.removeprefix("AWS_").replace("DEFAULT_REGION", "REGION")
        monkeypatch.setenv(f"NGRPO_S3_{ours}", os.environ[name])
        monkeypatch.delenv(name)
    with ending(kubeflow, "FAILED"):
        done = subprocess.run(
            [sys.executable, "-c", COMPONENT, str(tmp_path / "root")],
            input=json.dumps(inputs),
            capture_output=True,
            text=True,
            timeout=120,
        )
    (run,) = of_the_day(kubeflow, parent)
    assert kubeflow.pod_stages(run) == list(STAGES)
    assert f"run  {run.run_id}: FAILED" in done.stdout, done.stdout + done.stderr
    assert f"run {run.run_id} ended as FAILED: `ngrpo status {run.run_id}` shows why" in done.stdout
    (attempt,) = tries_of(objects, "scheduled_run", parent.run_id)
    assert attempt.outcome == "failed", "and is not tried again: that would change nothing"


def test_a_day_on_which_all_is_cached_costs_one_stage(kubeflow, weekly, finish, capsys):
    for stages in (list(STAGES), ["model-promotion"]):
        parent, inputs = weekly()
        with ThreadPoolExecutor() as pool:
            task = pool.submit(submit_and_wait, **given(inputs))
            run = submitted(kubeflow, parent, task.done)
            assert kubeflow.pod_stages(run) == stages
            finish()
            task.result(timeout=60)
        assert capsys.readouterr().out.endswith(f"run  {run.run_id}: SUCCEEDED\n")
        parent.state = "SUCCEEDED"


def test_an_api_that_is_out_of_reach_for_a_while_ends_nothing(kubeflow, monday, capsys):
    """Otherwise the schedule would start a second run."""
    parent, inputs = monday
    with ThreadPoolExecutor() as pool:
        task = pool.submit(submit_and_wait, **given(inputs))
        run = submitted(kubeflow, parent, task.done)
        while not kubeflow.asked("GET", f"/runs/{run.run_id}"):
            time.sleep(0.02)
        kubeflow.fail("GET", "/runs/", 503, times=5)  # more than kfp's client tries
        while kubeflow.faults[-1][3]:
            time.sleep(0.02)
        assert not task.done()
        run.state = "SUCCEEDED"
        task.result(timeout=60)
    assert "no news: run" in capsys.readouterr().err


def test_the_run_of_the_day_starts_from_the_champion_of_the_day(kubeflow, weekly, crown, database, capsys):
    parent, inputs = weekly("--base", "champion")
    with pytest.raises(TrackingError, match="has no champion to start from"):
        submit_and_wait(**given(inputs))
    for number in (1, 2):
        crown(number)
        with ending(kubeflow, "SUCCEEDED"):
            submit_and_wait(**given(inputs))
        (run,) = of_the_day(kubeflow, parent)
        settings = json.loads(kubeflow.parameter(run, "neighbor-index", "config"))
        assert settings["model"]["source"]["version"] == number
        parent.state = "SUCCEEDED"
        parent, inputs = weekly()


class KilledError(BaseException):
    """SIGKILL, at a place of the test's choice."""


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("remember", id="submitted and not yet written down"),
        pytest.param("_wait", id="written down and not yet waited for"),
    ],
)
def test_a_pod_that_takes_the_place_of_a_lost_one_joins_the_run_that_was_submitted(
    kubeflow, monday, monkeypatch, place
):
    parent, inputs = monday

    def killed(*arguments):
        raise KilledError

    with monkeypatch.context() as at_first:
        at_first.setattr(scheduled_run, place, killed)
        with pytest.raises(KilledError):
            submit_and_wait(**given(inputs))
    (run,) = of_the_day(kubeflow, parent)
    for _ in range(2):
        with ending(kubeflow, "SUCCEEDED"):
            submit_and_wait(**given(inputs))
        assert of_the_day(kubeflow, parent) == [run]


def test_a_pod_that_is_told_to_stop_leaves_the_run_of_the_day_for_the_next(kubeflow, weekly):
    """It has about a second then, and cannot tell a lost node from a cancelled run."""
    parent, inputs = weekly()
    process = start(inputs)
    run = submitted(kubeflow, parent, lambda: process.poll() is not None)
    process.terminate()
    process.wait(timeout=30)
    assert run.state == "RUNNING"
    run.state = "SUCCEEDED"
    submit_and_wait(**given(inputs))
    assert of_the_day(kubeflow, parent) == [run]


def test_an_answer_that_was_lost_does_not_submit_twice(kubeflow, weekly, monkeypatch):
    parent, inputs = weekly()
    create = kubeflow._create_run

    def lost(run):
        create(run)
        raise ConnectionError

    monkeypatch.setattr(kubeflow, "_create_run", lost)
    with pytest.raises(ClusterError, match="it may have been done"):
        submit_and_wait(**given(inputs))
    with ending(kubeflow, "SUCCEEDED"):
        submit_and_wait(**given(inputs))
    assert len(of_the_day(kubeflow, parent)) == 1


def test_of_two_pods_that_submit_at_the_same_time_one_is_right(kubeflow, monday, monkeypatch):
    """A node that is out of reach may still run its pod when the next one starts."""
    parent, inputs = monday
    submit, waited_for = scheduled_run.submit, []

    def submit_late(*arguments, **settings):
        monkeypatch.setattr(scheduled_run, "submit", submit)
        submit_and_wait(**given(inputs))
        return submit(*arguments, **settings)

    monkeypatch.setattr(scheduled_run, "submit", submit_late)
    monkeypatch.setattr(scheduled_run, "_wait", lambda client, run_id, *_: waited_for.append(run_id) or "SUCCEEDED")
    submit_and_wait(**given(inputs))
    first, second = of_the_day(kubeflow, parent)
    assert waited_for == [first.run_id, first.run_id]
    assert (first.state, second.state) == ("RUNNING", "CANCELING")


def test_a_run_that_was_cancelled_submits_nothing_that_stays(kubeflow, monday, monkeypatch):
    parent, inputs = monday
    submit = scheduled_run.submit

    def submit_too_late(*arguments, **settings):
        parent.state = "CANCELING"
        return submit(*arguments, **settings)

    monkeypatch.setattr(scheduled_run, "submit", submit_too_late)
    with pytest.raises(EndedError, match=f"run {parent.run_id}, to which this task belongs, is CANCELING"):
        submit_and_wait(**given(inputs))
    assert [run.state for run in of_the_day(kubeflow, parent)] == ["CANCELING"]


def test_a_run_that_was_cancelled_before_submits_nothing(kubeflow, monday):
    parent, inputs = monday
    parent.state = "CANCELED"
    with pytest.raises(EndedError, match="nothing is submitted"):
        submit_and_wait(**given(inputs))
    assert of_the_day(kubeflow, parent) == []


def test_a_run_of_the_day_that_was_deleted_is_not_waited_for(kubeflow, monday):
    parent, inputs = monday
    with ending(kubeflow, "SUCCEEDED"):
        submit_and_wait(**given(inputs))
    (run,) = of_the_day(kubeflow, parent)
    del kubeflow.runs[run.run_id]
    with pytest.raises(EndedError, match=f"run {run.run_id}, the run of the day, is gone"):
        submit_and_wait(**given(inputs))


def test_a_run_of_the_day_whose_image_cannot_be_pulled_is_ended(kubeflow, monday, monkeypatch):
    parent, inputs = monday
    reasons = iter([None, "the image of prepare_data could not be pulled"])
    monkeypatch.setattr(scheduled_run, "unpullable", lambda run_id: next(reasons))
    with pytest.raises(EndedError, match="was ended: the image of prepare_data could not be pulled"):
        submit_and_wait(**given(inputs))
    assert [run.state for run in of_the_day(kubeflow, parent)] == ["CANCELING"]


def test_who_may_not_list_pods_is_told_once_and_waits_all_the_same(kubeflow, monday, capsys):
    parent, inputs = monday
    kubeflow.fail("GET", "/pods", 403, times=100)
    with ThreadPoolExecutor() as pool:
        task = pool.submit(submit_and_wait, **given(inputs))
        run = submitted(kubeflow, parent, task.done)
        while kubeflow.asked("GET", f"/runs/{run.run_id}") < 3:
            time.sleep(0.02)
        run.state = "SUCCEEDED"
        task.result(timeout=60)
    assert capsys.readouterr().err.count("not watched for images that cannot be pulled") == 1


# --- times in a time zone, and a seed a run ----------------------------------------------------------------------------

BERLIN = {"cron": "0 0 3 * * *", "time_zone": "Europe/Berlin"}


@pytest.fixture
def in_berlin(kubeflow, monday):
    """Let the schedule, which was made at noon of a winter's day, start a run at an hour in UTC of the next day; returns the run."""
    first, inputs = monday
    made = datetime(2026, 1, 5, 12, tzinfo=UTC)
    schedule = V2beta1RecurringRun(recurring_run_id="s-1", display_name="nightly", created_at=made)
    kubeflow.schedules["s-1"] = schedule

    def started(hour):
        run = V2beta1Run(display_name="a run", experiment_id=first.experiment_id, pipeline_spec=EMPTY)
        kubeflow._create_run(run)
        run.recurring_run_id, run.created_at = "s-1", datetime(2026, 1, 6, hour, 0, 5, tzinfo=UTC)
        return run, given(inputs | {"key": run.run_id})

    return started


def test_a_run_is_submitted_when_the_clock_of_the_zone_says_so(kubeflow, in_berlin, capsys):
    """Kubeflow starts the task at one and at two in UTC: three o'clock in summer and in winter."""
    early, asked = in_berlin(1)
    submit_and_wait(**asked, **BERLIN)
    assert of_the_day(kubeflow, early) == []
    assert "nothing is due: 0 0 3 * * * in Europe/Berlin has not come since the last run" in capsys.readouterr().out
    right, asked = in_berlin(2)
    with ending(kubeflow, "SUCCEEDED"):
        submit_and_wait(**asked, **BERLIN)
    assert len(of_the_day(kubeflow, right)) == 1
    again, asked = in_berlin(5)
    submit_and_wait(**asked, **BERLIN)
    assert of_the_day(kubeflow, again) == [], "it had its run"


def test_each_run_has_a_seed_of_its_own_and_its_next_try_the_same(kubeflow, in_berlin, monkeypatch):
    seeds = []
    submit = scheduled_run.submit
    monkeypatch.setattr(
        scheduled_run,
        "submit",
        lambda config, *rest, **more: seeds.append(config.seed) or submit(config, *rest, **more),
    )
    for hour in (2, 3):
        run, asked = in_berlin(hour)
        with ending(kubeflow, "SUCCEEDED"):
            submit_and_wait(**asked, seed="each-run")
        assert seeds[-1] == int(run.created_at.timestamp())
    assert seeds[1] - seeds[0] == 3600


# --- both are cancelled -----------------------------------------------------------------------------------------------


@pytest.fixture
def both(kubeflow, monday):
    """A run of the schedule and the run of the day, which go on."""
    parent, _ = monday
    child = kubeflow._create_run(
        V2beta1Run(
            display_name=name_of_the_day(parent, "tiny"), experiment_id=parent.experiment_id, pipeline_spec=EMPTY
        )
    )
    return parent, child


@pytest.mark.parametrize("which", [0, 1])
def test_cancelling_one_cancels_the_other(kubeflow, both, which):
    assert cancel_with_related(connect(), both[which].run_id) == [run.run_id for run in both]
    assert [run.state for run in both] == ["CANCELING", "CANCELING"]
    with pytest.raises(ClusterError, match=r"is over \(CANCELING\): there is nothing to cancel"):
        cancel_with_related(connect(), both[which].run_id)


def test_cancelling_a_run_of_the_schedule_that_is_over_cancels_what_goes_on(kubeflow, both):
    parent, child = both
    parent.state = "CANCELED"  # in Kubeflow's UI, which knows nothing of the other
    assert cancel_with_related(connect(), parent.run_id) == [child.run_id]
    assert child.state == "CANCELING"


def test_a_run_of_the_day_whose_parent_was_deleted_can_be_cancelled(kubeflow, both):
    parent, child = both
    del kubeflow.runs[parent.run_id]
    assert cancel_with_related(connect(), child.run_id) == [child.run_id]


def test_cancelling_any_other_run_cancels_that_alone(kubeflow, both, ngrpo):
    ngrpo("submit")
    other = kubeflow.run()
    assert cancel_with_related(connect(), other.run_id) == [other.run_id]
    assert [run.state for run in both] == ["RUNNING", "RUNNING"]
