"""The commands of a cluster, through kfp's real client, against an API with a memory and a real object store."""

import json
import time

import pytest
from commanding import IMAGES, LIBRARIES
from golden_ir import CLUSTER
from kubeflow_stub import cluster

from faulty_proxy import faulty_proxy
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.kubeflow.client import connect
from ngrpo_kfp.pipelines.kubeflow.links import links

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

STAGES = (
    "prepare-data",
    "neighbor-index",
    "sft-warm-start",
    "ngrpo-training",
    "benchmark-evaluation",
    "model-promotion",
)


# --- submit and rerun -------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_what_the_first_produced(kubeflow, ngrpo, finish):
    ngrpo("submit", "--preset", "tiny")
    first = kubeflow.run()
    assert kubeflow.pod_stages(first) == list(STAGES)
    finish()
    ngrpo("submit", "--preset", "tiny")
    second = kubeflow.run()
    assert len(kubeflow.runs) == 2
    assert kubeflow.pod_stages(second) == ["model-promotion"]
    assert list(kubeflow.tasks(second)) == ["model-promotion"], "no pod, of Kubeflow's neither, for what is known"
    assert {"trained_known", "evaluation_known"} < set(
        kubeflow.tasks(second)["model-promotion"]["inputs"]["parameters"]
    )
    finish()
    assert kubeflow.parameter(first, "model-promotion", "key") != kubeflow.parameter(second, "model-promotion", "key")


def test_a_changed_training_setting_leaves_data_index_and_warm_start_as_they_are(kubeflow, ngrpo, finish):
    ngrpo("submit")
    finish()
    ngrpo("submit", "--set", "training.learning_rate=1e-4")
    assert kubeflow.pod_stages(kubeflow.run()) == list(STAGES[3:])
    finish()


def test_rerun_of_the_evaluation_of_a_run_runs_it_and_the_promotion_and_the_new_result_stays(kubeflow, ngrpo, finish):
    ngrpo("submit", "--seed", "3")
    first = kubeflow.run()
    finish()
    ngrpo("rerun", "benchmark_evaluation", "--from", first.run_id)
    again = kubeflow.run()
    assert kubeflow.pod_stages(again) == ["benchmark-evaluation", "model-promotion"]
    config = json.loads(kubeflow.parameter(again, "benchmark-evaluation", "config"))
    assert config["seed"] == 3, "the configuration is that of the run"
    assert kubeflow.parameter(again, "benchmark-evaluation", "key") != kubeflow.parameter(
        first, "benchmark-evaluation", "key"
    )
    finish()
    ngrpo("submit", "--seed", "3")
    assert kubeflow.pod_stages(kubeflow.run()) == ["model-promotion"]
    evaluation = kubeflow.parameter(again, "benchmark-evaluation", "key")
    assert f"/benchmark_evaluation/{evaluation}/" in json.dumps(kubeflow.tasks(kubeflow.run()))


def test_the_last_of_several_reruns_counts(kubeflow, ngrpo, finish, monkeypatch):
    random = iter(("ffffffff", "00000000"))
    monkeypatch.setattr("secrets.token_hex", lambda size: next(random))
    ngrpo("submit")
    first = kubeflow.run().run_id
    finish()
    for _ in range(2):
        ngrpo("rerun", "ngrpo_training", "--from", first)
        assert kubeflow.pod_stages(kubeflow.run()) == list(STAGES[3:])
        last = kubeflow.parameter(kubeflow.run(), "ngrpo-training", "key")
        finish()
    ngrpo("submit")
    assert f"/ngrpo_training/{last}/" in json.dumps(kubeflow.tasks(kubeflow.run()))


def test_a_rerun_that_was_refused_is_not_made_up_for(kubeflow, ngrpo, finish, objects):
    ngrpo("submit")
    first = kubeflow.run().run_id
    finish()
    kubeflow.fail("POST", "/runs", 503)
    ngrpo("rerun", "prepare_data", "--from", first, code=2)
    assert objects.list("rerun_tokens/") == []
    ngrpo("submit")
    assert kubeflow.pod_stages(kubeflow.run()) == ["model-promotion"]


def test_an_artifact_that_is_gone_or_damaged_is_made_again(kubeflow, ngrpo, finish, objects, tmp_path):
    ngrpo("submit")
    first = kubeflow.run()
    finish()
    index, training = (kubeflow.parameter(first, stage, "key") for stage in ("neighbor-index", "ngrpo-training"))
    objects.delete(f"neighbor_index/{index}/manifest.json")
    objects.put_bytes(b"other", f"ngrpo_training/{training}/payload.txt")
    told = ngrpo("submit")
    assert "payload.txt" in told
    assert kubeflow.pod_stages(kubeflow.run()) == ["neighbor-index", "ngrpo-training", "model-promotion"]
    store = ArtifactStore(objects, tmp_path)
    assert store.find("ngrpo_training", training) is not None, "it stays until its replacement is whole"
    assert store.find_sound("ngrpo_training", training) is None, "or the stage would take it for its result"


def test_a_run_of_something_else_cannot_be_rerun(kubeflow, ngrpo):
    ngrpo("submit")
    run = kubeflow.run()
    run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["description"] = "hello"
    assert "was not made by ngrpo" in ngrpo("rerun", "prepare_data", "--from", run.run_id, code=2)
    run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["description"] = '{"preset": "x"}'
    error = cli.main(["rerun", "prepare_data", "--from", run.run_id, *IMAGES])
    assert error == 2


def test_from_brings_its_own_configuration(kubeflow, ngrpo):
    assert "leave out the preset" in ngrpo("rerun", "prepare_data", "--from", "x", "--seed", "1", code=2)
    assert kubeflow.requests == []


# --- an API that refuses, fails, or is not there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (401, "refuses the credentials (401): set KF_PIPELINES_TOKEN"),
        (403, "refuses the credentials (403)"),
        (404, "has no such thing (it fails with 404)"),
        (409, "already has one of that name"),
        (412, "refused, because of another change at the same time (412: it fails with 412): try again"),
        (429, "is overloaded (it fails with 429): try again in a minute"),
        (400, "refused (400: it fails with 400)"),
        (503, "failed (503: it fails with 503)"),
    ],
)
def test_a_refused_run_is_one_line_and_is_sent_once(kubeflow, ngrpo, status, named):
    kubeflow.fail("POST", "/runs", status, times=10)
    assert named in ngrpo("submit", code=2)
    assert kubeflow.asked("POST", "/runs") == 1
    assert kubeflow.runs == {}


def test_a_failure_that_passes_is_waited_for_where_nothing_is_changed(kubeflow, ngrpo):
    ngrpo("submit")
    kubeflow.fail("GET", "/runs/", 503, times=2)
    assert kubeflow.run().run_id in ngrpo("status")


def test_a_server_that_says_when_to_come_back_is_asked_again_then(kubeflow, ngrpo):
    ngrpo("submit")
    kubeflow.fail("GET", "/runs/", 429)
    assert kubeflow.run().run_id in ngrpo("status"), "and where it does not say, too"
    kubeflow.retry_after = "1"
    kubeflow.fail("GET", "/runs/", 429)
    began = time.monotonic()
    assert kubeflow.run().run_id in ngrpo("status")
    assert time.monotonic() - began > 1


def test_two_changes_at_a_time_are_no_name_that_is_taken(kubeflow, ngrpo):
    kubeflow.fail("POST", "/runs", 409, code=10)
    assert "refused, because of another change at the same time (409: it fails with 409)" in ngrpo("submit", code=2)


def test_three_wrong_settings_are_one_refusal(kubeflow, ngrpo, tmp_path, capsys):
    settings = tmp_path / "mine.toml"
    settings.write_text('timeout_hours = 0\nqueue = "Not A Name"\n')
    overrides = ["--set", "training.learning_rate=fast", "--cluster", str(settings)]
    assert cli.main(["submit", *overrides, *IMAGES]) == 2
    said = capsys.readouterr().err
    for field in ("cluster.timeout_hours", "cluster.queue", "training.learning_rate"):
        assert field in said
    assert kubeflow.requests == []


def test_what_no_pod_can_get_and_what_has_no_image_are_one_refusal(kubeflow, objects, tmp_path, capsys):
    lock = tmp_path / "images.lock"
    lock.write_text(f'cpu = "registry.example/ngrpo-cpu@sha256:{64 * "c"}"\n{LIBRARIES}')
    overrides = {
        "cluster.store": objects.uri,
        "resources.prepare_data.cpus": 100,
        "resources.sft_warm_start.memory_gib": 1000,
        "resources.benchmark_evaluation.gpus": 1,
        "resources.benchmark_evaluation.memory_gib": 64,
    }
    settings = [part for name, value in overrides.items() for part in ("--set", f"{name}={value}")]
    assert cli.main(["submit", "--images", str(lock), *settings]) == 2
    said = capsys.readouterr().err
    for named in ("prepare_data.cpus=100", "sft_warm_start.memory_gib=1000", "image 'gpu' is not in"):
        assert named in said
    assert kubeflow.requests == []


def test_a_run_is_shown_in_kubeflow_and_in_mlflow(kubeflow, ngrpo, monkeypatch):
    told = ngrpo("submit")
    assert f"kubeflow  {kubeflow.address}/#/runs/details/{kubeflow.run().run_id}" in told
    assert "mlflow" not in told, "a file is not shown in a browser"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cr3t@mlflow.example/")
    monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "team")
    kubeflow.objects |= cluster("team")
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline")
    told = ngrpo("submit")
    run = kubeflow.run().run_id
    assert f"kubeflow  https://kubeflow.example/_/pipeline/?ns=team#/runs/details/{run}" in told
    assert "mlflow  https://mlflow.example/#/experiments" in told


def test_the_port_of_the_api_has_no_pages(monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:8888")
    (line,) = links("1234")
    assert "KF_PIPELINES_UI_ENDPOINT names its address" in line


def test_a_connection_that_is_cut_leaves_open_what_was_done(kubeflow, ngrpo):
    kubeflow.fail("POST", "/runs", 0, times=10)
    assert "cannot be reached (ProtocolError)" in (told := ngrpo("submit", code=2))
    assert "it may have been done: see `ngrpo status`" in told
    assert kubeflow.asked("POST", "/runs") == 1


def test_a_token_is_taken_from_the_environment_and_is_never_shown(kubeflow, ngrpo, monkeypatch):
    kubeflow.token = "s3cr3t"
    assert "refuses the credentials (401)" in ngrpo("status", code=2)
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong-t0ken")
    assert "wrong-t0ken" not in ngrpo("status", code=2)
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "s3cr3t")
    assert "there is no run yet" in ngrpo("status", code=2)


def test_a_pod_uses_its_own_token_which_changes_and_the_environment_goes_before_it(
    kubeflow, ngrpo, monkeypatch, tmp_path
):
    token = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    assert f"KF_PIPELINES_SA_TOKEN_PATH={token}: there is no such file" in ngrpo("status", code=2)
    kubeflow.token = "first"
    token.write_text("first")
    client = connect()
    kubeflow.token = "second"
    token.write_text("second")
    assert client.get_kfp_healthz().multi_user is not None
    assert "there is no run yet" in ngrpo("status", code=2)
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "of-a-person")
    assert "refuses the credentials (401)" in ngrpo("status", code=2)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_api_with_a_certificate_of_a_private_authority(kubeflow, ngrpo, monkeypatch, tmp_path, variable):
    with faulty_proxy(kubeflow.address, tmp_path / "ca.crt") as proxy:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", proxy.url)
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        assert "cannot be reached (SSLError)" in ngrpo("status", code=2)
        monkeypatch.setenv(variable, str(tmp_path / "ca.crt"))
        assert "there is no run yet" in ngrpo("status", code=2)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("", "KF_PIPELINES_ENDPOINT is not set"),
        ("kubeflow.example", "write http://host:port"),
        ("http://user:s3cr3t@127.0.0.1:9", "KF_PIPELINES_ENDPOINT=http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_an_api_that_is_not_there_is_one_line(ngrpo, monkeypatch, address, named):
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", address)
    told = ngrpo("status", code=2)
    assert named in told
    assert "s3cr3t" not in told
    assert "may have been done" not in told


def test_something_else_that_answers_is_not_taken_for_the_api(kubeflow, ngrpo):
    kubeflow.fail("GET", "/healthz", 200)
    assert "it is not the API of Kubeflow Pipelines" in ngrpo("status", code=2)


def test_a_store_that_is_not_there_is_one_line_and_nothing_is_submitted(kubeflow, ngrpo, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in ngrpo("submit", code=2)
    assert kubeflow.requests == []


SECRETS = {"ngrpo-object-store": ("access-key", "secret-key"), "ngrpo-hub": ("token",)}
SCHEDULE = ("schedule", "create", "weekly", "--cron", "0 0 3 * * MON")


@pytest.mark.parametrize("command", [("submit",), SCHEDULE])
@pytest.mark.parametrize(
    ("there", "named"),
    [
        (SECRETS | {"ngrpo-hub": ()}, "cluster.secrets.ngrpo-hub: the secret has no key token in namespace kubeflow"),
        (
            {"ngrpo-hub": ("token",)},
            "cluster.secrets.ngrpo-object-store: there is no secret ngrpo-object-store in namespace kubeflow",
        ),
    ],
)
def test_a_secret_that_is_missing_is_named_before_anything_is_made(kubeflow, ngrpo, command, there, named):
    kubeflow.secrets = there
    error = ngrpo(*command, "--cluster", str(CLUSTER), code=2)
    assert named in error
    assert "kubectl -n kubeflow create secret generic" in error
    assert kubeflow.experiments == kubeflow.pipelines == kubeflow.runs == kubeflow.schedules == {}


def test_a_run_that_is_not_there_is_named(ngrpo):
    for command in (["status", "gone"], ["cancel", "gone"], ["logs", "prepare_data", "gone"]):
        assert "run gone: " in (told := ngrpo(*command, code=2))
        assert "has no such thing" in told
    assert "run gone: " in ngrpo("rerun", "prepare_data", "--from", "gone", code=2)


def test_the_service_account_of_the_cluster_runs_it(kubeflow, ngrpo):
    kubeflow.secrets = SECRETS
    ngrpo("submit", "--cluster", str(CLUSTER))
    assert kubeflow.run().service_account == "ngrpo-stage"
