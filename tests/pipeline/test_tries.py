"""Tries of a stage in its pod: a new process after each failure, with a record of each try beside the artifacts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp import dsl, local

from ngrpo.config import load_config, select
from ngrpo.config.cluster import RetryConfig
from ngrpo.stages import supervision
from ngrpo.stages.declarations import STAGES
from ngrpo.stages.keys import config_json
from ngrpo.stages.supervision import supervise
from ngrpo.stages.tries import log_of, own_lines, tries_of
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.components.prepare_data.component import prepare_data

PRESET = Path(__file__).with_name("small.toml")
RETRY = RetryConfig(times=2, backoff_seconds=7, backoff_factor=3)
FAILS_TWICE = """
import os, sys
from pathlib import Path
count = Path(sys.stdin.read())
tries = int(count.read_text()) if count.exists() else 0
count.write_text(str(tries + 1))
assert "_KFP_RUNTIME" not in os.environ
print(f"at work for the {tries + 1}. time")
if tries < 2:
    sys.exit(CODE or "prepare_data: the hub does not answer")
"""


@pytest.fixture
def waits(monkeypatch):
    """The seconds waited between tries, instead of waiting."""
    waited = []
    monkeypatch.setattr(supervision, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    return waited


def supervised(objects, tmp_path, script, stdin="", retry=RETRY, store=None):
    supervise(
        [sys.executable, "-c", script],
        stage="prepare_data",
        key="k",
        stdin=stdin,
        retry=retry,
        store=store or objects.uri,
        pipeline_run="r1",
        scratch=tmp_path / "scratch",
    )


@pytest.mark.parametrize("code", ["", "75"], ids=["failure", "told to try again"])
def test_a_stage_that_fails_twice_ends_well(objects, tmp_path, waits, monkeypatch, capfd, code):
    monkeypatch.setenv("_KFP_RUNTIME", "true")
    supervised(objects, tmp_path, FAILS_TWICE.replace("CODE", code or "0"), str(tmp_path / "count"))
    assert waits == [7, 21]
    tries = tries_of(objects, "prepare_data", "k")
    assert [(one.number, one.of, one.outcome) for one in tries] == [
        (1, 3, "failed"),
        (2, 3, "failed"),
        (3, 3, "succeeded"),
    ]
    said = "at work for the 1. time" if code else "prepare_data: the hub does not answer"
    assert said in tries[0].error
    assert tries[0].pipeline_run == "r1"
    assert [log_of(objects, one).splitlines()[0] for one in tries] == [f"at work for the {n}. time" for n in (1, 2, 3)]
    printed = ["launcher says hello", *capfd.readouterr().out.splitlines(), "launcher says goodbye"]
    own = list(own_lines(printed))
    assert own[0] == "at work for the 1. time"
    assert not any("launcher" in line or line.startswith("ngrpo: ") for line in own)
    assert sum("the next try begins in" in line for line in printed) == 2


def test_the_last_failure_is_the_error_of_the_step(objects, tmp_path, waits, monkeypatch):
    with pytest.raises(SystemExit, match="prepare_data: exit code 1; its last words: prepare_data: the disk is full"):
        supervised(objects, tmp_path, "import sys; sys.exit('prepare_data: the disk is full')")
    assert [one.outcome for one in tries_of(objects, "prepare_data", "k")] == ["failed"] * 3


def test_a_process_that_was_killed_is_tried_again_and_leaves_nobody_behind(objects, tmp_path, waits):
    script = f"""
import os, signal, subprocess
from pathlib import Path
child = subprocess.Popen(["sleep", "600"])
Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(SystemExit, match="killed by SIGKILL, for want of memory perhaps"):
        supervised(objects, tmp_path, script, retry=RetryConfig(times=0))
    orphan = Path(f"/proc/{(tmp_path / 'child').read_text()}/status")
    deadline = time.monotonic() + 10
    while orphan.exists() and "zombie" not in orphan.read_text():
        assert time.monotonic() < deadline, "a child of the killed try still runs"


def test_a_credential_that_a_library_prints_is_in_no_log(objects, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-word")
    supervised(objects, tmp_path, "import os; print('asking with', os.environ['HF_TOKEN'])")
    (attempt,) = tries_of(objects, "prepare_data", "k")
    assert log_of(objects, attempt) == "asking with ***\n"
    assert "a-very-secret-word" not in "".join(capfd.readouterr())


def test_what_is_printed_before_the_first_try_is_shown_where_there_was_none():
    assert list(own_lines(["launcher: no such bucket"])) == ["launcher: no such bucket"]


def test_a_store_out_of_reach_costs_the_record_and_not_the_work(objects, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervision, "_STORE_PATIENCE", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    supervised(objects, tmp_path, "print('done')", store="s3://ngrpo/nowhere")
    printed = capfd.readouterr()
    assert "done" in printed.out
    assert "the record of this try is not kept: " in printed.err


def test_a_step_that_is_told_to_stop_tells_its_stage_and_does_not_try_again(objects, tmp_path):
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
print("ready", flush=True)
time.sleep(60)
"""
    step = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from ngrpo.config.cluster import RetryConfig\n"
            "from ngrpo.stages.supervision import supervise\n"
            f"supervise([sys.executable, '-c', {script!r}], stage='prepare_data', key='k', stdin='', retry=RetryConfig(),"
            f" store={objects.uri!r}, pipeline_run=None, scratch=Path({str(tmp_path)!r}))",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in step.stdout:
        if line == "ready\n":
            break
    step.send_signal(signal.SIGTERM)
    assert "saved" in step.communicate(timeout=60)[0]
    assert step.returncode == os.EX_TEMPFAIL
    (attempt,) = tries_of(objects, "prepare_data", "k")
    assert attempt.outcome == "stopped"
    assert "saved" in log_of(objects, attempt)


# --- a component as Kubeflow's launcher runs it ---------------------------------------------------------------------------


@pytest.fixture
def pod(objects, tmp_path, monkeypatch):
    """The environment of a pod, with the names of the object store that its launcher does not know."""
    objects.check()  # with the names that boto3 knows, which it has read by then
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.setenv(f"NGRPO_S3_{name.removeprefix('AWS_')}", os.environ[name])
            monkeypatch.delenv(name)
    for name, value in {
        "NGRPO_STORE": objects.uri,
        "NGRPO_WORK_DIR": tmp_path / "work",
        "NGRPO_CACHE_DIR": tmp_path / "cache",
        "NGRPO_TRIES": RetryConfig(times=1, backoff_seconds=1).model_dump_json(),
    }.items():
        monkeypatch.setenv(name, str(value))
    # No place for `run_task` to keep what it says, as on a cluster.
    monkeypatch.delenv("NGRPO_RUN_DIR", raising=False)
    return tmp_path


def ran(pod, settings):
    """Run the component through kfp's own runner, and return its complaint."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(pod / "kfp"), raise_on_error=True)

    @dsl.pipeline(name="one")
    def one():  # type: ignore[no-untyped-def]
        prepare_data(config=settings, key="k", code_version="c")

    try:
        one()
    except RuntimeError as error:
        return error
    return None


def settings():
    return config_json(select(load_config(PRESET), STAGES["prepare_data"].config))


@pytest.mark.pipeline
def test_a_component_works_in_a_child_with_the_store_s_names_turned_into_those_of_boto3(pod, objects, store, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "metrics.json").write_text('{"problems": 7.0}')
    store.publish("prepare_data", "k", made, config_digest="d", code_version="c", inputs={})
    assert ran(pod, settings()) is None
    (attempt,) = tries_of(objects, "prepare_data", "k")
    assert (attempt.number, attempt.of, attempt.outcome) == (1, 2, "succeeded")
    (reference,) = (pod / "kfp").rglob("artifact")
    assert store.fetch(Reference.read(reference)).joinpath("metrics.json").exists()


@pytest.mark.pipeline
def test_wrong_settings_are_one_line_and_are_not_tried_again(pod, objects, capfd):
    tree = json.loads(settings())
    tree["data"]["max_prompt_tokens"] = -1
    assert ran(pod, json.dumps(tree)) is not None
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    (attempt,) = tries_of(objects, "prepare_data", "k")
    assert attempt.outcome == "failed"
    assert "max_prompt_tokens" in attempt.error
