"""`ngrpo ui`: MLflow and the object store of a workspace, beside runs or without any."""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_local_runtime import is_alive, processes_of, sleeping_run, wait_for

from ngrpo_kfp.pipelines.local import mlflow_server

pytestmark = pytest.mark.pipeline


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def experiments(port):
    """Return the names of the experiments that the server shows, or none while there is no server."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 10}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return [experiment["name"] for experiment in json.load(answer)["experiments"]]
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def servers_of(house):
    """Return the commands of the processes that serve MLflow."""
    commands = [(Path("/proc") / pid / "cmdline").read_bytes().split(b"\0") for pid in processes_of(house)]
    return [command for command in commands if b"uvicorn" in command or mlflow_server.__name__.encode() in command]


def test_ui_serves_until_it_is_stopped_and_a_run_may_use_its_store_meanwhile(house):
    port = free_port()
    ui = house.start("ui", "--port", str(port))
    wait_for(lambda: ui.poll() is not None or experiments(port), seconds=120)
    assert "ngrpo" in experiments(port)
    # Only while MLflow starts its server by the function that `mlflow_server` replaces.
    assert [command[2].decode() for command in servers_of(house)] == [mlflow_server.__name__], "no second one"
    house.ngrpo("run")
    assert house.ran() == ["model_promotion"]
    client = MlflowClient(f"http://127.0.0.1:{port}")
    (run,) = client.search_runs(
        [client.get_experiment_by_name("ngrpo").experiment_id], f"run_id = '{house.summary['mlflow']['run_id']}'"
    )
    report = (house.last_run / "report.html").read_bytes()
    proxied = run.info.artifact_uri.replace("s3://ngrpo/mlflow", "api/2.0/mlflow-artifacts/artifacts")
    for path in (f"get-artifact?path=report.html&run_uuid={run.info.run_id}", f"{proxied}/report.html"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as answer:
            assert answer.read() == report
    with pytest.raises(urllib.error.HTTPError, match="403"):  # a page of another site, whose name leads here
        urllib.request.urlopen(
            urllib.request.Request(
                f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/get?experiment_id=1",
                headers={"Host": "evil.example"},
            )
        )
    ui.send_signal(signal.SIGINT)
    output, _ = ui.communicate(timeout=60)
    assert ui.returncode == 130
    assert f"http://127.0.0.1:{port}" in output
    wait_for(lambda: not list(processes_of(house)), seconds=30)


def test_ui_goes_on_when_the_run_ends_whose_store_it_used(house):
    run, _ = sleeping_run(house)
    port = free_port()
    ui = house.start("ui", "--port", str(port))
    wait_for(lambda: ui.poll() is not None or experiments(port), seconds=120)
    run.terminate()
    run.communicate(timeout=60)
    time.sleep(2.0)
    wait_for(lambda: ui.poll() is not None or experiments(port), seconds=120)
    assert is_alive(ui.pid)
    # The store is up again: a plan finds the results there.
    assert "cached" in house.ngrpo("plan").stdout
    ui.terminate()
    ui.communicate(timeout=60)
    wait_for(lambda: not list(processes_of(house)), seconds=30)


def test_a_port_that_is_taken_is_one_line(house):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        failed = house.ngrpo("ui", "--port", str(port), code=2)
    assert failed.stderr.splitlines() == [f"ngrpo: --port {port}: Address already in use; choose another port"]
