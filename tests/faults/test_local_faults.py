"""Faults of one machine that take minutes: a store that commands come to and leave, kills at every step, a full disk, an odd path."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from mlflow.store.db.base_sql_model import Base
from small_house import House, build
from test_local_runtime import is_alive, processes_of, sleeping_run, wait_for
from test_tracking import killed_at, put_older, tables_of

from ngrpo.errors import TrackingError
from ngrpo.tracking.database import prepare_database

SHORT = (("plan",), ("history",), ("plan", "--set", "training.steps=40"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> House:
    house = build(tmp_path_factory.mktemp("finished"))
    house.ngrpo("run")
    return house


@pytest.fixture
def house(finished, tmp_path) -> House:
    house = finished.copy(tmp_path)
    house.ran()
    return house


@pytest.mark.parametrize("turn", range(5))
def test_short_commands_do_not_take_the_store_away_from_a_run(house, turn):
    """A short command starts the store and the run joins it; others come and go, some of them killed, while the run goes on."""
    house.write_stage("ngrpo_training", "import time\ntime.sleep(8)")
    chance = random.Random(turn)
    first = house.start("plan")
    time.sleep(chance.uniform(0, 3))
    run = house.start("run")
    others = [first]
    while run.poll() is None:
        others.append(house.start(*chance.choice(SHORT)))
        time.sleep(chance.uniform(0.5, 3))
        if chance.random() < 0.4:
            others[-1].send_signal(chance.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)))
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    assert house.ran()[-3:] == ["ngrpo_training", "benchmark_evaluation", "model_promotion"]
    for other in others:
        _, errors = other.communicate(timeout=120)
        assert other.returncode in (0, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, 130, 143), errors
    wait_for(lambda: not list(processes_of(house)), seconds=30)


def test_nothing_is_left_when_all_are_killed(house):
    run, pids = sleeping_run(house)
    others = [house.start("plan") for _ in range(3)]
    time.sleep(1.5)
    for process in (run, *others):
        process.kill()
    for process in (run, *others):
        process.communicate()
    wait_for(lambda: not list(processes_of(house)), seconds=20)
    assert not any(is_alive(pid) for pid in pids)
    house.write_stage("ngrpo_training")
    assert "cached" in house.ngrpo("plan").stdout


@pytest.mark.parametrize("older", [False, True])
def test_a_kill_at_any_step_leaves_a_database_that_is_whole(tmp_path, older):
    path = tmp_path / "mlflow.db"
    if older:
        put_older(path)
    before = path.read_bytes() if older else None
    uri = f"sqlite:///{path}"
    trial = tmp_path / "trial"
    trial.mkdir()
    if older:
        shutil.copy(path, trial)
    steps = killed_at(0, f"sqlite:///{trial / 'mlflow.db'}")
    assert steps > 300
    for step in range(1, steps + 1, steps // 25):
        assert killed_at(step, uri) == 0
        assert (path.read_bytes() if path.exists() else None) == before
    prepare_database(uri)
    assert tables_of(path) >= set(Base.metadata.tables)
    if older:
        with closing(sqlite3.connect(path)) as tables:
            assert tables.execute("SELECT run_uuid FROM runs").fetchall() == [("a",)]


def test_a_kill_at_any_moment_of_the_first_start_leaves_a_workspace_that_works(tmp_path):
    """As `killed_at`, but by the clock: the kill may hit the copying, the syncing and the renaming as well."""
    code = "import sys; from ngrpo.tracking.database import prepare_database; print(flush=True); prepare_database(sys.argv[1])"
    chance = random.Random(0)
    for number in range(14):
        path = tmp_path / str(number) / "mlflow.db"
        child = subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{path}"], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(chance.uniform(0, 3))
        child.kill()
        child.communicate()
        assert not path.exists() or tables_of(path) >= set(Base.metadata.tables)
        prepare_database(f"sqlite:///{path}")
        assert tables_of(path) >= set(Base.metadata.tables)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of a given size; yields the function and unmounts at the end."""
    if os.getuid() != 0:
        pytest.skip("NOT CHECKED: only root may mount a small file system")
    mounted = []

    def mount(size):
        place = tmp_path / "disk"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"NOT CHECKED: no small file system: {done.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def grow(place):
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kib", [4, 100, 600, 900])
def test_a_full_disk_leaves_the_database_as_it_was(small_disk, tmp_path, older, kib):
    if older:
        put_older(tmp_path / "older.db")
        kib += (tmp_path / "older.db").stat().st_size // 1024
    disk = small_disk(f"{kib}k")
    path = disk / "mlflow.db"
    if older:
        shutil.copy(tmp_path / "older.db", path)
    before = path.read_bytes() if older else None
    with pytest.raises(
        TrackingError, match=r"(full|No space left on device|disk I/O error).*KiB free.*; make room"
    ) as error:
        prepare_database(f"sqlite:///{path}")
    assert "\n" not in str(error.value)
    assert (path.read_bytes() if path.exists() else None) == before
    assert {file.name for file in disk.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}
    grow(disk)
    prepare_database(f"sqlite:///{path}")
    assert tables_of(path) >= set(Base.metadata.tables)


@pytest.mark.parametrize("kib", [16, 200, 1200])
def test_a_run_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(small_disk, house, kib):
    disk = small_disk(f"{kib}k")
    house.home = disk / "outputs"
    failed = house.ngrpo("run", code=2)
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    wait_for(lambda: not list(processes_of(house)), seconds=30)
    subprocess.run(["mount", "-o", "remount,size=2g", disk], check=True)
    house.ngrpo("run")
    assert house.summary["promotion"]["decision"] == "promoted"


def test_a_workspace_may_have_any_name(finished, tmp_path):
    house = finished.copy(tmp_path)
    (tmp_path / "odd").mkdir()
    house.home = tmp_path / "odd" / '100%41 of ü, it\'s "1" & what?x=1#2; [a]'
    house.ran()
    house.ngrpo("run")
    assert len(house.ran()) == 6
    house.ngrpo("run")
    assert house.ran() == ["model_promotion"]
    for command in ("plan", "history", "report"):
        house.ngrpo(command)
    with closing(sqlite3.connect(house.home / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone() == (9,)
    assert [path.name for path in house.home.parent.iterdir()] == [house.home.name]
    assert not [path for path in house.root.rglob("*") if "%" in path.name or "outputs" in path.name]
