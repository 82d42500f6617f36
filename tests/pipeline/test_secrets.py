"""No credential appears in any output, whatever fails: consoles, logs, records, MLflow, artifacts, pipelines, jobs."""

import base64
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from golden_ir import GOLDEN, IMAGES
from small_house import build
from trainer_stub import serve as serve_trainer

from loopback import QuietHandler, served
from ngrpo.config import load_config
from ngrpo.config.cluster import ClusterConfig, ResourcesConfig
from ngrpo.errors import NGRPOError, TrainJobError
from ngrpo.stages.task import Task
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.components.launching import train_job
from ngrpo_kfp.components.launching.train_job_manifest import JobSettings
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]


def canary(name: str) -> str:
    return f"canary0{name}0f00d"


USER, PASSWORD = "someone", canary("password")
GIVEN = {
    "AWS_SESSION_TOKEN": canary("session"),
    "HF_TOKEN": canary("hub"),
    "KF_PIPELINES_TOKEN": canary("kfp"),
    "MLFLOW_TRACKING_TOKEN": canary("tracking"),
    "DATABASE_URL": f"postgresql://{canary('dbuser')}:{canary('db')}@127.0.0.1:9/mlflow",
    "SLACK_WEBHOOK_URL": f"https://hooks.slack.com/services/T0/B0/{canary('hook')}",
    "HTTPS_PROXY": f"http://{canary('proxyuser')}:{canary('proxy')}@127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def with_user(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{USER}:{PASSWORD}@{rest}"


def found(text: bytes | str, *more: str) -> list[str]:
    """Return the canaries in a text, encoded as in a header or not."""
    data = text.encode() if isinstance(text, str) else text
    secrets = [b"canary0", base64.b64encode(b"canary0")[:8], *(secret.encode() for secret in more)]
    return [secret.decode() for secret in secrets if secret in data]


SERVER = """
import sys
from mlflow.server import app, handlers
from werkzeug.serving import make_server
from ngrpo.tracking.database import prepare_database
uri, bucket, expected = sys.argv[1:]
prepare_database(uri)
handlers.initialize_backend_stores(uri, default_artifact_root=bucket)
def guarded(environ, start_response):
    if environ.get("HTTP_AUTHORIZATION") != expected:
        start_response("401 Unauthorized", [])
        return [b"who are you?"]
    return app(environ, start_response)
server = make_server("127.0.0.1", 0, guarded, threaded=True)
print("port", server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def tracking_server(database: Path, bucket: str):
    """MLflow's own server, in a process of its own for the state it keeps, behind a user and a password."""
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    command = [sys.executable, "-c", SERVER, f"sqlite:///{database}", bucket, expected]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield f"http://127.0.0.1:{next(line for line in server.stdout if line.startswith('port')).split()[1]}"
        finally:
            server.kill()


@contextmanager
def echo(status: int):
    """A service that fails, and says all it was told: address, headers and body."""

    class Echo(QuietHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            heard = f"{self.path} {dict(self.headers)} {body[:500]!r}"
            data = json.dumps({"message": heard, "error_code": "INTERNAL_ERROR", "error": heard}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    with served(Echo) as port:
        yield f"http://127.0.0.1:{port}"


def test_nothing_that_a_run_leaves_holds_a_credential(s3_environment, tmp_path):
    house = build(tmp_path)
    credentials = tmp_path / "home" / ".aws" / "credentials"
    credentials.parent.mkdir(parents=True)
    credentials.write_text(
        f"[default]\naws_access_key_id = {s3_environment.access_key}\naws_secret_access_key = {s3_environment.secret_key}\n"
    )
    hub = tmp_path / "home" / "token"
    hub.write_text(canary("file"))
    store = f"s3://ngrpo/{tmp_path.name}"
    given = GIVEN | {
        "HOME": str(credentials.parents[1]),
        "HF_TOKEN_PATH": str(hub),
        "AWS_ENDPOINT_URL": with_user(s3_environment.url),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_SESSION_TOKEN": "",
        "NGRPO_STORE": store,
    }
    # A stage says all it knows, and fails; then it works.
    told = "raise ValueError(' '.join(f'{name}={value}' for name, value in os.environ.items()))"
    house.write_stage("prepare_data", told)
    with tracking_server(tmp_path / "mlflow.db", "s3://ngrpo/mlflow-secrets") as address:
        given["MLFLOW_TRACKING_URI"] = with_user(address)
        failed = house.ngrpo("run", code=2, **given)
        assert "prepare_data: ValueError" in failed.stderr
        house.write_stage("prepare_data")
        done = house.ngrpo("run", **given)
    assert house.summary["mlflow"]["tracking_uri"] == address
    outputs = {"console": failed.stdout + failed.stderr + done.stdout + done.stderr}
    files = [path for folder in (house.home, house.root) for path in folder.rglob("*") if path.is_file()]
    files += tmp_path.glob("mlflow.db*")
    outputs |= {str(path): path.read_bytes() for path in files}
    for uri in (store, "s3://ngrpo/mlflow-secrets"):
        objects = ObjectStore(uri)
        outputs |= {f"{uri}/{key}": objects.get_bytes(key) for key in objects.list("")}
    assert any(name.endswith("logs/prepare_data.log") for name in outputs)
    assert any(name.endswith("summary.json") and name.startswith("s3://") for name in outputs)
    keys = (s3_environment.access_key, s3_environment.secret_key)
    leaks = {name: found(content, *keys) for name, content in outputs.items()}
    assert {name: leak for name, leak in leaks.items() if leak} == {}


# --- commands that fail -----------------------------------------------------------------------------------------------


@pytest.fixture
def told(kubeflow, monkeypatch, capfd):
    """Run a command that fails, with all credentials set; returns its one line."""
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        assert cli.main(arguments) == 2
        output, error = capfd.readouterr()
        assert found(output + error) == []
        assert len(error.splitlines()) == 1, error
        return error

    return command


RUN = ("run", "--preset", "tiny")
NOWHERE = with_user("http://127.0.0.1:9")


def test_a_store_that_fails_is_told_without_credentials(told, s3_environment):
    assert "cannot be reached" in told(*RUN, AWS_ENDPOINT_URL=NOWHERE)
    assert "cannot be reached" in told("submit", *IMAGES_OF, AWS_ENDPOINT_URL=NOWHERE)
    wrong = {"AWS_SESSION_TOKEN": "", "AWS_SECRET_ACCESS_KEY": canary("secret")}
    assert "access refused" in told(*RUN, AWS_ENDPOINT_URL=with_user(s3_environment.url), **wrong)
    wrong = {"AWS_SESSION_TOKEN": canary("session"), "AWS_ACCESS_KEY_ID": canary("access")}
    with echo(403) as address:
        assert "access refused" in told(*RUN, AWS_ENDPOINT_URL=with_user(address), **wrong)
    told(*RUN, NGRPO_STORE=f"s3://{USER}:{PASSWORD}@nowhere/x", AWS_ENDPOINT_URL=NOWHERE)


def test_a_tracking_server_that_fails_is_told_without_credentials(told, s3_environment):
    history = ("history", "tiny")
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9" in told(*history, MLFLOW_TRACKING_URI=NOWHERE)
    for status in (401, 400):
        with echo(status) as address:
            told(*history, MLFLOW_TRACKING_URI=with_user(address))
            told(
                *history, MLFLOW_TRACKING_URI=address, MLFLOW_TRACKING_USERNAME=USER, MLFLOW_TRACKING_PASSWORD=PASSWORD
            )
            told(*history, MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD="")  # with the token
    assert "name a server" in told(*history, MLFLOW_TRACKING_URI=GIVEN["DATABASE_URL"])


def test_a_kubeflow_or_kubernetes_that_fails_is_told_without_credentials(told, kubeflow, monkeypatch):
    monkeypatch.setattr("ngrpo_kfp.pipelines.kubeflow.client.RETRIES", None)
    assert "cannot be reached" in told("status", KF_PIPELINES_ENDPOINT=NOWHERE)
    for status in (401, 400, 500):
        with echo(status) as address:
            told("status", KF_PIPELINES_ENDPOINT=with_user(address))
    kubeconfig = Path.home() / ".kube" / "config"
    tree = yaml.safe_load(kubeconfig.read_text())
    tree["users"][0]["user"] = {"token": canary("kubernetes"), "username": USER, "password": PASSWORD}
    with echo(403) as address:
        for server in (with_user(address), NOWHERE):
            tree["clusters"][0]["cluster"]["server"] = server
            kubeconfig.write_text(yaml.safe_dump(tree))
            from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes

            with pytest.raises(NGRPOError) as failure:
                Kubernetes().pods("run", "prepare_data")
            monkeypatch.setenv("CANARY_TOKEN", canary("kubernetes"))
            from ngrpo.environment import redacted

            assert found(redacted(str(failure.value))) == []


def test_a_hub_that_fails_is_told_without_credentials(tmp_path):
    preset = tmp_path / "hub.toml"
    preset.write_text(
        (PRESETS / "tiny.toml").read_text().split("[model.source]")[0]
        + '[model.source]\nkind = "hub"\nid = "org/model"\nrevision = "0123456789abcdef0123456789abcdef01234567"\n'
    )
    command = [
        sys.executable,
        "-m",
        "ngrpo_kfp.pipelines.cli.app",
        "mirror",
        str(tmp_path / "copies"),
        "--preset",
        str(preset),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "HF_"))}
    environment = kept | GIVEN | {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "1"}
    failed = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert failed.returncode == 2, failed.stderr
    assert found(failed.stdout + failed.stderr) == []


# --- what is sent to a cluster ----------------------------------------------------------------------------------------

IMAGES_OF = ["--images", str(GOLDEN / "images.lock")]
SECRETS = {"store": {"NGRPO_S3_SECRET_ACCESS_KEY": "secret-key"}, "tracking": {"MLFLOW_TRACKING_URI": "uri"}}


def test_no_pipeline_holds_a_credential(told, tmp_path):
    settings = f"cluster.secrets={json.dumps(SECRETS)}"
    assert found(compile_whole(load_config(PRESETS / "tiny.toml", [settings]), IMAGES)) == []
    cluster = tmp_path / "cluster.toml"
    for value in (
        NOWHERE,
        GIVEN["DATABASE_URL"],
        GIVEN["SLACK_WEBHOOK_URL"],
        f"https://host/x?token={canary('query')}",
    ):
        cluster.write_text(f'[environment]\nSOME_ADDRESS = "{value}"\n')
        output = tmp_path / "pipeline.yaml"
        told("compile", "--preset", "tiny", "--cluster", str(cluster), "-o", str(output), *IMAGES_OF)
        told("schedule", "create", "weekly", "--cron", "0 0 3 * * *", "--cluster", str(cluster), *IMAGES_OF)
        assert not output.exists()


def test_no_job_of_several_nodes_holds_a_credential(monkeypatch, tmp_path, capfd):
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(train_job, "PATIENCE_SECONDS", 0.0)
    # As in a pod whose variables come from secrets.
    for name, value in (GIVEN | {"MLFLOW_TRACKING_URI": NOWHERE}).items():
        monkeypatch.setenv(name, value)
    settings = JobSettings(
        image="i", needs=ResourcesConfig(gpus=8), cluster=ClusterConfig(nodes=2, secrets=SECRETS)
    ).model_dump_json()
    task = Task("ngrpo_training", "{}", "0" * 32, "c0", {})
    with serve_trainer(tmp_path / "kubeconfig") as trainer:
        train_job.run(task, settings)
        (job,) = trainer.made
        variables = {one["name"]: one for one in job["spec"]["trainer"]["env"]}
        assert "valueFrom" in variables["MLFLOW_TRACKING_URI"]
        assert len(variables) == len(job["spec"]["trainer"]["env"]), "a name that comes twice is refused"
        assert found(json.dumps(job)) == []
        trainer.faults.append(["POST", "/trainjobs$", 403, 9])
        with pytest.raises(TrainJobError) as failure:
            train_job.run(task, settings)
    assert found(str(failure.value)) == []
    assert found("".join(capfd.readouterr())) == []
