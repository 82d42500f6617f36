"""Storage under faults that last: an outage of 40 seconds at every use, and a disk that is really full."""

import os
import shutil
import subprocess
import time

import pytest

from faulty_proxy import faulty_proxy
from ngrpo.errors import StoreError
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore

KEY = "c" * 32


@pytest.fixture
def payload(tmp_path):
    directory = tmp_path / "payload"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(os.urandom(5_000_000))
    return directory


def publish(store, directory):
    return store.publish("training", KEY, directory, config_digest="c", code_version="v", inputs={})


@pytest.mark.parametrize("use", ["publish", "find", "fetch"])
def test_an_outage_of_40_seconds_costs_nothing_but_time(s3, objects, payload, tmp_path, monkeypatch, use):
    with faulty_proxy(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ArtifactStore(ObjectStore(objects.uri), tmp_path / "cache")
        assert store.find("training", KEY) is None
        reference = None if use == "publish" else publish(store, payload)
        proxy.down(40)
        began = time.monotonic()
        if use == "publish":
            reference = publish(store, payload)
        elif use == "find":
            assert store.find("training", KEY) == reference
        else:
            assert (store.fetch(reference) / "weights.bin").stat().st_size == 5_000_000
        assert time.monotonic() - began > 35
        assert store.verify(reference) == []


def test_a_service_that_is_overloaded_for_half_a_minute_costs_nothing_but_time(
    s3, objects, payload, tmp_path, monkeypatch
):
    with faulty_proxy(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ArtifactStore(ObjectStore(objects.uri), tmp_path / "cache")
        assert store.find("training", KEY) is None
        fault = proxy.add("status", times=None, status=(503, "SlowDown"))
        until = time.monotonic() + 30
        meets = fault.meets
        fault.meets = lambda method, path: time.monotonic() < until and meets(method, path)
        reference = publish(store, payload)
        assert fault.done > 3
        assert store.verify(reference) == []


def test_an_object_that_one_server_cannot_read_for_half_a_minute_is_not_damaged(
    s3, objects, payload, tmp_path, monkeypatch
):
    with faulty_proxy(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ArtifactStore(ObjectStore(objects.uri), tmp_path / "cache")
        reference = publish(store, payload)
        fault = proxy.add("status", "GET", "weights.bin", times=None, status=(500, "InternalError"))
        until = time.monotonic() + 30
        meets = fault.meets
        fault.meets = lambda method, path: time.monotonic() < until and meets(method, path)
        assert store.verify(reference) == []
        assert fault.done > 3


def test_a_full_disk_is_one_line_with_what_is_missing(objects, payload, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small]).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        reference = publish(ArtifactStore(objects, tmp_path / "cache"), payload)
        with pytest.raises(
            StoreError, match=r"No space left on device: 5000000 bytes needed, \d+ bytes free in .*; make room"
        ) as error:
            ArtifactStore(objects, small / "cache").fetch(reference)
        assert "\n" not in str(error.value)
        assert not list(small.rglob("weights.bin*")), "half a file would be in the way of others"
    finally:
        subprocess.run(["umount", small], check=True)
