"""Artifacts on a real S3 server: whole or absent, verified at every use, and errors that name the cure."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ngrpo.errors import StoreError
from ngrpo.storage.artifacts import MANIFEST, ArtifactStore, Manifest, Reference
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve

pytestmark = pytest.mark.pipeline
KEY = "a" * 32


@pytest.fixture
def payload(tmp_path):
    directory = tmp_path / "payload"
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "weights.bin").write_bytes(os.urandom(300_000))
    (directory / "metrics.json").write_text('{"loss": 1.0}')
    return directory


def publish(store: ArtifactStore, directory: Path, key: str = KEY) -> Reference:
    return store.publish("training", key, directory, config_digest="c", code_version="v", inputs={"dataset": "k0"})


def test_what_is_published_comes_back(store, payload):
    assert store.find("training", KEY) is None
    reference = publish(store, payload)
    assert store.find("training", KEY) == reference
    assert store.verify(reference) == []
    fetched = store.fetch(reference)
    assert (fetched / "model" / "weights.bin").read_bytes() == (payload / "model" / "weights.bin").read_bytes()
    manifest = Manifest.from_bytes((fetched / MANIFEST).read_bytes())
    assert manifest.inputs == {"dataset": "k0"}
    assert set(manifest.files) == {"model/weights.bin", "metrics.json"}
    assert publish(store, payload) == reference, "publishing the same again changes nothing"


def test_a_part_can_be_fetched(store, payload):
    fetched = store.fetch(publish(store, payload), only="metrics.json")
    assert (fetched / "metrics.json").exists()
    assert not (fetched / "model").exists()


def test_without_a_manifest_there_is_no_artifact(store, objects, payload):
    reference = publish(store, payload)
    objects.delete(f"training/{KEY}/{MANIFEST}")
    assert store.find("training", KEY) is None
    assert store.verify(reference)
    with pytest.raises(StoreError, match="gone from the store"):
        store.fetch(reference)
    assert publish(store, payload) == reference, "what a killed publisher left is replaced"
    assert store.verify(reference) == []


@pytest.mark.parametrize("damage", ["one byte", "shorter", "deleted"])
def test_damage_in_the_store_is_seen_and_never_used(store, objects, payload, tmp_path, damage):
    reference = publish(store, payload)
    key = f"training/{KEY}/model/weights.bin"
    data = bytearray((payload / "model" / "weights.bin").read_bytes())
    if damage == "one byte":
        data[1000] ^= 1
    if damage == "deleted":
        objects.delete(key)
    else:
        objects.put_bytes(bytes(data if damage == "one byte" else data[:-1]), key)
    problems = store.verify(reference)
    assert len(problems) == 1
    assert problems[0].startswith("model/weights.bin: ")
    with pytest.raises(StoreError, match="run the pipeline again"):
        store.fetch(reference)
    assert not list((tmp_path / "cache").rglob("weights.bin*")), "the damaged download must not stay"
    store.discard(reference)
    assert store.find("training", KEY) is None
    publish(store, payload)
    assert store.verify(reference) == []


def test_damage_in_the_cache_is_repaired(store, payload):
    reference = publish(store, payload)
    cached = store.fetch(reference) / "model" / "weights.bin"
    cached.write_bytes(b"x" * 300_000)
    assert (store.fetch(reference) / "model" / "weights.bin").read_bytes() == (
        payload / "model" / "weights.bin"
    ).read_bytes()


def test_a_file_that_another_artifact_left_in_the_cache_goes(store, payload):
    cached = store.fetch(publish(store, payload))
    (cached / "leftover.txt").write_text("old")
    cached = store.fetch(publish(store, payload))
    assert not (cached / "leftover.txt").exists()


def test_two_results_under_one_key_are_refused(store, payload):
    reference = publish(store, payload)
    (payload / "metrics.json").write_text('{"loss": 2.0}')
    with pytest.raises(StoreError, match="different result"):
        publish(store, payload)
    assert json.loads((store.fetch(reference) / "metrics.json").read_text()) == {"loss": 1.0}


def test_of_many_conditional_writers_one_wins(objects):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda who: objects.put_bytes(b"%d" % who, "lock", if_none_match=True), range(8)))
    assert sum(won) == 1
    assert objects.get_bytes("lock") == b"%d" % won.index(True)


def test_wrong_credentials_are_named_without_being_shown(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StoreError, match=r"access refused.*AWS_SECRET_ACCESS_KEY") as error:
        ObjectStore("s3://ngrpo/x").check()
    assert "not-the-secret" not in str(error.value)
    assert s3_environment.secret_key not in str(error.value)
    assert s3_environment.secret_key not in repr(s3_environment)


def test_an_unreachable_service_is_reported_quickly(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"AWS_ENDPOINT_URL=http://127\.0\.0\.1:9 cannot be reached"):
        ObjectStore("s3://ngrpo/x").check()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("uri", "message"), [("s3://nowhere/x", "no bucket 'nowhere'"), ("file:///tmp", "expected s3://")]
)
def test_a_wrong_address_is_named(s3_environment, uri, message):
    with pytest.raises(StoreError, match=message):
        ObjectStore(uri).check()


def test_a_full_disk_is_named(store, payload):
    reference = publish(store, payload)
    limited = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from ngrpo.storage.artifacts import *; from ngrpo.storage.objects import ObjectStore;"
        "ArtifactStore(ObjectStore(sys.argv[1]), Path(sys.argv[2])).fetch(Reference.from_json(sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, store._objects.uri, str(payload.parent / "small"), reference.to_json()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "StoreError" in done.stderr
    assert "cannot be written" in done.stderr
    assert not list((payload.parent / "small").rglob("weights.bin*"))


def test_the_server_keeps_its_objects_and_its_credentials_to_itself(tmp_path, monkeypatch):
    for turn in range(2):
        with serve(tmp_path / "store") as endpoint:
            for name, value in endpoint.environment().items():
                monkeypatch.setenv(name, value)
            objects = ObjectStore("s3://ngrpo/kept")
            if turn == 0:
                objects.put_bytes(b"hello", "x")
            assert objects.get_bytes("x") == b"hello"
            listening = {
                connection.laddr.ip
                for process in [psutil.Process(endpoint.pid), *psutil.Process(endpoint.pid).children(recursive=True)]
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            }
            assert listening == {"127.0.0.1"}
            processes = psutil.Process(endpoint.pid).children(recursive=True)
        assert not any(process.is_running() for process in processes)
    assert (tmp_path / "credentials.json").stat().st_mode & 0o777 == 0o600
    log = (tmp_path / "seaweed.log").read_text(errors="replace")
    assert endpoint.secret_key not in log


def test_the_server_ends_with_its_process_however_that_ends(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ngrpo.storage.seaweed import serve\n"
        "with serve(Path(sys.argv[1])) as endpoint: print(endpoint.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
    guard = psutil.Process(int(owner.stdout.readline()))
    family = [guard, *guard.children(recursive=True)]
    assert len(family) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
