"""The content of what a run reads from a local directory or from object storage: it is in the keys, and where it lies is not.

The stages are told the digests that they were planned with, and refuse other content.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ngrpo.config import Copied, FilesSource, RunConfig, Section
from ngrpo.data.copies import files_of, identity, is_copy
from ngrpo.data.locations import is_bucket
from ngrpo.data.own_files import own_files, place_of
from ngrpo.data.tables import count_rows
from ngrpo.errors import ConfigError, DataError, StoreError
from ngrpo.stages.keys import canonical_json
from ngrpo.storage.digest import file_sha256
from ngrpo.storage.listing import content_digest
from ngrpo.storage.state import DamagedStateError, read_state, write_state

_FRESH_NANOSECONDS = 2_000_000_000
"""A file that was changed so shortly before may be changed again at what its file system holds to be the same time."""
_Known = dict[
    str,
    tuple[
        tuple[int, int, int, int],
        Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")],
        Annotated[int, Field(ge=0)] | None,
    ],
]
"""By path: size, inode, times of the last change of content and of attributes; sha256; rows."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of a copy."""

    size: int
    """Bytes."""
    digest: str
    """What stands for its content."""
    rows: int | None = None
    """Rows of a table; none where it is none, or lies in object storage."""


@dataclass(frozen=True)
class Content:
    """What a copy holds."""

    digest: str
    files: Mapping[str, PlannedFile]
    """By relative path; empty where nobody looked."""

    def record(self) -> dict[str, Any]:
        """Return what a later plan compares itself with (`difference`)."""
        files = {name: [file.digest[:12], file.rows] for name, file in self.files.items()}
        return {"digest": self.digest, "files": files}


@dataclass(frozen=True)
class StageSettings:
    """The settings of a stage."""

    given: str
    """What the stage gets, as canonical JSON: of every copy its place and its digest."""
    keyed: str
    """What is in its key, as canonical JSON: of copies neither, for their content is in the key by itself."""
    content: Mapping[str, Content]
    """The copies that it reads, by the setting that names them."""


def read_contents(config: RunConfig, known: Path | None = None, *, buckets: bool = True) -> dict[str, Content]:
    """Return the content of every copy that a run reads, by the setting that names it, for example `data.train`.

    A digest that the settings name is taken as it is: the place may be one that only the stages see.

    Args:
        config: Configuration of the run.
        known: File that remembers digests, so that gigabytes are read once; damaged or not there, it is made anew.
        buckets: Whether object storage can be asked; else the digests of what lies there are empty, and keys are not those of a run.

    Raises:
        DataError: A copy cannot be read. As below, the message begins with the setting and names the way out.
        StoreError: Object storage cannot be reached; or `known` cannot be written.
    """
    digests = _Digests(known)
    contents = {}
    for path, source in _copies(config):
        setting = ".".join(path)
        if source.digest is not None or (is_bucket(source.location) and not buckets):
            contents[setting] = Content(source.digest or "", {})
            continue
        try:
            files = (
                own_files(source, digests.sha256)
                if isinstance(source, FilesSource)
                else files_of(source, digests.sha256)
            )
        except (DataError, StoreError) as error:
            raise type(error)(
                f"{setting}: {error}; of a place that only the stages can read, name the content in {setting}.digest"
            ) from error
        base = place_of(source.path).base if isinstance(source, FilesSource) else source.location
        rows = {name: digests.rows(Path(base).expanduser() / name) for name in files}
        planned = {name: PlannedFile(file.size, file.digest, rows[name]) for name, file in files.items()}
        contents[setting] = Content(content_digest(files), planned)
    digests.save()
    return contents


def reader(known: Path | None = None, *, buckets: bool = True) -> Callable[[RunConfig], Mapping[str, Content]]:
    """Return a `read_contents` that reads once what many configurations name; see there."""
    seen: dict[str, Mapping[str, Content]] = {}

    def read(config: RunConfig) -> Mapping[str, Content]:
        named = canonical_json([[path, source.model_dump(mode="json")] for path, source in _copies(config)])
        if named not in seen:
            seen[named] = read_contents(config, known, buckets=buckets)
        return seen[named]

    return read


def stage_settings(section: Section, contents: Mapping[str, Content]) -> StageSettings:
    """Return the settings of a stage.

    Args:
        section: The part of a run's configuration that it depends on.
        contents: The copies that the run reads (`read_contents`).
    """
    given, keyed = section.model_dump(mode="json"), section.model_dump(mode="json", exclude=set(section.unkeyed))
    content = {}
    for path, source in _copies(section):
        setting = ".".join(path)
        content[setting] = contents[setting]
        _node(given, path)["digest"] = contents[setting].digest
        _node(keyed, path[:-1])[path[-1]] = identity(source)
    return StageSettings(canonical_json(given), canonical_json(keyed), content)


def require_in_pods(config: RunConfig) -> None:
    """Refuse directories of this machine in a run on a cluster.

    Raises:
        ConfigError: There is one whose digest the settings do not name; the message says how to read it in pods.
        DataError: It cannot be read.
    """
    for path, source in _copies(config):
        if source.digest is None and not is_bucket(source.location):
            setting = ".".join(path)
            digest = read_contents(config)[setting].digest
            what = "a file or directory" if isinstance(source, FilesSource) else "a directory"
            raise ConfigError(
                f"{setting}.{source.named}: {what} of this machine, which pods do not have: copy it to object storage "
                f"(`ngrpo mirror s3://...`), or, if every pod has it at this path, set {setting}.digest={digest}"
            )


def difference(before: Mapping[str, Any] | None, now: Content) -> str | None:
    """Say how a copy differs from what an earlier run recorded of it (`Content.record`); none if it does not."""
    if before is None or before["digest"] == now.digest:
        return None
    old, new = before["files"], now.record()["files"]
    if not old or not new:
        return "other content"
    said = []
    rows = [sum(file[1] or 0 for file in files.values()) for files in (old, new)]
    if rows[0] != rows[1]:
        count = abs(rows[1] - rows[0])
        said.append(f"{count} row{'s' * (count > 1)} {'more' if rows[1] > rows[0] else 'fewer'}")
    changes = {
        "changed": [name for name in new if name in old and new[name][0] != old[name][0]],
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
    }
    for what, names in changes.items():
        if names:
            said.append(f"1 file {what} ({names[0]})" if len(names) == 1 else f"{len(names)} files {what}")
    return ", ".join(said)


def _copies(section: Section, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Copied]]:
    """Yield the copies in a part of the settings, each with the path of names that leads to it."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        for path, item in (
            [((*above, name, key), each) for key, each in value.items()]
            if isinstance(value, Mapping)
            else [((*above, name), value)]
        ):
            if isinstance(item, Copied):
                if is_copy(item):
                    yield path, item
            elif isinstance(item, Section):
                yield from _copies(item, path)


def _node(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        tree = tree[name]
    return tree


class _Digests:
    """Digests and rows of local files, remembered for those that have not changed since."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: _Known = {}
        if path is not None:
            try:
                self._known = read_state(path, _Known, cure="it is made anew") or {}
            except DamagedStateError:  # it saves time, no more
                self._known = {}
        self._before = dict(self._known)

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a file's content."""
        name, state = str(path.absolute()), _state(path)
        known = self._known.get(name)
        if known is not None and known[0] == state:
            return known[1]
        self._known[name] = (state, file_sha256(path), count_rows(path))
        return self._known[name][1]

    def rows(self, path: Path) -> int | None:
        """Return the rows of a file that `sha256` was asked of; none where it is no table, or was not."""
        return self._known[str(path.absolute())][2] if str(path.absolute()) in self._known else None

    def save(self) -> None:
        """Remember for the next time, where there is a place to."""
        oldest = time.time_ns() - _FRESH_NANOSECONDS
        kept = {
            name: entry for name, entry in self._known.items() if max(entry[0][2:]) < oldest and os.path.exists(name)
        }
        if self._path is not None and kept != self._before and self._path.parent.is_dir():
            write_state(self._path, kept)


def _state(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
