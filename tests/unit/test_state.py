"""State files: any damage is one error that names the file and the cure, and writes are atomic."""

import os
from typing import NotRequired

import pytest
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from ngrpo.data.locations import download
from ngrpo.errors import StoreError
from ngrpo.storage import state
from ngrpo.storage.state import DamagedStateError, parse_state, read_state, write_state
from ngrpo.storage.whole_files import written_whole


class Note(TypedDict):
    name: str
    count: int
    reason: NotRequired[str | None]


GOOD = b'{"name": "x", "count": 3}'

DAMAGE = {
    "empty": b"",
    "blank": b"\n  \n",
    "cut": GOOD[:-4],
    "not UTF-8": b'{"name": "\xff", "count": 3}',
    "another encoding": '{"name": "x", "count": 3}'.encode("utf-16"),
    "zeros": bytes(64),
    "a list": b'["x", 3]',
    "a number": b"7",
    "null": b"null",
    "a field is missing": b'{"name": "x"}',
    "text for a number": b'{"name": "x", "count": "3"}',
    "boolean for a number": b'{"name": "x", "count": true}',
    "not finite": b'{"name": "x", "count": NaN}',
    "beyond every number": b'{"name": "x", "count": 1e999}',
    "nested beyond reason": b"[" * 200_000,
    "a lone surrogate": rb'{"name": "\ud800", "count": 3}',
    "a number of a million digits": b'{"name": "x", "count": ' + b"9" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_damage_of_every_kind_is_one_line_with_file_and_cure(tmp_path, data):
    path = tmp_path / "note.json"
    path.write_bytes(data)
    with pytest.raises(DamagedStateError) as error:
        read_state(path, Note, cure="delete it")
    said = str(error.value)
    assert said.startswith(f"{path}: damaged: ")
    assert said.endswith("; delete it")
    assert "\n" not in said
    assert len(said) < 400


def test_what_was_written_is_read_back_and_no_file_is_no_damage(tmp_path):
    path = tmp_path / "folder" / "note.json"
    assert read_state(path, Note, cure="") is None
    write_state(path, {"name": "ü", "count": 3, "reason": None})
    assert read_state(path, Note, cure="") == {"name": "ü", "count": 3, "reason": None}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["note.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    write_state(path, {"name": "old", "count": 1})

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StoreError, match=r"note\.json: cannot be written \(No space left on device: \d+ bytes needed, \d+"
    ):
        write_state(path, {"name": "new", "count": 2})
    monkeypatch.undo()
    assert read_state(path, Note, cure="") == {"name": "old", "count": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


@pytest.fixture
def synced(monkeypatch, tmp_path) -> list[tuple[int, dict[str, str]]]:
    """What is synced to disk, by inode, and the files of the directory at that time."""
    seen, fsync = [], os.fsync

    def watched(descriptor):
        files = {path.name: path.read_text() for path in tmp_path.iterdir()}
        seen.append((os.fstat(descriptor).st_ino, files))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return seen


def test_a_file_takes_its_place_once_it_is_on_disk(tmp_path, synced):
    path = tmp_path / "data"
    path.write_text("old")
    with written_whole(path) as partial:
        partial.write_text("new")
    file, directory = (path.stat().st_ino, tmp_path.stat().st_ino)
    assert synced == [(file, {"data": "old", partial.name: "new"}), (directory, {"data": "new"})]


def test_a_download_takes_its_place_once_it_is_on_disk(tmp_path, monkeypatch, synced):
    class Store:
        def __init__(self, uri):
            pass

        def list(self, prefix=""):
            return ["train.jsonl"]

        def get_file(self, name, path):
            path.write_text("{}")

    monkeypatch.setattr("ngrpo.storage.objects.ObjectStore", Store)
    download("s3://bucket/math", tmp_path)
    assert [files for _, files in synced] == [{"train.jsonl.partial": "{}"}, {"train.jsonl": "{}"}]


def test_a_file_that_is_not_finished_does_not_take_its_place(tmp_path):
    path = tmp_path / "data"
    path.write_text("old")

    def interrupted():
        with written_whole(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_in_place_of_a_file_is_damage(tmp_path):
    with pytest.raises(DamagedStateError, match="cannot be read"):
        read_state(tmp_path, Note, cure="")


def test_secrets_in_damaged_state_are_not_repeated():
    with pytest.raises(DamagedStateError) as error:
        parse_state(b'{"name": ["hunter2"], "count": 3}', Note, where="credentials.json", cure="delete it")
    assert "hunter2" not in str(error.value)


def test_a_validator_is_built_once_a_type(tmp_path, monkeypatch):
    """A plan reads hundreds of manifests; to build their validator takes longer than to use it."""

    class Label(TypedDict):
        text: str

    built = []

    def build(expected):
        built.append(expected)
        return TypeAdapter(expected)

    monkeypatch.setattr(state, "TypeAdapter", build)
    for number in range(2):
        path = tmp_path / f"{number}.json"
        write_state(path, {"text": str(number)})
        assert read_state(path, Label, cure="") == {"text": str(number)}
    assert built == [Label]
