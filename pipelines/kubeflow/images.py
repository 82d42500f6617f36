"""The container images of a release: `images.lock` names each by its digest, and lists the versions of its libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import tomli_w

from ngrpo.config import RunConfig
from ngrpo.config.reading import parse_toml
from ngrpo.config.text_files import read_text
from ngrpo.errors import ConfigError
from ngrpo.stages.libraries import Versions, canonical, installed, public

_BY_DIGEST = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]{0,500}@sha256:[0-9a-f]{64}")
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
LIBRARIES, SBOM = "libraries", "sbom"
"""Tables of a lock file that are not images."""
_NAMES = ("cpu", "gpu")


class Images:
    """The images of a lock file, which is TOML: `name = "repository@sha256:digest"`, and a table `libraries.name` of versions.

    A table `sbom.name` has the bill of materials of the image, which nothing here reads. Lock files of earlier releases have no table of
    versions; then the versions come from the image's requirements, `name.txt`, beside the lock file.
    """

    def __init__(self, path: Path):
        """Read a lock file.

        Raises:
            ConfigError: The file cannot be read, or is not TOML.
        """
        self._path = path
        self._text = read_text("images.lock", path)
        self._images: Mapping[str, object] = parse_toml("images.lock", path, self._text)

    @property
    def text(self) -> str:
        """The text of the lock file, with the versions of libraries, for use on another machine."""
        tables = self._images.get(LIBRARIES)
        known = tables if isinstance(tables, dict) else {}
        beside = {name: requirements(self._path.parent, name) for name in _NAMES if name not in known}
        held = {name: dict(versions) for name, versions in beside.items() if versions}
        return f"{self._text}\n{tomli_w.dumps({LIBRARIES: held})}" if held else self._text

    def reference(self, name: str) -> str:
        """Return the address of an image, with its digest.

        Raises:
            ConfigError: The lock has no such image, or names it by a tag, which can be moved to other content.
        """
        address = self._images.get(name)
        if address is None:
            known = ", ".join(sorted(set(self._images) - {LIBRARIES, SBOM})) or "none"
            raise ConfigError(f"image {name!r} is not in {self._path} (it has: {known}): build it, or add its digest")
        if not isinstance(address, str) or not _BY_DIGEST.fullmatch(address):
            raise ConfigError(
                f"{self._path}: {name} = {address!r} is not a digest, and a tag may move: write repository@sha256:<64 hex digits>"
            )
        return address

    def libraries(self, name: str) -> Mapping[str, str]:
        """Return the versions of the libraries in an image, by canonical name.

        Raises:
            ConfigError: Neither the lock nor a file beside it lists them, or the lock has no such image.
        """
        tables = self._images.get(LIBRARIES)
        table = tables.get(name) if isinstance(tables, dict) else None
        if table is None:
            beside = requirements(self._path.parent, name)
            if beside:
                return beside
            self.reference(name)  # reports problems of the image itself first
            raise ConfigError(
                f"{self._path} does not say which libraries image {name!r} holds, and there is no {name}.txt beside it: "
                "build it again with `make images`, or copy images/*.txt of its release there"
            )
        if not isinstance(table, dict) or not all(isinstance(version, str) for version in table.values()):
            raise ConfigError(
                f'{self._path}: {LIBRARIES}.{name} is not a table of versions: write torch = "2.13.0" and so on, a line each'
            )
        return {canonical(library): public(version) for library, version in table.items()}

    def versions(self, config: RunConfig) -> Versions:
        """Return a function that looks up the versions of libraries in the image of a stage.

        Args:
            config: Tells which stages have GPUs, and therefore the image `gpu`.
        """

        def of(stage: str, names: Iterable[str]) -> Mapping[str, str]:
            return self._versions(stage, image_name(config, stage), names)

        return of

    def _versions(self, stage: str, image: str, names: Iterable[str]) -> Mapping[str, str]:
        held = self.libraries(image)
        wanted = tuple(names)
        missing = [name for name in wanted if name not in held]
        if missing:
            other = f"; resources.{stage}.gpus=1 gives it the image with vLLM" if missing == ["vllm"] else ""
            raise ConfigError(
                f"{stage}: image {image!r} has no library {missing[0]}, which its settings call for: add it to the image, or choose "
                f"settings that do without it{other}"
            )
        return {name: held[name] for name in wanted}


class PlaceholderImages(Images):
    """Images for a pipeline that will not run: an image missing from the lock file gets a placeholder, which no cluster can pull."""

    def __init__(self, path: Path, *, required: bool):
        """Read a lock file.

        Args:
            path: The lock file.
            required: Whether the file must exist; otherwise a missing file counts as empty.

        Raises:
            ConfigError: The file cannot be read, or is not TOML.
        """
        self.placeholders: set[str] = set()
        """Names of the images that got a placeholder so far."""
        if required or path.exists():
            super().__init__(path)
        else:
            self._path, self._text, self._images = path, "", {}

    def reference(self, name: str) -> str:
        """Return the address of an image, with its digest, or with a digest of zeros as a placeholder.

        Raises:
            ConfigError: The lock names the image by a tag.
        """
        if name in self._images:
            return super().reference(name)
        self.placeholders.add(name)
        return f"ngrpo-{name}@sha256:{'0' * 64}"

    def _versions(self, stage: str, image: str, names: Iterable[str]) -> Mapping[str, str]:
        """Return the versions in an image; for a missing image of which nothing is known, the versions installed here."""
        if image in self._images or self._images.get(LIBRARIES) or requirements(self._path.parent, image):
            return super()._versions(stage, image, names)
        return installed(stage, names)


def image_name(config: RunConfig, stage: str) -> str:
    """Return the image of a stage: `gpu` if it requests GPUs, else `cpu`."""
    return "gpu" if config.needs(stage).gpus else "cpu"


def requirements(directory: Path, image: str) -> dict[str, str]:
    """Return the versions of all distributions that an image is built with; empty if the image's files are missing.

    The files are `cpu.txt` and, for packages that carry weights, `weights.txt`; or `gpu.txt`.

    Args:
        directory: `images` of a checkout.
        image: `cpu` or `gpu`.

    Raises:
        ConfigError: A file cannot be read.
    """
    held = _pinned(directory / f"{image}.txt")
    weights = _pinned(directory / "weights.txt") if image == "cpu" and held else {}
    return held | weights


def _pinned(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    text = read_text("requirements of an image", path)
    return {canonical(name): public(version) for name, version in _PINNED.findall(text)}
