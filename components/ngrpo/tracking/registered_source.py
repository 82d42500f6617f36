"""A version of the model registry as a model source: the address of its files and their digest."""

from __future__ import annotations

from typing import Any

from mlflow.entities.model_registry import ModelVersion

from ngrpo.errors import TrackingError
from ngrpo.tracking.model_registry import DIGEST, ModelRegistry


def registered_source(registry: ModelRegistry, version: ModelVersion, which: str = "") -> dict[str, Any]:
    """Return a version of the registry as `model.source`, pinned by its digest.

    Args:
        registry: The registered model.
        version: The version.
        which: Words that precede the version in error messages, for example `the champion, `.

    Raises:
        TrackingError: Its files are gone or out of the stages' reach, or no run registered it.
    """
    what = f"model {registry.name}: {which}version {version.version},"
    missing = registry.missing(version)
    if missing:
        raise TrackingError(f"{what} has lost files ({missing[0]}): restore them, or `ngrpo rollback`")
    if DIGEST not in version.tags:
        raise TrackingError(f"{what} was not registered by a run (it has no tag {DIGEST}): name it in model.source")
    location = registry.location(version)
    if not location.startswith("s3://"):
        raise TrackingError(
            f"{what} is kept in {location}, where stages cannot read it: give MLflow an artifact root in object storage (s3://…)"
        )
    return {
        "kind": "registered",
        "name": registry.name,
        "version": int(version.version),
        "id": location,
        "digest": version.tags[DIGEST],
    }
