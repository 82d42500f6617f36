"""What verification costs: an artifact of 500 MB published and fetched, against bare boto3 with its own defaults and the same files."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import boto3
import numpy as np
from tests.benchmarks.measure import alternate, report

from ngrpo.environment import environment
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve

FILES_MB = (350, 100, 49, 1)
"""As a model of 135 million weights in float32 with its tokenizer and what a stage adds."""
ROUNDS = 7
BUCKET = "ngrpo"


def run() -> list[dict]:
    """Measure both directions; every round has a key of its own, and every download an empty cache."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve(Path(scratch) / "store") as endpoint,
        environment(endpoint.environment()),
    ):
        return _measure(Path(scratch))


def _measure(scratch: Path) -> list[dict]:
    payload = scratch / "payload"
    payload.mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate(FILES_MB):
        (payload / f"file-{number}").write_bytes(random.bytes(size * 10**6))
    client = boto3.session.Session().client("s3")
    store = ArtifactStore(ObjectStore(f"s3://{BUCKET}/ours"), scratch / "cache")
    turn = iter(range(10**6))
    published = []

    def publish() -> None:
        key = f"{next(turn)}"
        published.append(store.publish("bench", key, payload, config_digest="", code_version="", inputs={}))

    def upload() -> None:
        for file in payload.iterdir():
            client.upload_file(str(file), BUCKET, f"peer/{next(turn)}")

    def fetch() -> None:
        store.fetch(published[-1])

    def download() -> None:
        for number in range(len(FILES_MB)):
            client.download_file(BUCKET, f"ours/bench/{published[-1].key}/file-{number}", str(peer / str(number)))

    def empty() -> None:
        shutil.rmtree(scratch / "cache", ignore_errors=True)
        shutil.rmtree(peer, ignore_errors=True)
        peer.mkdir()
        os.sync()  # what the one before has written is not to be waited for by the next

    peer = scratch / "peer"
    publish()
    # Before the uploads, whose gigabytes are still being written long after.
    down = _compare("down", alternate(fetch, download, ROUNDS, before=empty))
    return [_compare("up", alternate(publish, upload, ROUNDS)), down]


def _compare(direction: str, times: tuple[list[float], list[float]]) -> dict:
    megabytes = sum(FILES_MB)
    return report(
        f"artifact_transfer_{direction}",
        *times,
        unit=f"s for {megabytes} MB",
        scale=1.0,
        peer_is="boto3, not verified",
        files=len(FILES_MB),
        store="on the same machine",
    )
