"""Experiments on one machine: the real planner, kfp's runner, the S3 server and MLflow, with small stages."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from small_house import build

pytestmark = [pytest.mark.pipeline, pytest.mark.long, pytest.mark.timeout(3600)]

EXPERIMENT = """
preset = "small.toml"
seeds = [0, 1]
baseline = "grpo"
benchmark = "arithmetic"
measure = "pass@2"
equivalence = 1.0

[arms.grpo.mixing]
strategy = "token"
[arms.ngrpo]

[published.grpo.arithmetic]
"mean@32" = 21.35
"""
ADDED = "\n[arms.k-1.mixing]\nk = 1\n"
TRAINING = """
(output / "log_history.json").write_text("[]")
(output / "model").mkdir()
(output / "model" / "weights").write_text("w")
(output / "strategy").write_text(f"{config.mixing.strategy} {config.mixing.k} {config.seed}")
"""
EVALUATION = """
strategy, k, seed = (inputs["trained"] / "strategy").read_text().split()
mean = {"token": 0.25, "neighbor": 0.5}[strategy] + 0.1 * int(seed)
small_shared.EVALUATION["models"]["trained"]["arithmetic"]["mean"] = mean
"""


@pytest.fixture
def house(tmp_path):
    """A house in which nothing has run."""
    house = build(tmp_path)
    (house.root / "lab.toml").write_text(EXPERIMENT)
    shutil.copy(Path(__file__).with_name("stand_in_comparison.py"), house.root / "ngrpo" / "report" / "comparison.py")
    house.write_stage("ngrpo_training", TRAINING)
    house.write_stage("benchmark_evaluation", EVALUATION)
    return house


def run(house, *arguments, code=0):
    """Run the experiment to its end: a dozen stages, of which each is a process."""
    done = subprocess.run(
        house.command("experiment", "run", "lab.toml", *arguments),
        env=house.environment | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=house.root,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def counted(stages):
    return {stage: stages.count(stage) for stage in sorted(set(stages))}


def place(house):
    return house.home / "experiments" / "lab"


def compared(house):
    return json.loads((place(house) / "comparison.json").read_text())


def runs_of_mlflow(house):
    """Return by name and state of each MLflow run the name of the run above it, newest last."""
    with contextlib.closing(sqlite3.connect(house.home / "mlflow.db")) as database:
        return list(
            database.execute(
                "SELECT child.name, child.status, parent.name, child.run_uuid FROM runs child LEFT JOIN tags ON tags.run_uuid = "
                "child.run_uuid AND key = 'mlflow.parentRunId' LEFT JOIN runs parent ON parent.run_uuid = value ORDER BY child.start_time"
            )
        )


def metrics_of(house, run_id):
    with contextlib.closing(sqlite3.connect(house.home / "mlflow.db")) as database:
        return dict(database.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", [run_id]))


ONCE = {"prepare_data": 1, "neighbor_index": 1, "sft_warm_start": 2, "ngrpo_training": 4, "benchmark_evaluation": 4}
ARM = {"ngrpo_training": 2, "benchmark_evaluation": 2}


def test_an_experiment_runs_what_is_left_and_compares(house):
    printed = run(house).stdout
    assert counted(house.ran()) == ONCE
    assert "grpo.seed0  1 of 4" in printed
    assert "ngrpo.seed1  4 of 4" in printed
    arms = compared(house)["arms"]
    assert arms["grpo"]["means"] == {"0": 0.25, "1": 0.35}
    assert arms["ngrpo"]["means"] == {"0": 0.5, "1": 0.6}
    assert all("log_history.json" in names for names in arms["ngrpo"]["training"])
    assert arms["ngrpo"]["took"] == [sorted(ONCE)] * 2, "what all of its results took is known"
    assert compared(house)["asked"] == [
        "grpo",
        "arithmetic",
        "pass@2",
        1.0,
        {"grpo": {"arithmetic": {"mean@32": 21.35}}},
    ]
    summary = json.loads((place(house) / "summary.json").read_text())
    assert sorted(summary["arms"]["ngrpo"]["1"]["nodes"]) == sorted(
        f"{stage}.ngrpo.seed1" for stage in ("prepare_data", "neighbor_index", "sft_warm_start", *ARM)
    )

    found = runs_of_mlflow(house)
    (parent,) = [name for name, _, above, _ in found if above is None]
    assert parent.endswith("-lab")
    assert {name for name, _, above, _ in found if above == parent} == {"grpo", "ngrpo"}
    assert {name for name, _, above, _ in found if above == "ngrpo"} == {
        f"{stage}.ngrpo.seed{seed}" for stage in ARM for seed in (0, 1)
    }
    assert {status for _, status, _, _ in found} == {"FINISHED"}
    ids = {name: run_id for name, _, _, run_id in found}
    assert metrics_of(house, ids["ngrpo"])["arithmetic/mean"] == pytest.approx(0.55)
    on_parent = metrics_of(house, ids[parent])
    assert on_parent["ngrpo/arithmetic/mean"] == pytest.approx(0.55)
    assert on_parent["grpo/arithmetic/mean"] == pytest.approx(0.3)

    # A second run has nothing to do, and says the same.
    before = compared(house)
    printed = run(house).stdout
    assert house.ran() == []
    assert "every result is in the store" in printed
    assert compared(house) == before

    # An arm more runs alone.
    (house.root / "lab.toml").write_text(EXPERIMENT + ADDED)
    run(house)
    assert counted(house.ran()) == ARM
    assert list(compared(house)["arms"]) == ["grpo", "ngrpo", "k-1"]

    # One arm again, and nothing that it shares.
    run(house, "--rerun", "ngrpo")
    assert counted(house.ran()) == ARM
    run(house)
    assert house.ran() == []

    (place(house) / "comparison.json").unlink()
    said = house.ngrpo("experiment", "report", "lab.toml", COLUMNS="200").stdout
    assert str(place(house) / "comparison.html") in said
    assert list(compared(house)["arms"]) == ["grpo", "ngrpo", "k-1"]


def test_an_arm_that_fails_leaves_the_others_alone(house):
    house.write_stage(
        "ngrpo_training", TRAINING + "\nassert (config.mixing.strategy, config.seed) != ('token', 1), 'no luck'"
    )
    done = run(house, code=2)
    assert counted(house.ran()) == {**ONCE, "benchmark_evaluation": 3}
    assert done.stderr.splitlines() == [
        line for line in done.stderr.splitlines() if line.startswith("ngrpo: grpo.seed1: ")
    ]
    assert "ngrpo_training.grpo.seed1: AssertionError: no luck (log: " in done.stderr
    assert "grpo.seed1 failed; the others go on" in done.stdout
    arms = compared(house)["arms"]
    assert list(arms["ngrpo"]["means"]) == ["0", "1"]
    assert list(arms["grpo"]["means"]) == ["0"]
    assert "no luck" in arms["grpo"]["failed"]["1"]
    states = {name: status for name, status, _, _ in runs_of_mlflow(house)}
    assert (states["grpo"], states["ngrpo"], states["ngrpo_training.grpo.seed1"]) == ("FAILED", "FINISHED", "FAILED")
    # The report says so too, and the next run does what is left.
    house.ngrpo("experiment", "report", "lab.toml")
    assert "no luck" in compared(house)["arms"]["grpo"]["failed"]["1"]
    house.write_stage("ngrpo_training", TRAINING)
    run(house)
    assert compared(house)["arms"]["grpo"]["failed"] == {}


def test_what_all_share_is_not_tried_again_for_each(house):
    house.write_stage("prepare_data", "raise RuntimeError('no data')")
    done = run(house, code=2)
    assert house.ran().count("prepare_data") == 1
    lines = done.stderr.removeprefix("ngrpo: ").splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == ["grpo.seed0", "ngrpo.seed0", "grpo.seed1", "ngrpo.seed1"]
    assert all("no data" in line for line in lines[:4])
    assert lines[4:] == ["baseline grpo: no run of it has finished"]


def test_an_experiment_that_was_killed_goes_on(house):
    waiting = house.root / "waiting"
    hold = f"""
import time  # os is imported above
if (config.mixing.strategy, config.seed) == ("neighbor", 0) and not os.path.exists({str(house.root / "go")!r}):
    open({str(waiting)!r}, "w").close()
    time.sleep(600)
"""
    house.write_stage("ngrpo_training", hold + TRAINING)
    process = house.start("experiment", "run", "lab.toml")
    try:
        deadline = time.monotonic() + 1200
        while not waiting.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = counted(house.ran())
    assert before == {
        "prepare_data": 1,
        "neighbor_index": 1,
        "sft_warm_start": 1,
        "ngrpo_training": 2,
        "benchmark_evaluation": 1,
    }
    (house.root / "go").touch()
    run(house)
    # The one that was killed is begun again; what had ended is not.
    assert counted(house.ran()) == {"sft_warm_start": 1, "ngrpo_training": 3, "benchmark_evaluation": 3}
    assert [len(arm["means"]) for arm in compared(house)["arms"].values()] == [2, 2]
    killed = [status for name, status, above, _ in runs_of_mlflow(house) if name == "ngrpo_training.ngrpo.seed0"]
    assert killed == ["KILLED", "FINISHED"]
