"""The manifest of an artifact, and the reference that stages of a pipeline exchange."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ConfigDict, Field

from ngrpo.errors import StoreError
from ngrpo.storage.address import parse_address, path_problem
from ngrpo.storage.state import DamagedStateError, parse_state

MANIFEST = "manifest.json"
REFERENCE = "reference.json"
"""File with the reference, stored beside the payload so that other pipelines can import the artifact with `dsl.importer`."""
SUSPECT = "suspect.txt"
"""Marker that a consumer writes beside a damaged artifact: the next `verify` reads the whole artifact, regardless of size."""
OWN_FILES = frozenset({MANIFEST, REFERENCE, SUSPECT})
"""File names that are reserved by the store."""
_RUN_AGAIN = "run the pipeline again"


def _inside(name: str) -> str:
    problem = path_problem(name)
    if problem is not None:
        raise ValueError(f"{name!a} is not a path inside an artifact: {problem}")
    return name


def _address(uri: str) -> str:
    try:
        parse_address(uri, "artifact")
    except StoreError as error:
        raise ValueError(str(error)) from error
    return uri


def _files(files: Mapping[str, FileEntry]) -> Mapping[str, FileEntry]:
    """Refuse invalid or reserved names, and a name that is both file and directory."""
    for name in files:
        _inside(name)
        if name in OWN_FILES:
            raise ValueError(f"{name!a} is reserved by the store")
        parent = name
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in files:
                raise ValueError(f"{parent!a} is a file and a directory")
    return files


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, AfterValidator(_inside)]


@dataclass(frozen=True)
class Reference:
    """The reference to an artifact in a pipeline.

    Attributes:
        uri: `s3://bucket/prefix/stage/key/`.
        key: Key of the result.
        digest: sha256 of the manifest.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    uri: Annotated[str, AfterValidator(_address)]
    key: Name
    digest: Sha256

    def to_json(self) -> str:
        """Return the reference as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, where: object = "reference") -> Self:
        """Read what `to_json` wrote.

        Args:
            text: The JSON text.
            where: Path or address, for the error.

        Raises:
            DamagedStateError: The text is not a reference, or its address is invalid (see `parse_address`).
        """
        data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        return parse_state(data, cls, where=where, cure=_RUN_AGAIN)

    def write(self, path: Path) -> None:
        """Write the reference to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a reference from a file.

        Raises:
            StoreError: The file is missing or does not contain a reference.
        """
        try:
            return cls.from_json(path.read_bytes(), path)
        except (OSError, DamagedStateError) as error:
            why = (
                error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ").partition(";")[0]
            )
            raise StoreError(f"{path}: holds no reference to an artifact ({why}); {_RUN_AGAIN}") from error


@dataclass(frozen=True)
class FileEntry:
    """sha256 and size in bytes of a file of an artifact."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    sha256: Sha256
    size: Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class Manifest:
    """The content of an artifact and its origin.

    Attributes:
        stage: Stage that produced the result.
        key: Key of the result.
        config_digest: Digest of the stage's settings.
        code_version: Hash of the stage's source.
        inputs: Key of each input, by the input's name.
        files: Entry of each file, by path relative to the artifact.
        folder: Subfolder of the files; empty unless they replaced those of a damaged artifact (see `ArtifactStore.publish`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    stage: Name
    key: Name
    config_digest: str
    code_version: str
    inputs: Mapping[str, str]
    files: Annotated[Mapping[str, FileEntry], AfterValidator(_files)]
    folder: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(entry.size for entry in self.files.values())

    def object_name(self, file: str) -> str:
        """Return the path of a file's object, relative to the artifact."""
        return f"{self.folder}/{file}" if self.folder else file

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the manifest: equal manifests have equal bytes, and so equal digests.

        It includes a digest of its content, so that a corrupted manifest can be detected.
        """
        tree = asdict(self)
        return json.dumps(tree | {"check": _check(tree)}, sort_keys=True, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: object = MANIFEST) -> Self:
        """Read what `to_bytes` wrote.

        Args:
            data: The JSON bytes.
            where: Path or address, for the error.

        Raises:
            DamagedStateError: The data is not a manifest, was changed, or names a file outside the artifact.
        """
        tree = parse_state(data, dict[str, Any], where=where, cure=_RUN_AGAIN)
        check = tree.pop("check", None)  # manifests of earlier versions have none
        manifest = parse_state(json.dumps(tree).encode(), cls, where=where, cure=_RUN_AGAIN)
        if check is not None and check != _check(tree):
            raise DamagedStateError(f"{where}: damaged: its content was changed; {_RUN_AGAIN}")
        return manifest


def _check(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
