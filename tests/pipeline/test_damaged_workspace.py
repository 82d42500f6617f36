"""Damaged files of a workspace: at most one line with the cure, no traceback, and nothing lost.

The commands run in this process and look for results of the real stages, which the store does not have, because only the reading of state
is tested. They get an object store and a database, unless those are the damaged parts.
"""

import os
import shutil
from pathlib import Path

import pytest

from ngrpo.errors import ConfigError
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import read_config
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_record

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]

RUN = "runs/20260101-000000-000000-tiny"
PLAN, HISTORY, REPORT, REGRADE = ("plan",), ("history",), ("report",), ("regrade",)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_utf8(path):
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


def directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


KINDS = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "not UTF-8": not_utf8,
    "of another type": lambda path: path.write_text("[1, 2]"),
    "of another shape": lambda path: path.write_text('{"stages": 3, "prepare_data": "x", "a": 1}'),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a directory": directory,
}
EXPLAINS = {f"{RUN}/plan.json": PLAN, f"{RUN}/stages/prepare_data.json": PLAN}
"""What is said to be damaged, and ignored."""
DECIDES = {
    "rerun_tokens.json": PLAN,
    f"{RUN}/summary.json": REPORT,
    f"{RUN}/config.json": REGRADE,
}
"""What is needed: exit code 2 and the cure."""


@pytest.fixture
def workspace(tmp_path, s3_environment, database, monkeypatch):
    """A workspace with the files of one run, whose artifacts are gone."""
    home = Workspace(tmp_path / "outputs")
    monkeypatch.setenv("NGRPO_HOME", str(home.root))
    monkeypatch.setenv("NGRPO_STORE", f"s3://ngrpo/{tmp_path.name}")
    monkeypatch.chdir(tmp_path)
    config = read_config()
    plan = make_plan(config, run="x", store=None, rerun_tokens={}, history=History())
    run = home.root / RUN
    write_state(run / "plan.json", plan_record(plan))
    for stage in plan:
        write_state(
            run / "stages" / f"{stage.name}.json", {"key": stage.key, "pid": 1, "artifact": "s3://x", "seconds": 1.0}
        )
    stages = {
        stage.name: {"key": stage.key, "artifact": f"s3://ngrpo/x/{stage.key}/", "seconds": 1.0} for stage in plan
    }
    write_state(run / "summary.json", {"stages": stages, "mlflow": {"run_id": "r"}, "wall_seconds": 1.0})
    write_state(run / "config.json", config.model_dump(mode="json"))
    write_state(home.root / "rerun_tokens.json", {"key": "token"})
    home.set_latest(run)
    return home


@pytest.fixture
def ngrpo(capsys):
    """Run a command in this process; returns its exit code and its error lines, which are never a traceback."""

    def command(*arguments):
        capsys.readouterr()
        code = cli.main(arguments)
        errors = capsys.readouterr().err
        assert code in (0, 2), errors
        assert "Traceback" not in errors
        assert all(len(line) < 1000 for line in errors.splitlines())
        return code, [line for line in errors.splitlines() if not line.startswith("left out")]

    return command


def contents(root, but=()):
    """Every persistent file of a workspace."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in but and ".lock" not in path.name
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", EXPLAINS)
def test_what_only_explains_is_ignored_when_it_is_damaged(workspace, ngrpo, file, kind):
    assert ngrpo(*PLAN) == (0, [])
    KINDS[kind](workspace.root / file)
    before = contents(workspace.root)
    code, (line,) = ngrpo(*PLAN)
    assert code == 0
    assert line.startswith(f"ignored: {workspace.root / file}: ")
    assert contents(workspace.root) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", DECIDES)
def test_what_is_needed_is_named_with_its_cure_when_it_is_damaged(workspace, ngrpo, file, kind):
    code, lines = ngrpo(*DECIDES[file])
    assert "damaged" not in str(lines)
    KINDS[kind](workspace.root / file)
    before = contents(workspace.root)
    code, (line,) = ngrpo(*DECIDES[file])
    assert code == 2
    assert (workspace.latest / Path(file).name if "runs" in file else workspace.root / file).name in line
    assert line.endswith(("the results from before the reruns", "run the preset again: its results are in the store"))
    assert contents(workspace.root) == before


@pytest.mark.parametrize("kind", ["empty", "cut", "not UTF-8", "of another type", "a directory"])
def test_a_damaged_database_of_the_workspace_is_named_or_made_anew(
    workspace, ngrpo, prepared_database, monkeypatch, kind
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shutil.copy(prepared_database, workspace.database)
    KINDS[kind](workspace.database)
    before = contents(workspace.root)
    code, lines = ngrpo(*HISTORY)
    if kind == "empty":
        assert (code, lines) == (0, [])
    else:
        assert code == 2
        assert len(lines) == 1
        assert str(workspace.database) in lines[0]
        assert contents(workspace.root) == before


def dangling(path):
    path.unlink()
    path.symlink_to("runs/nowhere")


@pytest.mark.parametrize("harm", [dangling, directory, Path.unlink])
def test_a_latest_that_shows_nothing_is_one_line(workspace, ngrpo, harm):
    harm(workspace.latest)
    for command in (REPORT, REGRADE):
        code, (line,) = ngrpo(*command)
        assert code == 2
        assert (
            line == f"ngrpo: run {workspace.latest}: no summary.json there; name the directory of a run that finished"
        )
    assert ngrpo(*PLAN) == (0, [])


@pytest.mark.parametrize("name", ["run.lock", "latest", "runs"])
def test_what_is_in_the_way_of_a_run_is_one_line(workspace, name):
    path = workspace.root / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        path.write_text("")
    else:
        directory(path)
        (path / "something").write_text("of the user's")
    with (
        pytest.raises(ConfigError, match=rf"workspace: .*{name}.* cannot be made: .*; move away what is there"),
        workspace.lock(),
    ):
        workspace.set_latest(workspace.new_run(workspace.run_name("tiny")))
    assert path.is_file() or (path / "something").read_text() == "of the user's"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"123 and more", b"9" * 10_000])
def test_the_lock_of_a_run_may_hold_anything(workspace, content):
    (workspace.root / "run.lock").write_bytes(content)
    with workspace.lock():
        (workspace.root / "run.lock").write_bytes(content)
        with pytest.raises(ConfigError, match=r"in use by another run \(process \d*\)"), workspace.lock():
            pass


def test_runs_follow_each_other_whatever_the_clock_says(workspace):
    names = [workspace.new_run(workspace.run_name("tiny")).name for _ in range(3)]
    ahead = "21000101-000000-000000-smollm2"
    (workspace.runs / ahead).mkdir()
    (workspace.runs / "notes").mkdir()
    (workspace.runs / "99999999-000000-000000-tiny").mkdir()
    names += [ahead, workspace.new_run(workspace.run_name("tiny")).name]
    assert names == sorted(set(names))


def test_nobody_else_may_read_a_workspace(workspace, ngrpo):
    for path in (workspace.root / "rerun_tokens.json", workspace.runs):
        path.chmod(0o755)
    before = os.umask(0o022)
    try:
        assert ngrpo(*PLAN) == (0, [])
        assert os.umask(0o022) == 0o022, "the mask is for our files alone"
    finally:
        os.umask(before)
    for path in (workspace.root / "rerun_tokens.json", workspace.runs):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("home", "said"),
    [
        ("a\nb", "control characters"),
        ("a\udcff", "not UTF-8"),
        ("/tmp/" + "x/" * 300, "at most leave room"),
        ("x" * 300, "File name too long"),
        ("/proc/nowhere", "cannot be made"),
        ("/dev/null/x", "Not a directory"),
    ],
)
def test_a_place_where_no_workspace_can_be_is_one_line(tmp_path, ngrpo, monkeypatch, home, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NGRPO_HOME", home)
    for command in (PLAN, ("run",)):
        if (home, command) == ("/proc/nowhere", PLAN):
            continue  # that makes no workspace
        code, (line,) = ngrpo(*command)
        assert code == 2
        assert said in line
        assert "NGRPO_HOME" in line
