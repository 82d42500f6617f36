"""A stage reports a failing disk, or a damaged file that it reads back, in one line with the cure."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ngrpo import errors
from ngrpo.config import NeighborIndexConfig, Section
from ngrpo.contracts.metrics import read_metrics
from ngrpo.errors import ConfigError, DataError, NGRPOError, Preempted, StoreError, TrainingError
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.stages import torchrun
from ngrpo.stages.context import Context
from ngrpo.stages.declarations import Stage
from ngrpo.stages.process import PARENT_RUN, parent_run_id
from ngrpo.storage.disk import disk_fault

DAMAGES = {
    "empty": b"",
    "cut": b'{"run_id": "a", "sta',
    "not UTF-8": b"\xff\xfe\x00",
    "no JSON": b"not json",
    "a list": b"[]",
    "a number": b"3",
    "wrong type": b'{"run_id": 3, "loss": "high", "kind": 1, "message": [], "stage": {}}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_that_a_stage_reads_back_are_one_line(tmp_path, damage):
    for name, read in (
        (PARENT_RUN, lambda: parent_run_id(tmp_path)),
        ("metrics.json", lambda: read_metrics(tmp_path)),
        ("task.json", lambda: torchrun._work(tmp_path / "task.json")),
    ):
        (tmp_path / name).write_bytes(DAMAGES[damage])
        with pytest.raises(StoreError, match=rf"{name}: damaged: .*; .*run ") as failure:
            read()
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_of_an_index_is_one_line(tmp_path, damage):
    index = NeighborIndex.build(torch.randn(12, 4), torch.ones(12, dtype=torch.bool), candidates=3, block_rows=8)
    index.save(tmp_path)
    (tmp_path / "index.json").write_bytes(DAMAGES[damage])
    with pytest.raises(DataError, match=r"index\.json: damaged: .*; build it again") as failure:
        NeighborIndex.load(tmp_path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("changed", [{"version": "2"}, {"statistics": {"searched": "all"}}, {"sha256": None}])
def test_a_description_of_another_type_is_one_line(tmp_path, changed):
    index = NeighborIndex.build(torch.randn(12, 4), torch.ones(12, dtype=torch.bool), candidates=3, block_rows=8)
    index.save(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DataError, match=rf"index\.json: damaged: {next(iter(changed))}.*; build it again"):
        NeighborIndex.load(tmp_path)


class Group:
    """Stands for torchrun: its processes fail, and leave word or not."""

    left: bytes | None = None
    code = 1

    def __init__(self, command):
        task = Path(command[-1])
        assert json.loads(task.read_text())["stage"] == "neighbor_index"
        if self.left is not None:
            (task.parent / "error.json").write_bytes(self.left)

    def wait(self):
        return self.code

    def kill(self):
        pass


@pytest.mark.parametrize(
    ("left", "raised", "said"),
    [
        (b'{"kind": "ConfigError", "message": "a setting"}', ConfigError, "^a setting$"),
        (b'{"kind": "DamagedStateError", "message": "damaged"}', NGRPOError, "^damaged$"),
        (b'{"kind": "os", "message": "no error at all"}', NGRPOError, "^no error at all$"),
        (b'{"kind": null, "message": "KeyError: 3"}', RuntimeError, "one of its 2 processes failed: KeyError: 3$"),
        (b'{"kind": "Conf', StoreError, r"error\.json: damaged: .*; see the log, and run again"),
        (None, RuntimeError, "one of its 2 processes ended with 1: see the log"),
    ],
)
def test_what_a_process_of_a_group_leaves_is_what_is_raised(tmp_path, monkeypatch, left, raised, said):
    monkeypatch.setattr(subprocess, "Popen", Group)
    monkeypatch.setattr(Group, "left", left)
    assert hasattr(errors, "os"), "a name that is no error"
    config: Section = NeighborIndexConfig.model_construct()
    with pytest.raises(raised, match=said):
        torchrun.run("neighbor_index", config, {}, tmp_path, Context(tmp_path), processes=2)


def test_the_processes_of_a_group_get_what_the_stage_got(tmp_path, monkeypatch):
    got = []

    class Working(Group):
        def __init__(self, command):
            torchrun._work(Path(command[-1]))

    monkeypatch.setattr(subprocess, "Popen", Working)
    monkeypatch.setattr(Working, "code", 0)
    monkeypatch.setattr(torchrun, "join", lambda: None)
    monkeypatch.setattr(Stage, "function", lambda self: lambda *arguments: got.append(arguments))
    settings = NeighborIndexConfig.model_validate({"model": {"source": {"kind": "initialized"}}, "neighbors": {}})
    context = Context(tmp_path, "s3://bucket/prefix", "checkpoints/stage/key", save_minutes=2.5, reporters=("mlflow",))
    torchrun.run("neighbor_index", settings, {"dataset": tmp_path}, tmp_path / "output", context, processes=2)
    assert got == [(settings, {"dataset": tmp_path}, tmp_path / "output", context)]


LOST = RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("ends", "left", "printed"),
    [
        ([ConfigError("a setting"), LOST], {"kind": "ConfigError", "message": "a setting"}, ""),
        (
            [LOST, TrainingError("diverged")],
            {"kind": "TrainingError", "message": "diverged"},
            "Connection closed by peer",
        ),
        ([KeyError(3), LOST], {"kind": None, "message": "KeyError: 3"}, "KeyError: 3"),
        ([OSError(errno.ENOSPC, "No space left on device", "/f"), LOST], {"kind": "StoreError"}, ""),
        ([OSError(f"cannot use https://me:{'canary'}@host")], {"kind": None}, "cannot use https://host"),
    ],
)
def test_the_process_of_a_group_that_knows_why_is_the_one_that_says_it(tmp_path, capsys, ends, left, printed):
    for error in ends:
        torchrun._leave_word(tmp_path, type(error), error, None)
    assert json.loads((tmp_path / "error.json").read_text()).items() >= left.items()
    said = capsys.readouterr().err
    assert said.strip().endswith(printed) if printed else said == ""
    assert "canary" not in said


def wrapped(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("cannot save") from cause
    except RuntimeError as outer:
        return outer


def test_a_process_of_a_group_that_was_killed_is_said_before_what_follows_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Group)
    monkeypatch.setattr(Group, "left", b'{"kind": null, "message": "Connection closed by peer"}')
    monkeypatch.setattr(Group, "code", 128 + signal.SIGKILL)
    config: Section = NeighborIndexConfig.model_construct()
    with pytest.raises(RuntimeError, match="one of its 2 processes was killed by SIGKILL, for want of memory perhaps"):
        torchrun.run("neighbor_index", config, {}, tmp_path, Context(tmp_path), processes=2)
    monkeypatch.setattr(Group, "left", None)
    monkeypatch.setattr(Group, "code", os.EX_TEMPFAIL)
    with pytest.raises(Preempted):
        torchrun.run("neighbor_index", config, {}, tmp_path, Context(tmp_path), processes=2)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        ("os.kill(os.getppid(), signal.SIGTERM)", 128 + signal.SIGTERM),
    ],
)
def test_torchrun_ends_as_its_process_did_and_says_nothing(tmp_path, end, code):
    script = tmp_path / "process.py"
    script.write_text(f"import os, signal, sys, time\nif os.environ['RANK'] == '1':\n    {end}\ntime.sleep(60)\n")
    agent = [sys.executable, "-m", "ngrpo.stages.torchrun_agent", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(agent, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code
    assert ended.stdout + ended.stderr == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/big/file"),
            r"'/big/file' cannot be written: No space left .*: \d+ bytes free in /; make room, ",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            r"^a file, .* cannot be written: No space left .*: \d+ bytes free in \S+, \d+ bytes free in /\S+; make room",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/f"), "'/f': Permission denied; grant this user access"),
        (
            OSError(errno.EROFS, "Read-only file system", "/f"),
            "'/f': Read-only .*; mount it for writing, or use another",
        ),
        (OSError(errno.EIO, "Input/output error", "/f"), "'/f': Input/output error; check the disk"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/f"), "'/f': No such file or directory; check"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            r"No space left on device: \d+ bytes free in",
        ),
        (RuntimeError("[enforce fail at inline_container.cc] . No space left on device"), "No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/f"), "raise the quota"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
def test_a_fault_of_the_disk_is_one_line_with_the_free_room_where_that_is_the_reason(tmp_path, error, said, wrap):
    line = disk_fault(wrap(error), tmp_path, tmp_path / "absent")
    assert line is not None
    assert "\n" not in line
    assert line.endswith(" and run again")
    assert re.search(said, line)


@pytest.mark.parametrize("error", [ValueError("x"), ConnectionResetError(errno.ECONNRESET, "reset"), KeyError("f")])
def test_another_error_is_no_fault_of_the_disk(tmp_path, error):
    assert disk_fault(error, tmp_path) is None
