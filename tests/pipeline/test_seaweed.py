"""The embedded S3 server: on the loopback alone, alone on its data, and gone with the process that started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ngrpo.errors import StoreError
from ngrpo.storage import seaweed
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import S3Endpoint, serve

pytestmark = pytest.mark.pipeline
OWNER = (
    "import sys, time; from pathlib import Path; from ngrpo.storage.seaweed import serve\n"
    "with serve(Path(sys.argv[1])) as endpoint: print(endpoint.pid, endpoint.url, flush=True); time.sleep(60)"
)


@pytest.fixture
def connect(monkeypatch):
    def objects(endpoint: S3Endpoint) -> ObjectStore:
        for name, value in endpoint.environment().items():
            monkeypatch.setenv(name, value)
        return ObjectStore("s3://ngrpo/kept")

    return objects


def family(endpoint: S3Endpoint) -> list[psutil.Process]:
    guard = psutil.Process(endpoint.pid)
    return [guard, *guard.children(recursive=True)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_server_keeps_its_objects_and_its_credentials_to_itself(tmp_path, connect):
    ours = set()
    for turn in range(2):
        with serve(tmp_path / "store") as endpoint:
            objects = connect(endpoint)
            if turn == 0:
                objects.put_bytes(b"hello", "x")
            assert objects.get_bytes("x") == b"hello"
            processes = family(endpoint)
            connections = [one for process in processes for one in process.net_connections("all")]
            assert {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
            ours |= {Path(one.laddr) for one in connections if one.family == socket.AF_UNIX and one.laddr}
        assert not any(alive(process) for process in processes)
    assert (tmp_path / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert endpoint.secret_key not in (tmp_path / "seaweed.log").read_text(errors="replace")
    assert endpoint.secret_key not in repr(endpoint)
    assert ours, "the test no longer sees the sockets of the server"
    assert not [path for path in ours if path.exists()], "the server leaves its sockets behind"
    assert not list((tmp_path / "store").glob("m[0-9]*")), "the server leaves a directory behind at each start"


@pytest.mark.parametrize("ended", ["owner", "guard"])
def test_the_server_ends_with_its_process_however_that_ends(tmp_path, connect, ended):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
    try:
        pid, url = owner.stdout.readline().split()
        processes = family(S3Endpoint(url, "", "", int(pid)))
        assert len(processes) == 2
        os.kill(owner.pid if ended == "owner" else int(pid), signal.SIGKILL)
        if ended == "owner":
            # Its server may live for a moment: the next one waits until the directory is free.
            with serve(tmp_path / "store") as endpoint:
                assert not any(alive(process) for process in processes)
                connect(endpoint).check()
        deadline = time.monotonic() + 10
        while any(alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(alive(process) for process in processes)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_a_second_server_on_the_same_directory_is_refused_and_does_no_harm(tmp_path, connect, monkeypatch):
    monkeypatch.setattr(seaweed, "_SECONDS_TO_WAIT", 0.5)
    with serve(tmp_path / "store") as endpoint:
        objects = connect(endpoint)
        objects.put_bytes(b"hello", "x")
        with (
            pytest.raises(StoreError, match=r"store is served by another process; .* NGRPO_HOME"),
            serve(tmp_path / "store"),
        ):
            pass
        assert objects.get_bytes("x") == b"hello"


def test_a_port_that_is_taken_meanwhile_is_replaced(tmp_path, connect, monkeypatch):
    free_ports, asked = seaweed._free_ports, []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def ports(count: int) -> list[int]:
            asked.append(count)
            chosen = free_ports(count)
            return [taken.getsockname()[1], *chosen[1:]] if len(asked) == 1 else chosen

        monkeypatch.setattr(seaweed, "_free_ports", ports)
        with serve(tmp_path / "store") as endpoint:
            connect(endpoint).check()
    assert len(asked) == 2


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path, monkeypatch):
    program = tmp_path / "weed"
    program.write_text(
        "#!/bin/sh\necho 'F no space left on device'\nprintf 'goroutine 1 [running]\\n\\tmain.go:1\\n'\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").symlink_to(os.path.realpath("/proc/self/exe"))
    with (
        pytest.raises(
            StoreError, match=r"does not start on http://127.* the end of .*seaweed\.log says: F no space left"
        ) as error,
        serve(tmp_path / "store"),
    ):
        pass
    assert "goroutine" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "store").write_text("a file")
    with (
        pytest.raises(StoreError, match=r"store cannot be used: File exists; set NGRPO_HOME"),
        serve(tmp_path / "store"),
    ):
        pass


def test_credentials_that_are_broken_can_be_replaced_and_the_data_stays(tmp_path, connect):
    with serve(tmp_path / "store") as endpoint:
        connect(endpoint).put_bytes(b"hello", "x")
    credentials = tmp_path / "credentials.json"
    credentials.write_text("")
    credentials.chmod(0o644)
    with pytest.raises(StoreError, match=r"credentials\.json: no credentials .* delete it"), serve(tmp_path / "store"):
        pass
    assert credentials.stat().st_mode & 0o777 == 0o600
    credentials.unlink()
    with serve(tmp_path / "store") as again:
        assert again.secret_key != endpoint.secret_key
        assert connect(again).get_bytes("x") == b"hello"


def test_what_the_shell_has_set_does_not_stand_in_the_way(s3, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet")
    environment = s3.environment()
    assert environment["no_proxy"].split(",") == ["intranet", "127.0.0.1"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ObjectStore("s3://ngrpo/x").check()
