"""`ngrpo runs`, `status` and `logs` of runs on this machine: what they say of the files of a workspace, without any service."""

import fcntl
import json
import os
import threading
import time

import pytest
from made_up_workspace import MadeUpWorkspace

from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli import run_logs
from ngrpo_kfp.pipelines.cli.amounts import bytes_text, time_text
from ngrpo_kfp.pipelines.local.run_views import look
from ngrpo_kfp.pipelines.local.runs import find_run

COMPARISON = {"gain": 13.609, "interval": [12.0625, 15.156]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty workspace; whoever asks for a service fails."""
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    monkeypatch.setattr("ngrpo_kfp.pipelines.local.services.services", lambda _: pytest.fail("a service was started"))
    return MadeUpWorkspace(tmp_path / "outputs")


@pytest.fixture
def ngrpo(home, capsys):
    """Run a command and return what it printed."""

    def command(*arguments, code=0):
        capsys.readouterr()
        assert cli.main(arguments) == code
        said = capsys.readouterr()
        assert not (said.err and code == 0)
        return said.out + said.err

    return command


@pytest.fixture
def running(home):
    """A run whose training is at work."""
    directory = home.run({"ngrpo_training": "b"}, until="ngrpo_training")
    record = {"key": home.key("ngrpo_training", "b"), "pid": 1}
    write_state(directory / "stages" / "ngrpo_training.json", record)
    (directory / "logs" / "ngrpo_training.log").write_text("loading\nstep 3/60 reward 0.1\nstep 21/60 reward 0.2\n")
    began = time.time() - 90
    os.utime(directory / "stages" / "ngrpo_training.json", (began, began))
    lifeline = os.open(directory / "lifeline", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lifeline, fcntl.LOCK_EX)
    yield directory, lifeline
    os.close(lifeline)


def rows(told):
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if "│" in line]
    return [row for row in cells if row[0]]


# --- runs ---------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_with_what_came_of_them(home, ngrpo, running):
    done = home.run({}, promotion__model_name="mine")
    home.copy("model_promotion", "a", promotion={"comparison": COMPARISON, "decision": "kept", "version": 4})
    failed = home.run({"ngrpo_training": "c"}, until="ngrpo_training")
    measured = home.run({"benchmark_evaluation": "m"}, folder="evaluations")
    (measured / "evaluation.json").write_text("{}")
    (measured / "summary.json").unlink()
    listed = rows(ngrpo("runs"))
    assert [row[0] for row in listed] == [f"{measured.name} (evaluation)", failed.name, done.name, running[0].name]
    assert [row[2] for row in listed[:3]] == ["done", "failed at ngrpo_training", "done"]
    assert listed[3][2].startswith("running at ngrpo_training, step 21/60, about ")
    assert listed[2][1:7] == ["tiny, mine", "done", "2026-01-03 00:00", "61 s", "kept, +13.6 [+12.1, +15.2]", "4"]


def test_a_run_that_was_killed_is_stopped_at_its_stage(home, ngrpo, running):
    fcntl.flock(running[1], fcntl.LOCK_UN)
    (row,) = rows(ngrpo("runs"))
    assert row[2] == "stopped at ngrpo_training"
    assert "training goes on from its last checkpoint" in ngrpo("status")


def test_a_run_between_its_stages_runs_as_long_as_its_workspace_is_locked(home, ngrpo):
    directory = home.run({}, until="prepare_data")
    write_state(
        directory / "stages" / "prepare_data.json",
        {"key": home.key("prepare_data", "a"), "pid": 1, "seconds": 1.0, "artifact": "s3://x"},
    )
    assert rows(ngrpo("runs"))[0][2] == "stopped at neighbor_index"
    with (home.workspace.root / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert rows(ngrpo("runs"))[0][2] == "running"


def test_sizes_are_of_what_no_other_run_has(home, ngrpo):
    first, second = home.run({}), home.run({"ngrpo_training": "b", "model_promotion": "b"})
    for letter in "ab":
        place = home.copy("ngrpo_training", letter)
        (place / "weights").write_bytes(b"x" * 5000)
    home.copy("prepare_data", "a")
    listed = {one["name"]: one for one in json.loads(ngrpo("runs", "--json"))}
    for run in (first, second):
        size = listed[run.name]["bytes"]
        assert (size["store"], size["artifacts_of_unknown_size"]) == (1000, 1)
        assert 5000 < size["cache"] < 5200
        assert size["directory"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert listed[first.name]["stages"]["prepare_data"]["state"] == "done"
    assert listed[second.name]["stages"]["prepare_data"] == {
        "state": "cached",
        "key": home.key("prepare_data", "a"),
        "seconds": None,
    }
    assert [row[-1][:2] for row in rows(ngrpo("runs"))] == ["> ", "> "]


def test_experiments_are_listed_by_time_and_their_stages_shown(home, ngrpo):
    arm = home.run({"ngrpo_training": "b"}, until="ngrpo_training")
    place = home.workspace.experiments / "mine" / "20260501-000000-000000"
    place.mkdir(parents=True)
    (place.parent / "plan.json").write_bytes((arm / "plan.json").read_bytes())
    arm.rename(place / "k1.seed0")
    assert [row[:3:2] for row in rows(ngrpo("runs"))] == [
        ["mine/20260501-000000-000000 (experiment)", "failed at ngrpo_training"]
    ]
    assert [row[1] for row in rows(ngrpo("status", "mine"))] == [*("done",) * 3, "failed", *("not run",) * 2]
    assert "step 3/4 of ngrpo_training" in ngrpo("logs", "mine")
    (place.parent / "summary.json").write_text("{")
    assert rows(ngrpo("runs"))[0][2] == "failed at ngrpo_training"


def test_what_is_damaged_is_listed_as_far_as_it_can_be_read(home, ngrpo):
    runs = [home.run({"ngrpo_training": letter}) for letter in "abcd"]
    (runs[0] / "summary.json").write_text("{")
    (runs[1] / "plan.json").write_text("[1]")
    (runs[2] / "config.json").write_bytes(b"\xff")
    (runs[3] / "stages" / "ngrpo_training.json").write_text("{}")
    home.copy("model_promotion", "a").joinpath("promotion.json").write_text("{")
    listed = json.loads(ngrpo("runs", "--json"))
    assert [one["state"] for one in listed] == ["done", "done", "done", "stopped"]
    assert [one["decision"] for one in listed] == ["promoted", "promoted", "promoted", None]
    ngrpo("runs")
    for run in runs:
        ngrpo("status", run.name)


def test_no_run_yet(home, ngrpo):
    assert "no run yet; `ngrpo run` starts one" in ngrpo("runs")
    assert json.loads(ngrpo("runs", "--json")) == []
    assert "no run yet" in ngrpo("status", code=2)
    assert "KF_PIPELINES_ENDPOINT is not set" in ngrpo("logs", code=2)
    assert not home.workspace.root.exists()


# --- which run ----------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_name_the_beginning_of_one_latest_or_its_directory(home):
    first, second = home.run({}), home.run({})
    workspace = home.workspace
    for what in (second.name, "20260103", "latest", str(second)):
        assert find_run(what, workspace) == ("run", second), what
    assert find_run("20260102-000000", workspace) == ("run", first)
    for what in ("2026", "nobody", "20260104", "0b5e8a1c-1111"):
        assert find_run(what, workspace) is None, what


def test_a_beginning_that_several_runs_have_is_refused(home, ngrpo):
    for letter in "ab":
        home.count = 0
        home.name = lambda letter=letter: f"20260102-00000{'ab'.index(letter)}-000000-tiny"
        home.run({})
    line = ngrpo("status", "20260102", code=2)
    assert line.startswith(
        "ngrpo: RUN '20260102': 2 runs have names that begin with it (20260102-000001-000000-tiny, 20260102-0000"
    )


def test_a_run_on_the_cluster_is_meant_where_one_is_named_by_the_environment_and_none_here(home, ngrpo, monkeypatch):
    run = home.run({})
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("ngrpo_kfp.pipelines.kubeflow.client.RETRIES", None)
    for command in (
        ("status",),
        ("status", "0b5e8a1c-run"),
        ("logs", "ngrpo_training"),
        ("logs", "ngrpo_training", "x"),
    ):
        assert "127.0.0.1:9 cannot be reached" in ngrpo(*command, code=2), command
    assert "STAGE is missing: on a cluster name one of prepare_data" in ngrpo("logs", code=2)
    assert run.name in ngrpo("status", run.name)
    assert "step 3/4 of ngrpo_training" in ngrpo("logs", "ngrpo_training", run.name)
    assert "began" in ngrpo("logs", run.name)


def test_what_is_no_run_here(home, ngrpo):
    home.run({})
    for command in (("status", "nobody"), ("logs", "ngrpo_training", "nobody")):
        assert "RUN 'nobody': no run of " in ngrpo(*command, code=2)
    assert "STAGE 'nobody': unknown; choose one of prepare_data" in ngrpo("logs", "nobody", code=2)
    assert "'ngrpo_training.k1' is not a node of the pipeline" in ngrpo("logs", "ngrpo_training.k1", code=2)
    assert "--raw is for runs on a cluster" in ngrpo("logs", "--raw", code=2)


# --- status and logs ----------------------------------------------------------------------------------------------------


def test_a_stage_at_work_says_how_far_it_is_and_how_long_it_will_take(home, running):
    view = look("run", running[0], home.workspace)
    node = next(node for node in view.nodes if node.node == "ngrpo_training")
    assert (node.state, node.step, node.unit) == ("running", (21, 60), "step")
    # 21 steps in 90 s from the first on: lines are printed every 3 steps.
    assert node.seconds_left == pytest.approx(90 * 39 / 21, rel=0.05)


def test_a_training_that_went_on_from_a_checkpoint_is_not_taken_for_a_fast_one(home, running):
    log = running[0] / "logs" / "ngrpo_training.log"
    log.write_text("step 33/60 reward 0.1\nstep 42/60 reward 0.2\n")
    node = look("run", running[0], home.workspace).nodes[3]
    assert node.seconds_left == pytest.approx(90 * 18 / 12, rel=0.05)


def test_samples_of_an_evaluation_are_progress_without_an_estimate(home, running):
    (running[0] / "logs" / "ngrpo_training.log").write_text("trained arithmetic: 800/1600 samples\n")
    node = look("run", running[0], home.workspace).nodes[3]
    assert (node.step, node.unit, node.seconds_left) == ((800, 1600), "samples", None)


def test_status_shows_each_stage_and_why_one_failed(home, ngrpo):
    home.run({"ngrpo_training": "b"}, until="ngrpo_training")
    told = ngrpo("status")
    assert [row[:2] for row in rows(told)] == [
        ["prepare_data", "done"],
        ["neighbor_index", "done"],
        ["sft_warm_start", "done"],
        ["ngrpo_training", "failed"],
        ["benchmark_evaluation", "not run"],
        ["model_promotion", "not run"],
    ]
    assert rows(told)[3][4] == "it is broken"
    assert "`ngrpo logs ngrpo_training 2026" in told


def test_the_log_is_that_of_the_stage_at_work_that_failed_or_was_last(home, ngrpo, running):
    assert ngrpo("logs").startswith("loading\nstep 3/60")
    assert ngrpo("logs", "prepare_data") == "prepare_data began\nstep 3/4 of prepare_data\n"
    home.run({})
    assert ngrpo("logs", "-f").startswith("--- model_promotion\nmodel_promotion began\n")
    assert "prepare_data was cached and has printed nothing" in ngrpo("logs", "prepare_data", code=2)
    home.run({"ngrpo_training": "c"}, until="ngrpo_training")
    assert ngrpo("logs").startswith("ngrpo_training began\n")


def test_control_characters_in_a_log_are_spelled_out(home, ngrpo):
    run = home.run({})
    (run / "logs" / "model_promotion.log").write_bytes(b"10%\r90%\n\x1b[31mred\xff\n")
    assert ngrpo("logs") == "90%\n\\x1b[31mred\ufffd\n"


def test_a_log_is_followed_line_by_line_to_the_end_of_the_run(home, ngrpo, running, monkeypatch):
    directory, lifeline = running
    log = directory / "logs" / "ngrpo_training.log"
    followed = threading.Event()

    def looked(*args):
        try:
            return look(*args)
        finally:
            followed.set()

    monkeypatch.setattr(run_logs, "look", looked)

    def work():
        followed.wait()
        with log.open("a") as file:
            for text in ("step 24/60\nstep 2", "7/60\n", "last words"):
                time.sleep(0.4)
                file.write(text)
                file.flush()
        record = {"key": home.key("ngrpo_training", "b"), "pid": 1, "seconds": 2.0, "artifact": "s3://x"}
        write_state(directory / "stages" / "ngrpo_training.json", record)
        record = {"key": home.key("benchmark_evaluation", "a"), "pid": 1}
        (directory / "logs" / "benchmark_evaluation.log").write_text("evaluating\n")
        write_state(directory / "stages" / "benchmark_evaluation.json", record)
        time.sleep(0.4)
        write_state(
            directory / "stages" / "benchmark_evaluation.json", record | {"seconds": 1.0, "error": "no benchmark"}
        )
        fcntl.flock(lifeline, fcntl.LOCK_UN)

    threading.Thread(target=work).start()
    assert ngrpo("logs", "-f").splitlines() == [
        "--- ngrpo_training",
        "loading",
        "step 3/60 reward 0.1",
        "step 21/60 reward 0.2",
        "step 24/60",
        "step 27/60",
        "last words",
        "--- benchmark_evaluation",
        "evaluating",
        f"--- {directory.name}: failed at benchmark_evaluation",
    ]
    assert ngrpo("logs", "ngrpo_training", "-f").splitlines()[-1] == "last words"


def test_a_stage_that_never_begins_ends_the_wait_with_its_run(home, ngrpo, running):
    directory, lifeline = running
    timer = threading.Timer(0.6, lambda: fcntl.flock(lifeline, fcntl.LOCK_UN))
    timer.start()
    told = ngrpo("logs", "-f", "benchmark_evaluation", code=2)
    assert f"run {directory.name}: benchmark_evaluation has printed nothing: it is not run" in told


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_bytes_are_worded(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (3540, "59 min"),
        (3590, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_times_are_worded(seconds, text):
    assert time_text(seconds) == text
