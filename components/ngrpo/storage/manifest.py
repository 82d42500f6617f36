"""What an artifact consists of (`Manifest`) and what stands for it in a pipeline (`Reference`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from ngrpo.errors import StoreError


@dataclass(frozen=True)
class Reference:
    """What stands for an artifact in a pipeline.

    Attributes:
        uri: `s3://bucket/prefix/stage/key/`.
        key: Key of the result.
        digest: sha256 of the manifest.
    """

    uri: str
    key: str
    digest: str

    def to_json(self) -> str:
        """Return the reference as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is not JSON.
            TypeError: It is not a reference.
        """
        return cls(**json.loads(text))

    def write(self, path: Path) -> None:
        """Write the reference to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a reference from a file.

        Raises:
            StoreError: The file is missing or holds no reference.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{path}: holds no reference to an artifact ({error}); run the pipeline again") from error


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: sha256 of its content and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact consists of and where it comes from.

    Attributes:
        stage: Stage that made it.
        key: Key of the result.
        config_digest: Digest of the stage's settings.
        code_version: Hash of the stage's source.
        inputs: Key of each input, by the input's name.
        files: Entry of each file, by its path relative to the artifact.
    """

    stage: str
    key: str
    config_digest: str
    code_version: str
    inputs: Mapping[str, str]
    files: Mapping[str, FileEntry]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Return the one JSON text of the manifest: equal manifests have equal bytes, and so equal digests."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: It is not a manifest, or a file of it would lie outside the artifact.
        """
        try:
            tree = json.loads(data)
            files = {name: FileEntry(**entry) for name, entry in tree.pop("files").items()}
            manifest = cls(**tree, files=files)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a manifest: {error}") from error
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name:
                raise ValueError(f"not a manifest: {name!r} is not a path inside an artifact")
        return manifest
