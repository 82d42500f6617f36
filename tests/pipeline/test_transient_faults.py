"""Faults between ngrpo and the object store: transient ones lose nothing, lasting ones are reported, and only real damage counts."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from faulty_proxy import FaultyProxy, faulty_proxy
from ngrpo.errors import StoreError
from ngrpo.storage.artifacts import MANIFEST, ArtifactStore
from ngrpo.storage.checkpoint_store import CheckpointStore, Part
from ngrpo.storage.manifest import Reference
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.service_faults import OutOfReachError

pytestmark = pytest.mark.pipeline
KEY = "b" * 32
PLACE = f"training/{KEY}"
WAITS = (0.1, 0.2)
ONE_READ = 3
"""Tries of botocore for one request of ours."""


@pytest.fixture(scope="module")
def proxy_of_module(s3):
    with faulty_proxy(s3.url) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxy_of_module, s3_environment, monkeypatch) -> FaultyProxy:
    """A proxy without faults, which the environment names."""
    proxy_of_module.faults.clear()
    proxy_of_module.requests.clear()
    proxy_of_module.down_until = 0.0
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy_of_module.url)
    return proxy_of_module


@pytest.fixture
def faulty(proxy, objects) -> ObjectStore:
    """The prefix of the test, through the proxy; it has been reached."""
    through = ObjectStore(objects.uri, patience=20)
    through.check()
    return through


@pytest.fixture
def faulty_store(faulty, tmp_path) -> ArtifactStore:
    return ArtifactStore(faulty, tmp_path / "cache", waits=WAITS)


@pytest.fixture
def payload(tmp_path) -> Path:
    directory = tmp_path / "payload"
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "weights.bin").write_bytes(os.urandom(100_000))
    (directory / "metrics.json").write_text('{"loss": 1.0}')
    return directory


def publish(store: ArtifactStore, directory: Path, stage: str = "training") -> Reference:
    return store.publish(stage, KEY, directory, config_digest="c", code_version="v", inputs={})


FAULTS = {
    "cut": {},
    "flip": {},
    "drop": {},
    "404": {"status": (404, "NoSuchKey")},
    "500": {"status": (500, "InternalError")},
}


@pytest.mark.parametrize(
    ("fault", "part"),
    [*((fault, "weights.bin") for fault in FAULTS), ("cut", MANIFEST), ("flip", MANIFEST), ("404", MANIFEST)],
)
def test_one_fault_while_an_artifact_is_read_says_nothing_of_it(proxy, faulty_store, payload, fault, part):
    reference = publish(faulty_store, payload)
    kind = "status" if FAULTS[fault] else fault
    for method in ("GET", "HEAD"):
        if method == "HEAD" and (kind in {"cut", "flip"} or part == MANIFEST):
            continue
        # Through botocore's own tries too, where it has any.
        injected = proxy.add(kind, method, part, times=ONE_READ if fault in {"500", "drop"} else 1, **FAULTS[fault])
        assert faulty_store.find("training", KEY) == reference
        assert faulty_store.verify(reference) == []
        assert injected.done == injected.times, "the fault did happen"
    proxy.add(kind, "GET", part, times=ONE_READ if fault in {"500", "drop"} else 1, **FAULTS[fault])
    fetched = faulty_store.fetch(reference)
    assert (fetched / "model" / "weights.bin").read_bytes() == (payload / "model" / "weights.bin").read_bytes()


@pytest.mark.parametrize("fault", ["500", "drop", "404"])
def test_a_service_that_is_ill_makes_nothing_damaged(proxy, objects, payload, tmp_path, fault):
    patient = ObjectStore(objects.uri, patience=0.5)
    store = ArtifactStore(patient, tmp_path / "cache", waits=(0.05,))
    reference = publish(store, payload)
    proxy.add("status" if FAULTS[fault] else fault, "", "", None, **FAULTS[fault])
    for read in (lambda: store.find("training", KEY), lambda: store.verify(reference), lambda: store.fetch(reference)):
        with pytest.raises(StoreError) as error:
            read()
        assert "\n" not in str(error.value)
    proxy.faults.clear()
    assert store.verify(reference) == []


def test_content_that_comes_back_differently_each_time_is_not_damage(proxy, faulty_store, faulty, payload, monkeypatch):
    reference = publish(faulty_store, payload)
    digests = iter(f"{number:064x}" for number in range(100))
    monkeypatch.setattr(faulty, "sha256", lambda key: next(digests))
    with pytest.raises(StoreError, match=r"its content differed between 3 reads, so its state is unknown"):
        faulty_store.verify(reference)


def test_an_outage_is_waited_for_and_said_once(proxy, faulty, capsys):
    faulty.put_bytes(b"before", "key")
    proxy.down(2.5)
    began = time.monotonic()
    assert faulty.get_bytes("key") == b"before"
    assert time.monotonic() - began > 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("; ")[2] for line in said] == ["trying again for up to 20 seconds", ""]
    assert said[1].endswith("it responds again")


USES = {
    "get": lambda objects, path: objects.get_bytes("key"),
    "put": lambda objects, path: objects.put_bytes(b"x", "other"),
    "head": lambda objects, path: objects.head("key"),
    "list": lambda objects, path: objects.list(),
    "delete": lambda objects, path: objects.delete("other"),
    "upload": lambda objects, path: objects.put_file(path, "file"),
    "download": lambda objects, path: objects.get_file("key", path.with_name("got")),
    "range": lambda objects, path: objects.get_range("key", 1, 2),
    "hash": lambda objects, path: objects.sha256("key"),
    "swap": lambda objects, path: objects.swap(os.urandom(8), "lock", None),
    "check": lambda objects, path: objects.check(),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_outlives_an_outage(proxy, objects, tmp_path, use):
    through = ObjectStore(objects.uri, patience=20)
    through.put_bytes(b"content", "key")
    (tmp_path / "file").write_bytes(b"file")
    fault = proxy.add("drop", "", "", times=ONE_READ)
    USES[use](through, tmp_path / "file")
    assert fault.done == ONE_READ


def test_patience_ends_with_one_line(proxy, objects):
    through = ObjectStore(objects.uri, patience=1)
    through.check()
    proxy.down(60)
    began = time.monotonic()
    with pytest.raises(OutOfReachError, match=r"cannot be reached .*; start the service"):
        through.list()
    assert time.monotonic() - began < 15


def test_a_first_contact_that_fails_is_told_within_seconds(proxy, objects, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(OutOfReachError):
        ObjectStore(objects.uri).get_bytes("key")
    assert time.monotonic() - began < 10


def test_a_process_that_another_has_started_waits_from_the_beginning(s3_environment, s3, objects, monkeypatch):
    with faulty_proxy(s3.url) as fresh:
        monkeypatch.setenv("AWS_ENDPOINT_URL", fresh.url)
        fresh.down(2)
        assert ObjectStore(objects.uri, proven=True).get_bytes("key") is None


def test_a_conditional_write_whose_answer_was_lost_is_known_as_ours(proxy, faulty):
    proxy.add("lose", "PUT", "lock")
    assert faulty.put_bytes(b"ours", "lock", if_none_match=True)
    _, etag = faulty.get_tagged("lock")
    proxy.add("lose", "PUT", "lock")
    assert faulty.swap(b"ours too", "lock", etag) is not None
    proxy.add("drop", "PUT", "lock")
    assert faulty.swap(b"late", "lock", etag) is None, "another's write is not taken for ours"
    assert not faulty.put_bytes(b"late", "lock", if_none_match=True)
    assert faulty.get_bytes("lock") == b"ours too"


def test_an_interrupt_ends_the_waiting_of_threads(proxy, faulty):
    faulty.put_bytes(b"x", "key")
    proxy.down(60)
    failed: list[StoreError] = []

    def read() -> None:
        try:
            faulty.get_bytes("key")
        except StoreError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(2)
    faulty.interrupt()
    thread.join(15)
    assert not thread.is_alive()
    assert len(failed) == 1


def test_a_damaged_artifact_stays_until_its_replacement_is_whole(proxy, faulty_store, faulty, payload):
    first = publish(faulty_store, payload)
    before = faulty.get_bytes(f"{PLACE}/{MANIFEST}")
    faulty.delete(f"{PLACE}/metrics.json")
    (payload / "metrics.json").write_text('{"loss": 2.0}')
    proxy.add("status", "PUT", MANIFEST, None, status=(403, "AccessDenied"))
    with pytest.raises(StoreError, match="access refused"):
        publish(faulty_store, payload)
    assert faulty.get_bytes(f"{PLACE}/{MANIFEST}") == before
    assert faulty.head(f"{PLACE}/model/weights.bin") is not None
    assert faulty_store.verify(first) == ["metrics.json: missing"]
    proxy.faults.clear()
    second = publish(faulty_store, payload)
    assert second.digest != first.digest
    assert faulty_store.verify(second) == []
    assert json.loads((faulty_store.fetch(second) / "metrics.json").read_text()) == {"loss": 2.0}
    assert faulty.head(f"{PLACE}/model/weights.bin") is None, "what was replaced is deleted in the end"
    assert len(faulty.list()) == 4


DECAYED = {
    "empty": b"",
    "cut": b'{"code_version": "v", "con',
    "not UTF-8": b"\xff\xfe\x00",
    "other type": b"[1, 2]",
    "negative size": b'{"code_version":"v","config_digest":"c","files":{"a":{"sha256":"%s","size":-1}},"inputs":{},"key":"%s",'
    b'"stage":"training"}' % (b"0" * 64, KEY.encode()),
    "outside": b'{"code_version":"v","config_digest":"c","files":{"../a":{"sha256":"%s","size":1}},"inputs":{},"key":"%s",'
    b'"stage":"training"}' % (b"0" * 64, KEY.encode()),
    "of another": b'{"code_version":"v","config_digest":"c","files":{},"inputs":{},"key":"k","stage":"training"}',
}


@pytest.mark.parametrize("decay", DECAYED)
def test_a_manifest_that_decayed_is_said_and_replaced(store, objects, payload, decay):
    publish(store, payload)
    objects.put_bytes(DECAYED[decay], f"{PLACE}/{MANIFEST}")
    found = store.find("training", KEY)
    assert store.verify(found)[0].startswith("its manifest is damaged: ")
    assert store.find_sound("training", KEY) is None
    with pytest.raises(StoreError, match=r"its manifest is damaged: .*the stage training will be repeated"):
        store.fetch(found)
    again = publish(store, payload)
    assert store.find_sound("training", KEY) == again
    assert (store.fetch(again) / "metrics.json").read_text() == '{"loss": 1.0}'


def test_a_bit_of_a_manifest_that_changed_its_meaning_alone_is_seen(store, objects, payload):
    publish(store, payload)
    data = objects.get_bytes(f"{PLACE}/{MANIFEST}")
    objects.put_bytes(data.replace(b'"config_digest": "c"', b'"config_digest": "b"'), f"{PLACE}/{MANIFEST}")
    assert store.verify(store.find("training", KEY)) == ["its manifest is damaged: its content was changed"]


def test_two_that_replace_a_damaged_artifact_leave_a_sound_one(store, objects, payload, tmp_path):
    """The second finds the damage before the first has replaced it, and uploads afterwards."""
    publish(store, payload)
    objects.delete(f"{PLACE}/metrics.json")
    looked, published = threading.Event(), threading.Event()

    class Late(ObjectStore):
        def put_file(self, path: Path, key: str, **options: object) -> None:
            looked.set()
            assert published.wait(30)
            super().put_file(path, key, **options)

    late = []

    def race() -> None:
        try:
            publish(ArtifactStore(Late(objects.uri), tmp_path / "late", waits=WAITS), payload)
        except StoreError as error:
            late.append(str(error))

    (payload / "metrics.json").write_text('{"loss": 3.0}')
    thread = threading.Thread(target=race)
    thread.start()
    assert looked.wait(30)
    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    (other / "model" / "weights.bin").write_bytes(b"others")
    (other / "metrics.json").write_text('{"loss": 4.0}')
    winner = publish(store, other)
    published.set()
    thread.join()
    assert "different result" in late[0]
    assert store.find_sound("training", KEY) == winner
    assert (store.fetch(winner) / "model" / "weights.bin").read_bytes() == b"others"
    assert len(objects.list()) == 4


def test_a_checkpoint_is_not_given_up_for_one_fault(proxy, faulty, tmp_path):
    checkpoints = CheckpointStore(faulty, "checkpoints/training/k", tmp_path / "downloads", waits=WAITS)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "weights").write_bytes(b"w" * 1000)
    for step in (4, 8):
        checkpoints.put(step, tmp_path / "saved", Part("ab"), keep=2, best=None)
    before = faulty.list()
    proxy.add("flip", "GET", "000000008-")
    proxy.add("cut", "GET", "weights")
    proxy.add("status", "GET", "weights", status=(404, "NoSuchKey"))
    checkpoints.restore(tmp_path / "here", after=0)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["checkpoint-8"]
    assert faulty.list() == before


@pytest.mark.parametrize(
    "refusal", [(501, "NotImplemented"), (400, "XAmzContentSHA256Mismatch"), (400, "InvalidArgument")]
)
def test_a_service_without_checksums_is_told_of_with_the_setting_that_cures_it(
    s3_environment, s3, objects, payload, tmp_path, monkeypatch, refusal
):
    certificate = tmp_path / "certificate.pem"
    with faulty_proxy(s3.url, certificate) as proxy:
        proxy.refuses_checksums = refusal
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        with pytest.raises(StoreError, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required") as error:
            publish(ArtifactStore(ObjectStore(objects.uri), tmp_path / "cache"), payload)
        assert refusal[1] in str(error.value)
        assert "\n" not in str(error.value)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        store = ArtifactStore(ObjectStore(objects.uri), tmp_path / "cache")
        assert store.verify(publish(store, payload)) == []


def test_publishing_asks_for_each_file_once(proxy, faulty_store, payload):
    for number in range(5):
        (payload / f"file-{number}").write_text(f"{number}")
    proxy.requests.clear()
    reference = publish(faulty_store, payload)
    puts = [path for method, path in proxy.requests if method == "PUT"]
    assert len(puts) == len(set(puts)) == 7 + 2
    assert len(proxy.requests) - len(puts) == 2, "it looks whether there is one"
    proxy.requests.clear()
    faulty_store.fetch(reference)
    assert len(proxy.requests) == 1 + 2 * 7, "the manifest; boto3 asks for the size of each file"
