"""The embedded S3 server: bound to loopback, shared by its users, stopped after the last of them, and closed to anyone else."""

import fcntl
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import psutil
import pytest

from ngrpo.errors import StoreError
from ngrpo.storage import seaweed
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import S3Endpoint, serve, starting

pytestmark = pytest.mark.pipeline
USER = """
import sys
from pathlib import Path
from ngrpo.environment import environment
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve
with serve(Path(sys.argv[1])) as endpoint, environment(endpoint.environment()):
    print(endpoint.pid, endpoint.url, flush=True)
    while line := sys.stdin.readline():
        ObjectStore("s3://ngrpo/kept").put_bytes(b"hello", line.strip())
        print("done", flush=True)
"""
"""A user of the server; it writes an object for each line that it is sent, and leaves when there are no more."""


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


class User:
    """Another process that uses the server."""

    def __init__(self, directory):
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As from a terminal: a shell's job in the background is started deaf to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    @cached_property
    def endpoint(self):
        pid, url = self.process.stdout.readline().split()
        return S3Endpoint(url, "", "", int(pid))

    def put(self, name):
        assert self.endpoint
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def leave(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0


@pytest.fixture
def user(tmp_path):
    """Start another process that uses the server of `tmp_path / "store"`."""
    users = []

    def start():
        users.append(User(tmp_path / "store"))
        return users[-1]

    yield start
    for one in users:
        one.process.kill()
        one.process.wait()
        one.process.stdin.close()
        one.process.stdout.close()


def gone_soon(processes):
    deadline = time.monotonic() + 10
    while any(alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(process) for process in processes)


@pytest.mark.parametrize("ended", ["user", "guard"])
def test_the_server_ends_with_its_last_user_however_that_ends(user, ended):
    only = user()
    processes = family(only.endpoint)
    assert len(processes) == 2
    os.kill(only.process.pid if ended == "user" else processes[0].pid, signal.SIGKILL)
    assert gone_soon(processes)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, None])
def test_who_started_the_server_may_leave_and_the_others_go_on(tmp_path, user, how):
    first = user()
    processes = family(first.endpoint)
    second = user()
    assert second.endpoint.pid == processes[0].pid
    if how is None:
        first.leave()
    else:
        os.killpg(first.process.pid, how)  # as Ctrl-C in a terminal: the whole group
        first.process.wait(30)
    time.sleep(1.5)
    second.put("x")
    with serve(tmp_path / "store") as endpoint:
        assert endpoint.pid == processes[0].pid
    second.put("y")
    second.leave()
    assert not any(alive(process) for process in processes), "the last user waits for the end"


def test_users_that_come_and_go_at_the_same_time_all_have_a_server(tmp_path, user):
    def short_command(number):
        one = user()
        one.put(str(number))
        if number % 3:
            one.leave()
        else:
            one.process.kill()

    stays = user()
    with ThreadPoolExecutor(4) as pool:
        commands = [pool.submit(short_command, number) for number in range(6)]
        stays.put("a")  # it comes at the same time as the first of them
        for command in commands:
            command.result()
    stays.put("b")
    processes = family(stays.endpoint)
    stays.leave()
    assert gone_soon(processes)
    with serve(tmp_path / "store") as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in endpoint.environment().items():
            patch.setenv(name, value)
        assert set(ObjectStore("s3://ngrpo/kept").list()) == {"a", "b", *map(str, range(6))}


def test_another_version_that_holds_the_directory_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(seaweed, "_SECONDS_TO_STOP", 0.3)
    with (tmp_path / "store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(StoreError, match=r"store is held by a process that does not end, .* NGRPO_HOME"),
            serve(tmp_path / "store"),
        ):
            pass


HARM = {
    "store.lock": lambda path: path.write_bytes(b"\xff{"),
    "store.server/endpoint.json": lambda path: path.write_bytes(b"\xff{"),
    "store/vol_dir.uuid": lambda path: path.write_bytes(b""),
    "store/ngrpo_1.dat": lambda path: path.write_bytes(path.read_bytes()[:30]),
}
IN_THE_WAY = ("store.lock", "store/serve.lock", "store.server/endpoint.json", "seaweed.log", "credentials.json")


def test_what_is_damaged_beside_the_objects_does_no_harm_and_what_is_in_the_way_is_named(tmp_path):
    with serve(tmp_path / "store"):
        pass
    for name, harm in HARM.items():
        harm(tmp_path / name)
    with serve(tmp_path / "store") as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in endpoint.environment().items():
            patch.setenv(name, value)
        ObjectStore("s3://ngrpo/kept").put_bytes(b"hello", "x")
    for name in IN_THE_WAY:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        path.mkdir()
        with pytest.raises(StoreError, match=re.escape(str(path))) as error, serve(tmp_path / "store"):
            pass
        assert "\n" not in str(error.value)
        path.rmdir()


def ports_of(endpoint):
    """The five HTTP ports and the five gRPC ports on which the server listens; those of its administration come up last."""
    deadline, listening = time.monotonic() + 20, set()
    while len(listening) < 10 and time.monotonic() < deadline:
        connections = [one for process in family(endpoint) for one in process.net_connections("tcp")]
        listening = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
        time.sleep(0.1)
    grpc = {port for port in listening if port - 10_000 in listening}
    assert (len(listening), len(grpc)) == (10, 5), "a port of its own for every part, and for nothing else"
    return sorted(listening - grpc), sorted(grpc)


STRANGER = """
import encodings.idna, os, sys, urllib.error, urllib.request
if os.getuid() == 0:
    os.setuid(65534)  # elsewhere it is the same user, who lacks the keys all the same
for line in sys.stdin:
    method, url = line.split()
    request = urllib.request.Request(url, data=b"stolen" if method in ("PUT", "POST") else None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            print(answer.status, repr(answer.read(65536)))
    except urllib.error.HTTPError as error:
        print(error.code, repr(error.read(65536)))
    except OSError as error:
        print("none", repr(str(error)))
"""


def test_a_stranger_on_this_machine_gets_nothing_from_any_port(tmp_path, connect):
    secret = b"weights of a model that nobody else may have" * 1000
    with serve(tmp_path / "store") as endpoint:
        objects = connect(endpoint)
        objects.put_bytes(secret, "x")
        ports, _ = ports_of(endpoint)
        paths = [
            "",
            "ngrpo/kept/x",
            "buckets/ngrpo/kept/x",
            "buckets/ngrpo/kept/?recursive=true",
            "etc/",
            "1,01",
            "2,01637037d6",
        ]
        paths += [
            "dir/assign",
            "dir/lookup?volumeId=1&read=yes",
            "submit",
            "vol/vacuum",
            "vol/grow?count=1",
            "col/delete?collection=ngrpo",
        ]
        asked = [
            f"{method} http://127.0.0.1:{port}/{path}"
            for port in ports
            for path in paths
            for method in ("GET", "HEAD", "PUT", "POST", "DELETE")
        ]
        answers = subprocess.run(
            [sys.executable, "-c", STRANGER],
            input="\n".join(asked),
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        assert len(answers) == len(asked)
        given = {
            line.partition(" ")[2]
            for line, answer in zip(asked, answers, strict=True)
            if answer.split()[0] not in ("400", "401", "403", "404", "405")
        }
        assert len(given) == 1, "all that a stranger may see is the front page of the master: that there is a server"
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", given.pop())
        assert not [answer for answer in answers if "weights" in answer or '"fid"' in answer]
        assert objects.get_bytes("x") == secret
        assert objects.list() == ["x"]


def knock(port, context):
    """Begin to talk gRPC to a port; returns what it answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        connection = plain if context is None else context.wrap_socket(plain)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        return connection.recv(64)


def test_the_ports_between_its_parts_ask_for_a_certificate(tmp_path):
    with serve(tmp_path / "store") as endpoint:
        _, ports = ports_of(endpoint)
        stranger = ssl._create_unverified_context()
        stranger.set_alpn_protocols(["h2"])
        for port in ports:
            for context in (None, stranger):
                with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                    assert knock(port, context)
        known = ssl._create_unverified_context()
        known.set_alpn_protocols(["h2"])
        known.load_cert_chain(tmp_path / "store.server" / "certificate.pem", tmp_path / "store.server" / "key.pem")
        assert all(knock(port, known) for port in ports), (
            "the test does not tell a refusal from a port that is never there"
        )


def test_nobody_else_may_read_what_the_server_keeps(tmp_path, connect):
    with serve(tmp_path / "store") as endpoint:
        connect(endpoint).put_bytes(b"hello", "x")
        for name in ("store", "store.server"):
            assert (tmp_path / name).stat().st_mode & 0o077 == 0
        for path in (*tmp_path.glob("*"), *(tmp_path / "store.server").iterdir()):
            assert path.stat().st_mode & 0o077 == 0, path
        keys = (tmp_path / "store.server" / "security.toml").read_text()
    with serve(tmp_path / "store"):
        assert (tmp_path / "store.server" / "security.toml").read_text() != keys, "each start has keys of its own"


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
    with (
        pytest.raises(StoreError, match=r"credentials\.json: damaged: it is empty; delete it"),
        serve(tmp_path / "store"),
    ):
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


def test_a_server_that_was_started_ahead_is_the_one_that_is_served(tmp_path, connect):
    """And who only reads does not wait for its end, which comes all the same."""
    with starting(tmp_path / "store", stopped=False):
        with serve(tmp_path / "store", stopped=False) as endpoint:
            connect(endpoint).put_bytes(b"hello", "x")
            processes = family(endpoint)
            assert len(processes) == 2, "one server"
        assert all(map(alive, processes)), "it is still used"
    _, left = psutil.wait_procs(processes, timeout=20)
    assert left == []
    with serve(tmp_path / "store") as endpoint:
        assert connect(endpoint).get_bytes("x") == b"hello"
