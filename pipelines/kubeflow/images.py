"""The container images of a release: `images.lock` names each by the digest of its content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ngrpo.config.reading import parse_toml, read_text
from ngrpo.errors import ConfigError

_BY_DIGEST = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]{0,500}@sha256:[0-9a-f]{64}")


class Images:
    """The images of a lock file, which is TOML: `name = "repository@sha256:digest"`."""

    def __init__(self, path: Path):
        """Read a lock file.

        Raises:
            ConfigError: The file cannot be read, or is not TOML.
        """
        self._path = path
        self.text = read_text("images.lock", path)
        """The lock file, to be read somewhere else."""
        self._images: Mapping[str, object] = parse_toml("images.lock", path, self.text)

    def reference(self, name: str) -> str:
        """Return the address of an image, with its digest.

        Raises:
            ConfigError: The lock has no such image, or names it by a tag, which may be moved to other content.
        """
        address = self._images.get(name)
        if address is None:
            known = ", ".join(sorted(self._images)) or "none"
            raise ConfigError(f"image {name!r} is not in {self._path} (it has: {known}): build it, or add its digest")
        if not isinstance(address, str) or not _BY_DIGEST.fullmatch(address):
            raise ConfigError(
                f"{self._path}: {name} = {address!r} is no digest, and a tag may move: write repository@sha256:<64 hex digits>"
            )
        return address


class PlaceholderImages(Images):
    """Images for a pipeline that is only looked at: what the lock file lacks has a placeholder, which no cluster can pull."""

    def __init__(self, path: Path, *, required: bool):
        """Read a lock file.

        Args:
            path: The lock file.
            required: Whether it must be there; otherwise a missing file is an empty one.

        Raises:
            ConfigError: The file cannot be read, or is not TOML.
        """
        self.placeholders: set[str] = set()
        """Names of the images that had to be made up so far."""
        if required or path.exists():
            super().__init__(path)
        else:
            self._path, self.text, self._images = path, "", {}

    def reference(self, name: str) -> str:
        """Return the address of an image, with its digest or one of zeros.

        Raises:
            ConfigError: The lock names the image by a tag.
        """
        if name in self._images:
            return super().reference(name)
        self.placeholders.add(name)
        return f"ngrpo-{name}@sha256:{'0' * 64}"
