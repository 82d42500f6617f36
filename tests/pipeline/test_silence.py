"""No command is silent for long: what it waits for is said, beside its result or on the standard error."""

import json
import sys
import time
from contextlib import contextmanager, nullcontext

import pytest

from ngrpo.config import load_config
from ngrpo.errors import StoreError
from ngrpo.report import phases
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local import services
from silences import silences

RUN = "20260101-000000-000000-tiny"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A workspace with a finished run, whose object store takes a while and then does not start."""
    home = tmp_path / "outputs"
    (home / "runs" / RUN).mkdir(parents=True)
    (home / "latest").symlink_to(f"runs/{RUN}")
    (home / "runs" / RUN / "config.json").write_text(load_config(PRESETS / "tiny.toml").model_dump_json())
    (home / "runs" / RUN / "summary.json").write_text(
        json.dumps(
            {
                "stages": {"benchmark_evaluation": {"key": "k", "artifact": "s3://x/y/"}},
                "wall_seconds": 1.0,
                "mlflow": {"run_id": "r", "tracking_uri": "sqlite:///x"},
            }
        )
    )

    @contextmanager
    def slow(directory, *, stopped=True):
        time.sleep(0.2)
        raise StoreError("the store does not start")
        yield

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "NGRPO_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NGRPO_HOME", str(home))
    monkeypatch.setattr(services, "serve", slow)
    monkeypatch.setattr("ngrpo_kfp.pipelines.local.store_ahead.starting", lambda *_, **__: nullcontext())
    monkeypatch.setattr(phases, "_QUIET_SECONDS", 0.05)
    return home


@pytest.mark.parametrize(
    "command",
    [
        ("plan",),
        ("promote", "1"),
        ("history", "--json"),
        ("evaluate", "champion"),
        ("experiment", "plan", "tiny-example"),
        ("experiment", "report", "tiny-example", "--json"),
        ("export", "champion", "DIR"),
        ("chat", "champion", "--prompt", "2+2?"),
        ("verify", "champion", "--json"),
        ("watch", "--endpoint", "http://127.0.0.1:9/v1", "--json"),
        ("prune",),
        ("report",),
        ("regrade",),
        ("ui",),
        ("compare", f"a={RUN}", f"b={RUN}"),
    ],
    ids=" ".join,
)
def test_what_a_command_waits_for_is_said(home, capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    told = capsys.readouterr()
    *said, refusal = [*([] if "--json" in command else told.out.splitlines()), *told.err.splitlines()]
    assert refusal == "ngrpo: the store does not start"
    assert any(line.endswith(": 0 s") for line in said), "what it is doing, and for how long"
    assert "--json" not in command or told.out == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_silence_is_measured_and_named(terminal):
    script = "import time; print('before', flush=True); time.sleep(0.6); print('after\\r', end='', flush=True)"
    code, _, found = silences([sys.executable, "-c", script], terminal=terminal, longest=0.4)
    assert code == 0
    assert ("before", "after") in [(each.before, each.after) for each in found]
