"""Fixtures on real services: one S3 server for the whole session, a fresh prefix for each test."""

import gc
import os
import uuid

# Before torch is imported: threads that wait for work by spinning slow down everything else on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from ngrpo.storage import inspection
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed import serve

WAITS = (0.05, 0.1)
"""Between looks at what seems damaged; seconds where it matters."""


def pytest_collection():
    """Imports during collection make no garbage, and scanning for it takes a sixth of the time."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()  # else Triton's bindings report at exit what was not collected


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch):
    monkeypatch.setattr(inspection, "WAITS", WAITS)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A SeaweedFS server; an `S3Endpoint`."""
    with serve(tmp_path_factory.mktemp("s3") / "data") as endpoint:
        yield endpoint


@pytest.fixture
def s3_environment(s3, monkeypatch):
    """The environment by which boto3 finds the server."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def objects(s3_environment):
    """A prefix of its own."""
    return ObjectStore(f"s3://ngrpo/{uuid.uuid4().hex}")


@pytest.fixture
def store(objects, tmp_path):
    """An artifact store on a prefix of its own, with an empty cache."""
    return ArtifactStore(objects, tmp_path / "cache")
