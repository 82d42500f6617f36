"""The content that a run reads from a local directory or from object storage: the content is in the keys, the location is not.

The stages receive the digests of the plan, and refuse other content.
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
"""Age in seconds below which a file's digest is not cached: it may change again within the resolution of its timestamp."""
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
    """Digest of its content."""
    rows: int | None = None
    """Rows of a table; None if it is not a table, or is in object storage."""


@dataclass(frozen=True)
class Content:
    """What a copy holds."""

    digest: str
    files: Mapping[str, PlannedFile]
    """Files by relative path; empty if they were not read."""

    def record(self) -> dict[str, Any]:
        """Return the record that later plans are compared with (`difference`)."""
        files = {name: [file.digest[:12], file.rows] for name, file in self.files.items()}
        return {"digest": self.digest, "files": files}


@dataclass(frozen=True)
class StageSettings:
    """The settings of a stage."""

    given: str
    """Settings that the stage receives, as canonical JSON, with place and digest of every copy."""
    keyed: str
    """Settings in its key, as canonical JSON, without places and digests of copies, whose content is in the key separately."""
    content: Mapping[str, Content]
    """Copies that it reads, by the setting that names them."""


def read_contents(config: RunConfig, known: Path | None = None, *, buckets: bool = True) -> dict[str, Content]:
    """Return the content of every copy that a run reads, by the setting that names it, for example `data.train`.

    A digest in the settings is used unchecked, because only the stages may have access to the place.

    Args:
        config: Configuration of the run.
        known: File that caches digests, so that gigabytes are read once; created again if damaged or missing.
        buckets: Whether object storage can be read; otherwise digests of its objects are empty, and keys are not those of a run.

    Raises:
        DataError: A copy cannot be read. As below, the message begins with the setting and names the cure.
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
                f"{setting}: {error}; if only the stages can read this place, set {setting}.digest"
            ) from error
        base = place_of(source.path).base if isinstance(source, FilesSource) else source.location
        rows = {name: digests.rows(Path(base).expanduser() / name) for name in files}
        planned = {name: PlannedFile(file.size, file.digest, rows[name]) for name, file in files.items()}
        contents[setting] = Content(content_digest(files), planned)
    digests.save()
    return contents


def reader(known: Path | None = None, *, buckets: bool = True) -> Callable[[RunConfig], Mapping[str, Content]]:
    """Return a `read_contents` that reads each copy once for many configurations."""
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
        ConfigError: The settings name one without its digest; the message says how pods can read it.
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
    """Say how a copy differs from the record of an earlier run (`Content.record`); none if it does not."""
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
    """Cache of digests and rows of local files, valid until they change."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: _Known = {}
        if path is not None:
            try:
                self._known = read_state(path, _Known, cure="it is created again") or {}
            except DamagedStateError:  # only a cache
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
        """Return the rows of a file whose `sha256` was read before; None if it is not a table or was not read."""
        return self._known[str(path.absolute())][2] if str(path.absolute()) in self._known else None

    def save(self) -> None:
        """Write the cache, if there is a file for it."""
        oldest = time.time_ns() - _FRESH_NANOSECONDS
        kept = {
            name: entry for name, entry in self._known.items() if max(entry[0][2:]) < oldest and os.path.exists(name)
        }
        if self._path is not None and kept != self._before and self._path.parent.is_dir():
            write_state(self._path, kept)


def _state(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
