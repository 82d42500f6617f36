"""A neighbor index on disk: tensors that are mapped into memory when read, and a description that vouches for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from ngrpo.errors import DataError
from ngrpo.storage.digest import file_sha256
from ngrpo.storage.state import DamagedStateError, read_state

_TENSORS, _DESCRIPTION = "index.safetensors", "index.json"
_CURE = "build it again"


class _Description(TypedDict):
    """What is read of the description."""

    sha256: str
    metric: str
    fingerprint: str
    version: int
    statistics: dict[str, int]


def write(directory: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and description, the latter last; a try that fails leaves nothing.

    Raises:
        DataError: There is no room, or the directory cannot be written.
    """
    payload, described = directory / _TENSORS, directory / _DESCRIPTION
    try:
        directory.mkdir(parents=True, exist_ok=True)
        described.unlink(missing_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, payload)
        described.write_text(json.dumps({**description, "sha256": file_sha256(payload)}), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        for path in (payload, described):
            path.unlink(missing_ok=True)
        raise DataError(
            f"neighbor index in {directory}: cannot be written ({error}); make room there and run again"
        ) from error


def read(directory: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors of the given names, and the description.

    Raises:
        DataError: A file is missing, or is not what was written.
    """
    try:
        description = read_state(directory / _DESCRIPTION, _Description, cure=_CURE)
        if description is None:
            raise ValueError(f"{_DESCRIPTION} is missing")
        if file_sha256(directory / _TENSORS) != description["sha256"]:
            raise ValueError(f"{_TENSORS} is not the file that {_DESCRIPTION} describes")
        tensors = load_file(directory / _TENSORS)
        return {name: tensors[name] for name in names}, dict(description)
    except DamagedStateError as error:
        raise DataError(f"neighbor index: {error}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"neighbor index in {directory}: cannot be read ({error}); {_CURE}") from error
