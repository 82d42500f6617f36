"""List the files that a path matches: a file, a directory or a glob, on this machine or in object storage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ngrpo.config import FilesSource
from ngrpo.config.sources import is_bucket
from ngrpo.data.locations import RELATIVE
from ngrpo.data.tables import form_of
from ngrpo.errors import DataError
from ngrpo.storage.digest import file_sha256
from ngrpo.storage.listing import File, prefix_files

_GLOB = "*?["


@dataclass(frozen=True)
class Place:
    """Location of one or several files.

    Attributes:
        base: Directory or `s3://` prefix that file names are relative to.
        file: Name of a single file; None if there can be several.
        pattern: Glob that selects several files.
    """

    base: str
    file: str | None = None
    pattern: str = "**/*"

    def holds(self, name: str) -> bool:
        """Return whether a file (relative name) belongs to the place. Globs and directories select only tables that are not hidden."""
        if self.file is not None:
            return name == self.file
        parts = name.split("/")
        hidden = any(part.startswith(".") for part in parts)
        return not hidden and form_of(name) is not None and _matches(parts, self.pattern.split("/"))


def place_of(path: str) -> Place:
    """Parse a path: an absolute path on this machine, or an `s3://` address."""
    parts = path.rstrip("/").split("/")
    signs = [index for index, part in enumerate(parts) if any(sign in part for sign in _GLOB)]
    if signs and (is_bucket(path) or not os.path.exists(path)):
        return Place("/".join(parts[: signs[0]]) or "/", pattern="/".join(parts[signs[0] :]))
    is_file = form_of(parts[-1]) is not None if is_bucket(path) else not os.path.isdir(path)
    return Place("/".join(parts[:-1]) or "/", parts[-1]) if is_file else Place(path)


def own_files(source: FilesSource, sha256: Callable[[Path], str] = file_sha256) -> dict[str, File]:
    """Return the files that a source's path matches, by relative name, sorted.

    Args:
        source: The source.
        sha256: Returns the sha256 of a file's content.

    Raises:
        DataError: The path does not exist, matches no table or tables of different formats, or a file cannot be read.
        StoreError: The object store cannot be reached or refuses the credentials.
    """
    place = place_of(source.path)
    if is_bucket(source.path):
        from ngrpo.storage.objects import ObjectStore

        files = prefix_files(ObjectStore(place.base), place.holds)
    else:
        base = Path(place.base)
        try:
            names = _names(source, place)
            files = {name: File((base / name).stat().st_size, sha256(base / name)) for name in names}
        except OSError as error:
            raise DataError(
                f"{source.named}: {error.filename} cannot be read ({error.strerror}); check its rights and the disk"
            ) from error
    _require_one_form(source.named, files)
    return files


def _names(source: FilesSource, place: Place) -> list[str]:
    base = Path(place.base)
    if place.file is None:
        if not base.is_dir():
            raise DataError(f"{source.named}: no such directory: {place.base}; {RELATIVE}")
        found = (file.relative_to(base).as_posix() for file in base.glob(place.pattern) if file.is_file())
        return sorted(filter(place.holds, found))
    if not Path(source.path).is_file():
        raise DataError(f"{source.named}: no such file or directory; {RELATIVE}")
    return [place.file]


def _require_one_form(named: str, names: Iterable[str]) -> None:
    """Refuse a path that matches no tables, or tables of different formats: it is unclear which of them are the data."""
    forms: dict[str, list[str]] = {}
    for name in names:
        form = form_of(name)
        if form is None:
            raise DataError(f"{named}: its name is not a table's; the name of a table ends with {known_forms()}")
        forms.setdefault(form, []).append(name)
    if not forms:
        raise DataError(
            f"{named}: no table there; the name of a table ends with {known_forms()}, and hidden files do not count"
        )
    if len(forms) > 1:
        found = ", ".join(f"{form} ({len(held)}, for example {held[0]})" for form, held in sorted(forms.items()))
        # JSON files beside tables are often metadata, so prefer another format.
        likely = max(sorted(forms), key=lambda form: (len(forms[form]), form != "json"))
        raise DataError(
            f"{named}: tables of several formats: {found}; select one format with a glob, for example *.{likely}"
        )


def known_forms() -> str:
    """Return the file name extensions of tables, for messages."""
    return ".jsonl, .json, .csv, .tsv (each also with .gz) or .parquet"


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
