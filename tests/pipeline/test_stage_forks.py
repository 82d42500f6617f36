"""The processes of stages are forks of one that has imported what they work with."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from kfp.local import subprocess_task_handler

from ngrpo.stages.declarations import STAGES
from ngrpo_kfp.pipelines.graph import COMPONENTS
from ngrpo_kfp.pipelines.local import stage_forks
from ngrpo_kfp.pipelines.local.stage_forks import can_fork, forked_stages

pytestmark = pytest.mark.pipeline

STAGE = "model_promotion"
"""The one whose module is imported soonest."""
SOURCE = """
import gc, json, os, sys, tempfile

def model_promotion():
    facts = {
        "parent": os.getppid(),
        "imported": all(name in sys.modules for name in ("mlflow", "ngrpo.stages.model_promotion")),
        "stage_first": list(sys.modules).index("ngrpo.stages.model_promotion") < list(sys.modules).index("kfp.dsl.executor_main"),
        "collected": gc.isenabled() and gc.get_freeze_count() > 0,
        "modules": sorted({"kfp.compiler", "torch", "sklearn", "scipy.optimize"} & set(sys.modules)),
        "temporary": tempfile.gettempdir(),
        "environment": [os.environ.get(name) for name in ("KEPT", "ADDED", "_KFP_RUNTIME")],
    }
    with open(os.environ["FACTS"], "w") as file:
        json.dump(facts, file)
"""
FAILING = {
    "raises": ("raise ZeroDivisionError('by zero')", 1, b"ZeroDivisionError: by zero"),
    "exits": ("import sys; sys.exit(7)", 7, b""),
    "is killed": ("import os; os.kill(os.getpid(), 9)", -9, b""),
    "writes what is no text": ("import os; os.write(1, b'\\xff\\n'); os._exit(3)", 3, b"\xff\n"),
}


def run(source, **environment):
    """Let kfp run a component; return its exit code."""
    executor_input = json.dumps({"inputs": {}, "outputs": {"outputFile": f"{environment['FACTS']}.out"}})
    command = COMPONENTS[STAGE].component_spec.implementation.container.command
    arguments = ["--executor_input", executor_input, "--function_to_execute", STAGE]
    return subprocess_task_handler.run_local_subprocess([*command[:3], source, *arguments], environment)


def test_forks_are_what_processes_would_be(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    log, original = tmp_path / "kfp.log", subprocess_task_handler.run_local_subprocess
    with forked_stages([STAGE], log):
        facts = []
        for number in range(2):
            # What changes after the first process was started holds in the next fork.
            monkeypatch.setenv("KEPT", f"kept {number}")
            monkeypatch.setenv("TMPDIR", str(tmp_path / str(number)))
            (tmp_path / str(number)).mkdir()
            assert run(SOURCE, ADDED="added", FACTS=str(tmp_path / "facts.json")) == 0
            facts.append(json.loads((tmp_path / "facts.json").read_text()))
        assert facts[0]["parent"] == facts[1]["parent"] != os.getpid()
        for number, said in enumerate(facts):
            assert said["imported"]
            assert said["modules"] == []
            assert said["collected"], "garbage of the stage, not what was imported before the fork"
            assert said["stage_first"], "transformers would find the scipy that MLflow imports, and import more of it"
            assert said["temporary"] == str(tmp_path / str(number))
            assert said["environment"] == [f"kept {number}", "added", "true"]
        for lines, code, words in FAILING.values():
            source = f"def {STAGE}():\n    {lines}\n"
            assert run(source, FACTS=str(tmp_path / "facts.json")) == code
            assert words in log.read_bytes()
        os.kill(facts[0]["parent"], signal.SIGKILL)
        assert run(SOURCE, FACTS=str(tmp_path / "none")) == 1
        assert not (tmp_path / "none").exists()
    assert not Path(f"/proc/{facts[0]['parent']}").exists()
    assert subprocess_task_handler.run_local_subprocess is original


def test_where_the_driver_of_a_gpu_may_be_open_each_stage_is_a_process_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_forks, "_DRIVERS", (str(tmp_path / "driver"),))
    monkeypatch.setattr(stage_forks.sys, "platform", "linux")
    assert can_fork()
    (tmp_path / "driver").touch()
    assert not can_fork()
    (tmp_path / "driver").unlink()
    monkeypatch.setattr(stage_forks.sys, "platform", "darwin")
    assert not can_fork()


def test_a_component_is_compiled_to_what_a_fork_takes_apart():
    for name in STAGES:
        shell, option, script, source = COMPONENTS[name].component_spec.implementation.container.command
        assert (shell, option) == ("sh", "-ec")
        assert "kfp.dsl.executor_main" in script
        assert f"def {name}(" in source
        arguments = COMPONENTS[name].component_spec.implementation.container.args
        assert arguments[-2:] == ["--function_to_execute", name]


def test_a_run_that_only_decides_does_without_kfp_and_says_what_failed(house):
    house.write_stage("model_promotion", "print('so far so good')\nraise ZeroDivisionError('by zero')")
    failed = house.ngrpo("run", code=2)
    logs = house.last_run / "logs"
    assert failed.stderr.splitlines() == [
        f"ngrpo: model_promotion: ZeroDivisionError: by zero (log: {logs / 'model_promotion.log'})"
    ]
    said = (logs / "model_promotion.log").read_text()
    assert said.startswith("so far so good\nTraceback")
    assert not (logs / "kfp.log").exists()


def test_a_decision_that_is_told_to_stop_stops(house):
    house.write_stage("model_promotion", "import time\n(work / 'asleep').touch()\ntime.sleep(300)")
    run = house.start("run")
    while not list(house.home.glob("work/model_promotion/*/work/asleep")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert errors.splitlines() == ["ngrpo: stopped; the next run goes on from here"]
