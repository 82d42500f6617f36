"""Manifests and references: one text for equal content, and nothing taken for one that is none."""

import hashlib
import json

import pytest

from ngrpo.errors import StoreError
from ngrpo.storage.manifest import FileEntry, Manifest, Reference

ENTRY = FileEntry("0" * 64, 3)


def manifest(files: dict[str, FileEntry]) -> Manifest:
    return Manifest("prepare_data", "k" * 32, "c", "v", {"dataset": "d" * 32}, files)


def test_a_manifest_survives_its_text():
    before = manifest({"model/weights.bin": FileEntry("f" * 64, 5), "metrics.json": ENTRY})
    after = Manifest.from_bytes(before.to_bytes())
    assert after == before
    assert after.size == 8


def test_the_order_of_the_files_does_not_change_the_digest():
    one = manifest({"a": ENTRY, "b": FileEntry("1" * 64, 4)}).to_bytes()
    other = manifest({"b": FileEntry("1" * 64, 4), "a": ENTRY}).to_bytes()
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest()
    assert one != manifest({"a": ENTRY, "b": FileEntry("2" * 64, 4)}).to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"files": []}',
        json.dumps({"files": {"a": {"sha256": "0" * 64}}}).encode(),
        json.dumps({**json.loads(manifest({}).to_bytes()), "owner": "me"}).encode(),
    ],
)
def test_other_data_is_no_manifest(data):
    with pytest.raises(StoreError, match=r"manifest\.json: damaged: .*; run the pipeline again"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("name", ["../stolen", "/etc/stolen", "model/../../stolen", "./a", "a//b"])
def test_a_file_outside_the_artifact_is_refused(name):
    with pytest.raises(StoreError, match="not a path inside an artifact"):
        Manifest.from_bytes(manifest({name: ENTRY}).to_bytes())


def test_a_reference_survives_its_file(tmp_path):
    reference = Reference("s3://ngrpo/artifacts/prepare_data/k/", "k", "d" * 64)
    reference.write(tmp_path / "made" / "reference.json")
    assert Reference.read(tmp_path / "made" / "reference.json") == reference


@pytest.mark.parametrize("text", [None, "", "[1]", '{"uri": "s3://a/b"}'])
def test_a_file_without_a_reference_is_named(tmp_path, text):
    path = tmp_path / "reference.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=r"reference\.json: holds no reference .* run the pipeline again"):
        Reference.read(path)
