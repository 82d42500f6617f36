"""Manifests and references: equal content has equal text, and invalid text is never accepted."""

import hashlib
import json
import random

import pytest

from ngrpo.errors import StoreError
from ngrpo.storage.address import parse_address
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


def mangled(good: bytes, chance: random.Random) -> bytes:
    """Return JSON that was cut, flipped, or has nonsense in one place."""
    nonsense = [
        None,
        True,
        -1,
        1 << 70,
        0.5,
        "",
        "..",
        "a/../b",
        "/etc",
        "\x00",
        "\ud800",
        [],
        {},
        [[]],
        "s3://b/../c",
        {"a": None},
    ]
    kind = chance.randrange(4)
    if kind == 0:
        return good[: chance.randrange(len(good))]
    if kind == 1:
        place = chance.randrange(len(good))
        return good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :]
    if kind == 2:
        return chance.choice(
            [b"[" * 5000, b"\xff", b"", b"null", b"NaN", b"1e999", b'"x"', b"{}", b'{"uri": ' + b"9" * 5000 + b"}"]
        )
    tree = json.loads(good)
    node = tree
    while True:
        key = chance.choice([*node, "new"])
        if isinstance(node.get(key), dict) and node[key] and chance.random() < 0.7:
            node = node[key]
            continue
        node[chance.choice([key, "../x", "a\nb"])] = chance.choice(nonsense)
        return json.dumps(tree).encode()


def test_no_nonsense_is_a_raw_error():
    chance, refused = random.Random(0), []
    whole = manifest({"model/weights.bin": FileEntry("f" * 64, 5), "metrics.json": ENTRY})
    reference = Reference("s3://ngrpo/artifacts/prepare_data/k/", "k", "d" * 64)
    for _ in range(500):
        for good, read, value in (
            (whole.to_bytes(), Manifest.from_bytes, whole),
            (reference.to_json().encode(), Reference.from_json, None),
        ):
            data = mangled(good, chance)
            try:
                found = read(data)
            except StoreError as error:
                refused.append(str(error))
            else:
                assert value in (None, found), "a manifest that was changed is not taken for one"
    assert len(refused) > 900
    assert not [line for line in refused if not line.isprintable()]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/run#1", "s3://b/run?x=1", "s3://b/a%2fb", "s3://b/a b", "s3://b/a//b", "s3://b/../c", "s3://b/./c", "s3://b/a\\b",
        "s3://b/a\nb", "s3://b/a\x00", "s3://user:hush@b/a", "s3:///a", "s3://", "s3:b", "b/a", "", "file:///tmp", "s3://../a", "s3://b:1/a",
    ],
)  # fmt: skip
def test_an_address_that_is_not_the_same_to_everybody_is_refused(uri):
    with pytest.raises(StoreError, match=r"write s3://bucket/prefix") as error:
        parse_address(uri)
    assert "hush" not in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError):
        Reference.from_json(json.dumps({"uri": uri, "key": "k", "digest": "d" * 64}))


def test_addresses_are_taken_apart():
    assert parse_address("s3://b") == ("b", "")
    assert parse_address("s3://b/a/ä.1/") == ("b", "a/ä.1")


@pytest.mark.parametrize("key", ["..", "a/../b", "/k", "", "a\\b", "a\nb"])
def test_a_key_that_leaves_its_place_is_refused(key):
    with pytest.raises(StoreError, match="damaged: key"):
        Reference.from_json(json.dumps({"uri": "s3://b/stage/k/", "key": key, "digest": "d" * 64}))
