"""Resolve the name of a model to evaluate, and check that it has weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ngrpo.config import RunConfig
from ngrpo.data.locations import is_bucket
from ngrpo.errors import ConfigError, DataError, TrackingError
from ngrpo.section import check_store

_FORMS = (
    "a directory (./name), org/name@COMMIT of the hub, an s3:// prefix, champion, or the number of a registered version"
)
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_SHARD = re.compile(r"model_world_size_\d+_rank_\d+\.pt")
_DEEPEST = 4
_MOST_FILES = 10_000


def model_source(model: str, config: RunConfig) -> dict[str, Any]:
    """Return a model as `model.source`.

    Args:
        model: A directory, `org/name@COMMIT`, an `s3://` prefix, `champion`, or the number of a version.
        config: Names the registered model in `promotion.model_name`.

    Raises:
        ConfigError: The name is none of these.
        DataError: There are no readable weights; the message says how to get them.
        TrackingError: The registry has no such version, or cannot be reached.
        StoreError: The object store cannot be reached.
    """
    if is_registered(model):
        return _registered(model, config)
    source = source_by_name(model)
    if is_bucket(model):
        from ngrpo.storage.objects import ObjectStore

        _require_weights(ObjectStore(model).list(""), model)
    return source


def source_by_name(model: str) -> dict[str, Any]:
    """Return a model as `model.source` if that needs no service; see `model_source`.

    Returns:
        The source; empty for a registered version, which has to be looked up in the registry.

    Raises:
        ConfigError: It does not name a model.
        DataError: It is a directory without weights.
    """
    if is_registered(model):
        return {}
    if is_bucket(model):
        try:
            return {"kind": "hub", "id": check_store(model)}
        except ValueError as error:
            raise ConfigError(f"model {model!r}: {error}") from error
    match = _HUB.fullmatch(model)
    try:
        if match is None and not Path(model).expanduser().is_dir():
            raise ConfigError(f"model {model!r}: no model and no such directory; name {_FORMS}")
        if match is None and not model.strip():
            raise ConfigError(f"model {model!r}: no model; name {_FORMS}")
    except (OSError, RuntimeError) as error:  # a name that is too long; ~somebody
        raise ConfigError(f"model {model!r}: {error}; name {_FORMS}") from error
    if match is not None:
        return {"kind": "hub", "id": match["id"], "revision": match["revision"]}
    place = Path(model).expanduser().absolute()
    files = (path for depth in range(_DEEPEST) for path in place.glob("*/" * depth + "*") if path.is_file())
    _require_weights((path.relative_to(place).as_posix() for path in islice(files, _MOST_FILES)), model)
    return {"kind": "hub", "id": str(place)}


def is_registered(model: str) -> bool:
    """Whether a name refers to the registry: `champion`, or the number of a version."""
    return model == "champion" or re.fullmatch("[1-9][0-9]{0,8}", model) is not None


def _registered(model: str, config: RunConfig) -> dict[str, Any]:
    from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
    from ngrpo.tracking.registered_source import registered_source

    registry = ModelRegistry(config.promotion.model_name)
    version = registry.by_alias(CHAMPION) if model == "champion" else registry.version(model)
    if version is None:
        what = "champion" if model == "champion" else f"version {model}"
        raise TrackingError(f"model {registry.name} has no {what}: {registry.choices()}")
    return registered_source(registry, version)


def _require_weights(names: Iterable[str], model: str) -> None:
    """Refuse a directory or prefix without weights in the format of `save_pretrained`; the error says how to get them.

    Args:
        names: Relative names of its files.
        model: Name of the model, for the error.

    Raises:
        DataError: There are no such weights.
    """
    paths = [PurePosixPath(name) for name in sorted(names)]
    here = {path.name for path in paths if len(path.parts) == 1}
    if any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in here):
        return
    below = [path.parent for path in paths if path.suffix == ".safetensors" and len(path.parts) > 1]
    shards = [path.parent for path in paths if _SHARD.fullmatch(path.name)]
    if "adapter_config.json" in here:
        cure = (
            "an adapter without its model: merge the two (peft's `merge_and_unload`) and `save_pretrained` the result"
        )
    elif below:
        newest = max(below, key=lambda path: [int(digits) for digits in re.findall(r"\d+", str(path))])
        cure = f"no weights, but there are some below it: name {model.rstrip('/')}/{newest}"
    elif shards:
        place = f"{model.rstrip('/')}/{shards[0]}".removesuffix("/.")
        cure = (
            "a checkpoint of verl in shards of FSDP, which transformers cannot read as weights; merge them with "
            f"`python -m verl.model_merger merge --backend fsdp --local_dir {place} --target_dir DIR` and name DIR"
        )
    else:
        cure = "no *.safetensors file: save the model there with `save_pretrained`, its tokenizer too"
    raise DataError(f"model {model!r}: {cure}")
