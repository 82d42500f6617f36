"""Artifacts on a real S3 server: complete or absent, verified at every use, with errors that name the cure."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from ngrpo.errors import StoreError
from ngrpo.storage import inspection
from ngrpo.storage.artifacts import MANIFEST, REFERENCE, SUSPECT, ArtifactStore
from ngrpo.storage.manifest import Manifest, Reference
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve
from ngrpo.storage.service_faults import UnreadableError

pytestmark = pytest.mark.pipeline
KEY = "a" * 32
PLACE = f"training/{KEY}"
WEIGHTS = f"{PLACE}/model/weights.bin"


@pytest.fixture
def payload(tmp_path):
    directory = tmp_path / "payload"
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "weights.bin").write_bytes(os.urandom(300_000))
    (directory / "metrics.json").write_text('{"loss": 1.0}')
    return directory


@pytest.fixture
def large(monkeypatch):
    """Treat every artifact as one that is too large to be read at each plan."""
    monkeypatch.setattr(inspection, "_READ_TO_VERIFY", 0)


def publish(store: ArtifactStore, directory: Path, key: str = KEY) -> Reference:
    return store.publish("training", key, directory, config_digest="c", code_version="v", inputs={"dataset": "k0"})


def changed(payload: Path) -> Path:
    """Return a copy of the weights with one bit flipped."""
    data = bytearray((payload / "model" / "weights.bin").read_bytes())
    data[1000] ^= 1
    path = payload.parent / "changed.bin"
    path.write_bytes(data)
    return path


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


def test_a_file_in_many_parts_and_odd_names_come_back(store, payload):
    content = os.urandom(1 << 20) * 40
    (payload / "in parts.bin").write_bytes(content)
    (payload / "größe %2F+&#.txt").write_text("x")
    (payload / "empty").touch()
    (payload / "link").symlink_to(payload / "metrics.json")
    reference = publish(store, payload)
    assert store.verify(reference) == []
    fetched = store.fetch(reference)
    assert (fetched / "in parts.bin").read_bytes() == content
    assert (fetched / "größe %2F+&#.txt").read_text() == "x"
    assert (fetched / "empty").read_bytes() == b""
    assert (fetched / "link").read_text() == '{"loss": 1.0}'


def test_a_part_can_be_fetched(store, payload):
    reference = publish(store, payload)
    fetched = store.fetch(reference, only="metrics.json")
    assert (fetched / "metrics.json").exists()
    assert not (fetched / "model").exists()
    assert (store.fetch(reference, only="model/") / "model" / "weights.bin").exists()
    with pytest.raises(StoreError, match="no file that starts with 'modle/'"):
        store.fetch(reference, only="modle/")


@pytest.mark.parametrize("name", [MANIFEST, REFERENCE, SUSPECT])
def test_a_file_in_the_place_of_the_stores_own_is_refused(store, objects, payload, name):
    (payload / name).write_text("{}")
    with pytest.raises(StoreError, match="this name is reserved by the store"):
        publish(store, payload)
    assert objects.list() == []


@pytest.mark.parametrize("target", ["model", "nowhere"])
def test_a_link_that_would_be_lost_is_refused(store, payload, target):
    (payload / "link").symlink_to(payload / target)
    with pytest.raises(StoreError, match=r"link: only files, directories and links to files"):
        publish(store, payload)


def test_a_publisher_that_is_killed_leaves_no_artifact(store, objects, payload):
    program = (
        "import os, signal, sys; from pathlib import Path; from ngrpo.storage.artifacts import *; from ngrpo.storage.manifest import *\n"
        "class Killed(ObjectStore):\n"
        "    def put_bytes(self, data, key, **options): os.kill(os.getpid(), signal.SIGKILL)\n"
        "ArtifactStore(Killed(sys.argv[1]), Path()).publish("
        "'training', sys.argv[2], Path(sys.argv[3]), config_digest='c', code_version='v', inputs={'dataset': 'k0'})"
    )
    (payload / "metrics.json").write_text('{"loss": 0.0}')
    done = subprocess.run([sys.executable, "-c", program, objects.uri, KEY, str(payload)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert WEIGHTS in objects.list()
    assert store.find("training", KEY) is None
    (payload / "metrics.json").write_text('{"loss": 1.0}')
    reference = publish(store, payload)
    assert store.verify(reference) == [], "what the killed publisher left is replaced"
    assert json.loads((store.fetch(reference) / "metrics.json").read_text()) == {"loss": 1.0}


def test_without_a_manifest_there_is_no_artifact(store, objects, payload):
    reference = publish(store, payload)
    objects.delete(f"{PLACE}/{MANIFEST}")
    assert store.find("training", KEY) is None
    assert store.verify(reference) == [f"{MANIFEST} is missing or was changed"]
    with pytest.raises(StoreError, match="gone from the store"):
        store.fetch(reference)


def test_a_manifest_that_was_changed_is_refused(store, objects, payload):
    reference = publish(store, payload)
    data = objects.get_bytes(f"{PLACE}/{MANIFEST}")
    objects.put_bytes(data.replace(b'"v"', b'"w"'), f"{PLACE}/{MANIFEST}")
    assert store.verify(reference) == [f"{MANIFEST} is missing or was changed"]
    with pytest.raises(StoreError, match="not the one referred to"):
        store.fetch(reference)


def test_a_reference_that_a_killed_publisher_did_not_write_is_added(store, objects, payload):
    reference = publish(store, payload)
    objects.delete(f"{PLACE}/{REFERENCE}")
    assert store.verify(reference) == []
    assert Reference.from_json(objects.get_bytes(f"{PLACE}/{REFERENCE}").decode()) == reference


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("damage", ["one bit", "shorter", "deleted"])
def test_damage_in_the_store_is_seen_and_never_used(store, objects, payload, tmp_path, damage, size, request):
    if size == "large":
        request.getfixturevalue("large")
    reference = publish(store, payload)
    if damage == "deleted":
        objects.delete(WEIGHTS)
    else:
        data = changed(payload).read_bytes()
        objects.put_bytes(data if damage == "one bit" else data[:-1], WEIGHTS)
    problems = store.verify(reference)
    assert len(problems) == 1
    assert problems[0].startswith("model/weights.bin: ")
    digest = Manifest.from_bytes(objects.get_bytes(f"{PLACE}/{MANIFEST}")).files["model/weights.bin"].sha256
    with pytest.raises(StoreError) as error:
        store.fetch(reference)
    for part in (reference.uri, "model/weights.bin", digest, "found ", "run the pipeline again: the stage training"):
        assert part in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if "weights" in path.name or "partial" in path.name]
    assert publish(store, payload) == reference, "publishing again repairs a damaged artifact"
    assert store.verify(reference) == []
    store.discard(reference)
    assert store.find("training", KEY) is None
    assert objects.list() == []


def test_a_large_file_that_is_another_is_seen_without_reading_it(store, objects, payload, large, monkeypatch):
    reference = publish(store, payload)
    monkeypatch.setattr(ObjectStore, "sha256", lambda *_: pytest.fail("read"))
    other = changed(payload)
    objects.put_file(other, WEIGHTS, metadata={"sha256": hashlib.sha256(other.read_bytes()).hexdigest()})
    assert store.verify(reference) == ["model/weights.bin: its content was changed"]
    right = (payload / "model" / "weights.bin").read_bytes()
    other.write_bytes(right[:-1])
    objects.put_file(other, WEIGHTS, metadata={"sha256": hashlib.sha256(right).hexdigest()})
    assert store.verify(reference) == ["model/weights.bin: 299999 bytes instead of 300000"]


def test_decay_of_a_large_artifact_is_found_when_it_is_fetched_and_remembered(store, objects, payload, large):
    reference = publish(store, payload)
    # As decay on the service's disk: other content, while the service still tells the old hash.
    digest = Manifest.from_bytes(objects.get_bytes(f"{PLACE}/{MANIFEST}")).files["model/weights.bin"].sha256
    objects.put_file(changed(payload), WEIGHTS, metadata={"sha256": digest})
    assert store.verify(reference) == [], "the test's premise: a large artifact is not read at each plan"
    with pytest.raises(StoreError, match=r"model/weights\.bin is damaged"):
        store.fetch(reference)
    assert store.verify(reference) == ["model/weights.bin: its content was changed"]
    objects.put_file(payload / "model" / "weights.bin", WEIGHTS, metadata={"sha256": digest})
    assert store.verify(reference) == [], "an alarm that proves false is forgotten"
    assert SUSPECT not in {Path(key).name for key in objects.list()}


def test_a_byte_flipped_on_the_servers_disk_is_seen_and_never_used(payload, tmp_path, monkeypatch):
    with serve(tmp_path / "own") as endpoint:
        for name, value in endpoint.environment().items():
            monkeypatch.setenv(name, value)
        once = boto3.session.Session().client("s3", config=Config(retries={"total_max_attempts": 1}))
        store = ArtifactStore(ObjectStore("s3://ngrpo/decay", once, patience=1), tmp_path / "cache", waits=(0.1,))
        reference = publish(store, payload)
        content = (payload / "model" / "weights.bin").read_bytes()
        volume = next(path for path in (tmp_path / "own").glob("*.dat") if content in path.read_bytes())
        with volume.open("r+b") as file:
            file.seek(volume.read_bytes().index(content) + 1000)
            file.write(bytes([content[1000] ^ 1]))
        problems = store.verify(reference)
        assert len(problems) == 1
        assert problems[0].startswith("model/weights.bin: ")
        assert "cannot be read" in problems[0]


def test_a_service_that_goes_down_is_not_taken_for_damage(store, payload, monkeypatch):
    reference = publish(store, payload)

    def cut(objects: ObjectStore, key: str) -> str:
        raise UnreadableError("cut off")

    def down(objects: ObjectStore) -> None:
        raise StoreError("cannot be reached")

    monkeypatch.setattr(ObjectStore, "sha256", cut)
    assert "model/weights.bin: cut off" in store.verify(reference)
    monkeypatch.setattr(ObjectStore, "check", down)
    with pytest.raises(StoreError, match="cannot be reached"):
        store.verify(reference)


def test_damage_in_the_cache_is_repaired(store, payload):
    reference = publish(store, payload)
    cached = store.fetch(reference) / "model" / "weights.bin"
    cached.write_bytes(changed(payload).read_bytes())
    content = (store.fetch(reference) / "model" / "weights.bin").read_bytes()
    assert content == (payload / "model" / "weights.bin").read_bytes()


def test_what_others_left_in_the_cache_goes(store, payload, tmp_path):
    cached = store.fetch(publish(store, payload))
    (cached / "leftover.txt").write_text("of another artifact under this key")
    partial = cached.with_name(f".{KEY}.partial")
    partial.mkdir()
    (partial / "half.bin").write_text("of a process that was killed")
    cached = store.fetch(publish(store, payload))
    assert not (cached / "leftover.txt").exists()
    assert not partial.exists()


def test_two_that_fetch_the_same_take_turns(store, payload, monkeypatch):
    reference = publish(store, payload)
    downloads = []
    get_file = ObjectStore.get_file

    def counted(objects: ObjectStore, key: str, path: Path) -> str:
        downloads.append(key)
        time.sleep(0.2)
        return get_file(objects, key, path)

    monkeypatch.setattr(ObjectStore, "get_file", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: store.fetch(reference), range(2))
    assert first == second
    assert sorted(downloads) == [f"{PLACE}/metrics.json", WEIGHTS]


def test_two_results_under_one_key_are_refused(store, payload):
    reference = publish(store, payload)
    (payload / "metrics.json").write_text('{"loss": 2.0}')
    with pytest.raises(StoreError, match="different result"):
        publish(store, payload)
    assert json.loads((store.fetch(reference) / "metrics.json").read_text()) == {"loss": 1.0}


@pytest.mark.parametrize("same", [True, False])
def test_two_publishers_that_race_leave_a_sound_artifact_or_none(objects, payload, tmp_path, same, large):
    """The second looks before the first has published, and uploads afterwards."""
    looked, published = threading.Event(), threading.Event()

    class Late(ObjectStore):
        def put_file(self, path: Path, key: str, **options: object) -> None:
            looked.set()
            assert published.wait(30)
            super().put_file(path, key, **options)

    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    (other / "metrics.json").write_bytes((payload / "metrics.json").read_bytes())
    weights = payload / "model" / "weights.bin" if same else changed(payload)
    (other / "model" / "weights.bin").write_bytes(weights.read_bytes())
    store = ArtifactStore(objects, tmp_path / "cache")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(publish, ArtifactStore(Late(objects.uri), tmp_path / "late", waits=(0.1, 0.2)), other)
        assert looked.wait(30)
        reference = publish(store, payload)
        published.set()
        if same:
            assert late.result() == reference
            assert store.verify(reference) == []
        else:
            with pytest.raises(StoreError, match="different result"):
                late.result()
            assert store.find("training", KEY) is None, "a manifest over the payload of the other must not stay"
            assert publish(store, payload) == reference


def test_of_many_conditional_writers_one_wins(objects):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda who: objects.put_bytes(b"%d" % who, "lock", if_none_match=True), range(8)))
    assert sum(won) == 1
    assert objects.get_bytes("lock") == b"%d" % won.index(True)


def test_an_artifact_of_another_store_is_refused(store, payload):
    reference = publish(store, payload)
    elsewhere = Reference("s3://elsewhere/training/k/", "k", reference.digest)
    with pytest.raises(StoreError, match=r"not in the store .* NGRPO_STORE"):
        store.fetch(elsewhere)


@pytest.mark.parametrize(
    "uri", ["{}/../../stolen/", "{}/training/../k/", "{}//k/", "{}/training/%2e%2e/k/", "{}/training/k\\k/"]
)
def test_a_reference_that_leaves_its_store_is_refused(store, objects, tmp_path, uri):
    with pytest.raises(StoreError, match="artifact "):
        store.fetch(Reference(uri.format(objects.uri), uri.rstrip("/").rpartition("/")[2], "d" * 64))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("obstacle", ["file", "directory"])
def test_a_cache_that_cannot_be_written_is_one_line_and_a_directory_in_the_way_goes(store, payload, tmp_path, obstacle):
    reference = publish(store, payload)
    if obstacle == "file":
        (tmp_path / "cache").write_text("in the way")
        with pytest.raises(StoreError, match=r"cache .* cannot be written \(.*\) or set NGRPO_CACHE_DIR") as error:
            store.fetch(reference)
        assert "\n" not in str(error.value)
    else:
        (tmp_path / "cache" / PLACE / "metrics.json" / "deep").mkdir(parents=True)
        assert (store.fetch(reference) / "metrics.json").read_text() == '{"loss": 1.0}'


def test_a_full_disk_is_named(objects, store, payload, tmp_path):
    reference = publish(store, payload)
    limited = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from ngrpo.storage.artifacts import *; from ngrpo.storage.manifest import *; from ngrpo.storage.objects import ObjectStore;"
        "ArtifactStore(ObjectStore(sys.argv[1]), Path(sys.argv[2])).fetch(Reference.from_json(sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, objects.uri, str(tmp_path / "small"), reference.to_json()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "StoreError" in done.stderr
    assert "cannot be written" in done.stderr
    assert not list((tmp_path / "small").rglob("weights.bin*"))
